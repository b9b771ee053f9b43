"""Panels that grow, answers weighed by what is known, models that merge only where they must."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from expertmix.agents import Adaptive, Beliefs, Expertise, OutcomeTable, Pool
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import Resources, create_graph
from expertmix.retrieval import Question

OPTIONS = ("red", "green", "blue", "black")


def make_expertise(**shares: float) -> Expertise:
    """A profile of 200 questions where each expert is right with its share, wrong ones at random."""
    chance = np.random.default_rng(0)
    names = tuple(sorted(shares))
    gold_N = chance.integers(0, 4, 200)
    labels_NE = np.stack(
        [
            np.where(
                chance.random(200) < shares[name], gold_N, (gold_N + chance.integers(1, 4, 200)) % 4
            )
            for name in names
        ],
        axis=1,
    )
    table = OutcomeTable(
        experts=names,
        questions=tuple(f"r{at}" for at in range(200)),
        labels_NE=labels_NE.astype(np.int16),
        gold_N=gold_N.astype(np.int16),
        options_N=np.full(200, 4, np.int16),
        skills=({"colours": 1.0},) * 200,
    )
    return Expertise(table=table, beliefs=Beliefs.fit(table))


def make_questions(number: int) -> dict[str, dict[str, Any]]:
    made = [
        Question(id=f"q{at}", text=f"Colour {at}?", options=OPTIONS, kind="choice")
        for at in range(number)
    ]
    return {question.id: question.to_json() for question in made}


def says(letters: dict[str, str], faults: Faults | None = None) -> ScriptedEngine:
    """An expert that gives the letter that stands for the question, or that under `*`."""
    return ScriptedEngine(
        "", {qid: f"Answer: ({letter})" for qid, letter in letters.items()}, faults=faults
    )


async def run(
    engines: dict[str, ScriptedEngine], questions: dict[str, dict[str, Any]], **settings: Any
) -> dict[str, Any]:
    async with Pool.from_engines(engines) as pool:
        return await create_graph().ainvoke(  # pyright: ignore[reportReturnType]
            {"questions": questions},  # pyright: ignore[reportArgumentType]
            context=Resources(pool=pool, **settings),
        )


class Colours:
    """Every question needs the same skill."""

    calls_per_question = 0

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        return {question.id: {"colours": 1.0} for question in questions}


SHARES = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "e": 0.5}


async def test_only_disputed_questions_go_round_again() -> None:
    agreed = {name: says({"q0": "B", "q1": "B" if name in "ace" else "C"}) for name in SHARES}
    state = await run(
        agreed,
        make_questions(2),
        expertise=make_expertise(**SHARES),
        adaptive=Adaptive(calls=4, first=2, most=5, rounds=6, least=0.02),
    )
    assert [r["expert"] for r in state["recruits"]["q0"]] == ["a", "b"], "they agree: enough"
    assert len(state["recruits"]["q1"]) > 2, "they do not: a third is asked"
    assert "expected gain" in state["recruits"]["q1"][2]["reason"]
    assert agreed["a"].calls == 1, "nobody is asked twice"
    assert state["verdicts"]["q1"]["answer"] == "B"


async def test_the_mean_of_calls_never_exceeds_the_budget() -> None:
    chance = random.Random(0)
    questions = make_questions(30)
    engines = {name: says({qid: chance.choice("ABCD") for qid in questions}) for name in SHARES}
    state = await run(
        engines,
        questions,
        expertise=make_expertise(**SHARES),
        adaptive=Adaptive(calls=2.5, first=2, most=5, least=0.0),
    )
    counts = [len(recruits) for recruits in state["recruits"].values()]
    assert sum(counts) == 75
    assert max(counts) > min(counts)


async def test_a_grown_panel_does_not_depend_on_the_order_of_questions() -> None:
    chance = random.Random(1)
    questions = make_questions(12)
    letters = {name: {qid: chance.choice("ABC") for qid in questions} for name in SHARES}
    rows: list[Any] = []
    for seed in range(3):
        order = list(questions.items())
        random.Random(seed).shuffle(order)
        state = await run(
            {name: says(letters[name]) for name in SHARES},
            dict(order),
            expertise=make_expertise(**SHARES),
            adaptive=Adaptive(calls=3, first=2, most=5),
        )
        rows.append({qid: (state["recruits"][qid], state["verdicts"][qid]) for qid in questions})
    assert rows[0] == rows[1] == rows[2]


async def test_a_failed_expert_is_asked_once_and_replaced_in_the_next_round() -> None:
    engines = {name: says({"*": "B"}) for name in SHARES}
    engines["b"] = says({"*": "B"}, Faults(load="it broke"))
    state = await run(
        engines,
        make_questions(1),
        expertise=make_expertise(**SHARES),
        adaptive=Adaptive(calls=4, first=2, most=5, least=0.001),
    )
    recruits = [r["expert"] for r in state["recruits"]["q0"]]
    assert recruits[:2] == ["a", "b"]
    assert len(recruits) > 2
    assert recruits.count("b") == 1
    assert state["verdicts"]["q0"]["missing"] == {"b": "it broke"}


async def test_one_strong_expert_outweighs_two_weak_ones() -> None:
    known = make_expertise(strong=0.95, weak1=0.3, weak2=0.3)
    engines = {"strong": says({"*": "A"}), "weak1": says({"*": "B"}), "weak2": says({"*": "B"})}
    questions = make_questions(1)
    weighed = await run(engines, questions, expertise=known, k=3)
    counted = await run(
        {name: says({"*": "A" if name == "strong" else "B"}) for name in engines},
        questions,
        expertise=known,
        k=3,
        merging="vote",
    )
    assert weighed["verdicts"]["q0"]["answer"] == "A"
    assert weighed["verdicts"]["q0"]["method"] == "posterior"
    assert weighed["verdicts"]["q0"]["confidence"] > 0.5
    assert weighed["verdicts"]["q0"]["dissent"] == {"B": ["weak1", "weak2"]}
    assert sum(weighed["verdicts"]["q0"]["chances"].values()) <= 1 + 1e-6
    assert counted["verdicts"]["q0"]["answer"] == "B"


async def test_a_doubtful_panel_abstains_and_says_what_it_leaned_to() -> None:
    engines = {name: says({"*": letter}) for name, letter in zip("abc", "ABC", strict=True)}
    state = await run(
        engines,
        make_questions(1),
        expertise=make_expertise(a=0.4, b=0.4, c=0.4),
        k=3,
        abstain_below=0.9,
    )
    verdict = state["verdicts"]["q0"]
    assert verdict["answer"] is None
    assert verdict["abstained"] is True
    assert "leaned to" in verdict["note"]
    assert set(verdict["votes"]) == {"A", "B", "C"}


async def test_an_agreeing_panel_needs_no_aggregator() -> None:
    boss = says({"*": "D"})
    engines = {"a": says({"q0": "A", "q1": "A"}), "b": says({"q0": "A", "q1": "B"}), "boss": boss}
    state = await run(
        engines,
        make_questions(2),
        expertise=make_expertise(a=0.8, b=0.7, boss=0.5),
        k=2,
        experts=("a", "b"),
        aggregator="boss",
    )
    assert state["verdicts"]["q0"]["answer"] == "A"
    assert state["verdicts"]["q1"]["answer"] == "D"
    assert len(boss.requests) == 1


async def test_an_expert_that_was_drawn_twice_answers_twice() -> None:
    engine = says({"*": "A"})
    other = says({"*": "B"})
    state = await run(
        {"good": engine, "poor": other},
        make_questions(8),
        expertise=make_expertise(good=0.9, poor=0.1),
        extractor=Colours(),
        k=2,
        policy="reference",
    )
    drawn = [r for recruits in state["recruits"].values() for r in recruits]
    assert {r["expert"]: r.get("draws", 1) for r in drawn} == {"good": 2}
    assert len(engine.requests) == 16
    assert len({request.sampling.seed for request in engine.requests}) == 16


async def test_an_expert_that_cannot_be_loaded_is_tried_in_one_round_only() -> None:
    chance = random.Random(0)
    questions = make_questions(40)
    engines = {name: says({qid: chance.choice("ABCD") for qid in questions}) for name in SHARES}
    engines["c"] = says({"*": "B"}, Faults(load="it broke"))
    state = await run(
        engines,
        questions,
        expertise=make_expertise(**SHARES),
        adaptive=Adaptive(calls=4, first=2, most=5, least=0.0),
    )
    rounds = {
        recruited["reason"].split(",")[0]
        for recruits in state["recruits"].values()
        for recruited in recruits
        if recruited["expert"] == "c"
    }
    assert rounds == {"round 2"}
    assert max(map(len, state["recruits"].values())) > 3, "the others are asked on"


async def test_an_expert_that_was_drawn_twice_counts_twice_in_the_budget() -> None:
    engines = {"good": says({"*": "A"}), "mid": says({"*": "C"}), "poor": says({"*": "B"})}
    await run(
        engines,
        make_questions(8),
        expertise=make_expertise(good=0.9, mid=0.2, poor=0.1),
        extractor=Colours(),
        policy="reference",
        adaptive=Adaptive(calls=2, first=2, most=3, least=0.0),
    )
    assert sum(len(engine.requests) for engine in engines.values()) == 16


@pytest.mark.parametrize("first", [1, 2])
async def test_limits_decide_how_many_are_asked_at_first(first: int) -> None:
    engines = {name: says({"*": "A"}) for name in SHARES}
    state = await run(
        engines,
        make_questions(2),
        expertise=make_expertise(**SHARES),
        adaptive=Adaptive(calls=2, first=first, most=4, least=1.0),
    )
    assert {len(recruits) for recruits in state["recruits"].values()} == {first}


async def test_an_adaptive_panel_asks_an_annotator_only_once_a_batch() -> None:
    asked: list[int] = []

    class Counting(Colours):
        async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
            asked.append(len(questions))
            return await super().extract(questions)

    state = await run(
        {name: says({"*": "A" if name in "ace" else "B"}) for name in SHARES},
        make_questions(3),
        expertise=make_expertise(**SHARES),
        extractor=Counting(),
        adaptive=Adaptive(calls=4, first=2, most=5, least=0.001),
    )
    assert state["recruits"]["q0"][0]["reason"].startswith("colours 0.")
    assert max(map(len, state["recruits"].values())) > 2, "there were further rounds"
    assert asked == [3]
