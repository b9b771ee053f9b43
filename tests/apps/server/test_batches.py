"""Questions that come together meet in one batch; nobody waits for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from expertmix.apps.server.batch_pool import PanelEvent
from expertmix.apps.server.batches import Collator
from expertmix.retrieval import Question

Tell = Callable[[str, PanelEvent], None]


def question(name: str, text: str = "?") -> Question:
    return Question(id=name, text=text)


class Batches:
    """Answers a batch by its questions' texts, and remembers it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seen: list[tuple[str, list[str]]] = []
        self.cancelled = 0
        self._seconds = seconds

    async def run(self, terms: str, questions: Sequence[Question], tell: Tell) -> Mapping[str, str]:
        self.seen.append((terms, [q.id for q in questions]))
        for q in questions:
            tell(q.id, PanelEvent(event="expert_started", expert="a", stage="reason"))
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {q.id: q.text for q in questions}


def hear_nothing(_: PanelEvent) -> None:
    pass


async def test_questions_under_the_same_terms_meet() -> None:
    batches = Batches()
    collator = Collator(batches.run, window=0.02, most=9)
    asked = [("x", "1"), ("y", "2"), ("x", "3")]
    answers = await asyncio.gather(
        *(collator.ask(terms, question(name, name), hear_nothing) for terms, name in asked)
    )
    assert answers == ["1", "2", "3"]
    assert sorted(batches.seen) == [("x", ["1", "3"]), ("y", ["2"])]


async def test_a_full_batch_starts_at_once_and_the_next_one_waits() -> None:
    batches = Batches()
    collator = Collator(batches.run, window=60, most=2)
    asked = [asyncio.create_task(collator.ask("x", question(n), hear_nothing)) for n in "abc"]
    await asyncio.wait(asked, timeout=0.05)
    assert [task.done() for task in asked] == [True, True, False]
    asked[2].cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert batches.seen == [("x", ["a", "b"])]


async def test_the_same_question_is_asked_once_and_everybody_hears_of_it() -> None:
    batches, heard = Batches(), list[PanelEvent]()
    collator = Collator(batches.run, window=0.01, most=9)
    asked = (collator.ask("x", question("a"), heard.append) for _ in range(3))
    assert await asyncio.gather(*asked) == ["?", "?", "?"]
    assert batches.seen == [("x", ["a"])]
    assert len(heard) == 3


async def test_an_id_that_is_taken_by_another_question_goes_into_the_next_batch() -> None:
    batches = Batches()
    collator = Collator(batches.run, window=0.01, most=9)
    asked = (collator.ask("x", question("a", text), hear_nothing) for text in ("one", "two", "one"))
    assert await asyncio.gather(*asked) == ["one", "two", "one"]
    assert all(names == ["a"] for _, names in batches.seen)


async def test_a_batch_ends_when_the_last_one_leaves_and_not_before() -> None:
    batches = Batches(seconds=60)
    collator = Collator(batches.run, window=0.0, most=9)
    asked = [asyncio.create_task(collator.ask("x", question(n), hear_nothing)) for n in "ab"]
    await asyncio.sleep(0.02)
    asked[0].cancel()
    await asyncio.sleep(0.02)
    assert batches.cancelled == 0
    asked[1].cancel()
    await asyncio.sleep(0.02)
    assert batches.cancelled == 1


async def test_who_leaves_before_the_start_is_not_asked_for() -> None:
    batches = Batches()
    collator = Collator(batches.run, window=0.03, most=9)
    asked = [asyncio.create_task(collator.ask("x", question(n), hear_nothing)) for n in "ab"]
    await asyncio.sleep(0)
    asked[0].cancel()
    assert await asked[1] == "?"
    assert batches.seen == [("x", ["b"])]


async def test_an_error_comes_to_everybody() -> None:
    async def run(_: str, __: Sequence[Question], ___: Tell) -> Mapping[str, str]:
        raise ValueError("no")

    collator = Collator(run, window=0.0, most=9)
    asked = [collator.ask("x", question(n), hear_nothing) for n in "ab"]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]
    with pytest.raises(ValueError, match="no"):
        await collator.ask("x", question("c"), hear_nothing)
