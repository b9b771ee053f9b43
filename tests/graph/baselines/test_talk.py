"""What all baselines share: who is cast, calls as promised, failures, one `Send` per expert and round."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph.baselines import (
    Debate,
    KnnRouter,
    Majority,
    SelfConsistency,
    SingleBest,
    create_talk,
)
from expertmix.graph.methods import KINDS, METHODS, Panel, answer_with, fit_method
from expertmix.retrieval import InputError, Question

ALONE = ("knn_router", "adaptive")
"""Tested in files of their own: they need references, or a disagreement."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ALONE])
@pytest.mark.parametrize("calls", [3, 6, 9])
async def test_every_method_makes_the_calls_it_says_where_all_agree(
    table: Any, everyone: Any, name: str, calls: int
) -> None:
    method = fit_method(name, calls=calls, experts=4)
    if method is None:
        pytest.skip(f"{name} needs more than {calls} calls")
    solution = await table.talk(method, everyone)
    assert solution.answer == "B"
    expected = method.calls
    if name == "reconcile":
        expected = 3  # it ends on agreement
    if name == "panel":
        expected = min(calls, 4)
    assert len(table.said) == len(solution.experts) == expected
    assert name == "oracle" or method.calls <= calls


@settings(max_examples=100, deadline=None)
@given(calls=st.integers(1, 40), experts=st.integers(1, 20), kind=st.sampled_from(KINDS))
def test_no_form_exceeds_the_calls_it_was_made_for(calls: int, experts: int, kind: Any) -> None:
    method = kind.fit(calls, experts)
    if method is not None:
        assert kind.name == "oracle" or method.calls <= calls
        assert method.name == kind.name


def test_an_unknown_method_is_one_sentence() -> None:
    with pytest.raises(InputError, match='no method "magic"; there are panel, adaptive'):
        fit_method("magic", calls=3, experts=4)


async def test_without_a_profile_nobody_knows_who_is_best(table: Any, everyone: Any) -> None:
    with pytest.raises(InputError, match="who is best is not known without a profile"):
        await table.talk(SingleBest(), everyone, expertise=None)
    with pytest.raises(InputError, match="the method panel needs a profile"):
        await table.talk(Panel(), everyone, expertise=None)
    with pytest.raises(InputError, match="needs the profile's reference questions"):
        await table.talk(KnnRouter(), everyone)


async def test_the_strongest_is_asked_alone(table: Any, everyone: Any) -> None:
    solution = await table.talk(SingleBest(), {**everyone, "a": ["Answer: (C)"]})
    assert solution.answer == "C"
    assert table.askings == ["a"]
    assert solution.row["method"] == "vote"


async def test_a_tie_goes_to_the_stronger_expert(table: Any) -> None:
    lines = {"a": ["Answer: (C)"], "b": ["Answer: (A)"], "c": ["Answer: (A)"], "d": ["Answer: (C)"]}
    solution = await table.talk(Majority(k=4), lines)
    assert table.askings == ["a", "b", "c", "d"]
    assert solution.answer == "C"
    assert solution.confidence == 0.5
    assert solution.row["dissent"] == {"A": ["b", "c"]}


async def test_samples_of_one_expert_differ_in_their_seeds_and_are_drawn(table: Any) -> None:
    lines = {"a": ["Answer: (A)", "Answer: (B)", "Answer: (B)"], "b": ["Answer: (C)"]}
    lines |= {"c": ["Answer: (C)"], "d": ["Answer: (C)"]}
    solution = await table.talk(SelfConsistency(samples=3), lines)
    assert solution.answer == "B"
    assert solution.confidence == pytest.approx(2 / 3)
    assert table.temperatures() == [0.7] * 3
    assert len({request.sampling.seed for _, request in table.said}) == 3


async def test_a_round_asks_every_expert_once_for_all_questions(table: Any, everyone: Any) -> None:
    questions = [Question(id=f"q{i}", text=f"{i}?", gold="x") for i in range(50)]
    engines = {alias: ScriptedEngine(alias, {"*": "Answer: x"}) for alias in everyone}
    async with Pool.from_engines(engines) as pool:
        solutions = await answer_with(Debate(), questions, table.arrange(pool))
    assert [solution.question.id for solution in solutions] == [q.id for q in questions]
    assert [engine.calls for engine in engines.values()] == [2, 0, 0, 0]
    assert len(engines["a"].requests) == 50 * 3 * 2


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ALONE])
async def test_whoever_fails_is_missing_and_the_rest_decides(table: Any, name: str) -> None:
    method = fit_method(name, calls=6, experts=4)
    assert method is not None
    question = Question(id="q", text="?", options=("x", "y"), gold="A", kind="choice")
    engines = {alias: ScriptedEngine(alias, {"*": "Answer: (A)"}) for alias in "bcd"}
    engines["a"] = ScriptedEngine("a", {"*": "?"}, faults=Faults(load="no room for a"))
    async with Pool.from_engines(engines) as pool:
        [solution] = await answer_with(method, [question], table.arrange(pool))
    alone = all(expert["expert"] == "a" for expert in solution.experts)
    assert solution.answer == (None if alone else "A")
    if any(expert["expert"] == "a" for expert in solution.experts):
        assert "no room for a" in solution.row["missing"]["a"]


async def test_an_engine_that_raises_costs_no_answer_of_the_others(table: Any) -> None:
    class Broken(ScriptedEngine):
        async def generate(self, requests: Any, on_reply: Any = None) -> Any:
            raise ZeroDivisionError("a bug")

    engines: dict[str, Any] = {x: ScriptedEngine(x, {"*": "Answer: (B)"}) for x in "acd"}
    engines["b"] = Broken("b", {"*": "?"})
    question = Question(id="q", text="?", options=("x", "y"), gold="B", kind="choice")
    async with Pool.from_engines(engines) as pool:
        [solution] = await answer_with(Majority(k=3), [question], table.arrange(pool))
    assert solution.answer == "B"
    assert list(solution.row["missing"]) == ["b"]


async def test_events_tell_when_an_expert_begins_and_ends_a_round(
    table: Any, everyone: Any
) -> None:
    engines = {alias: ScriptedEngine(alias, {"*": "Answer: x"}) for alias in everyone}
    questions = {f"q{i}": Question(id=f"q{i}", text="?").to_json() for i in range(2)}
    async with Pool.from_engines(engines) as pool:
        talk = create_talk(Debate(agents=2, rounds=2))
        events: list[dict[str, Any]] = [
            event
            async for event in talk.astream(
                {"questions": questions}, context=table.arrange(pool), stream_mode="custom"
            )
        ]
    began = {"event": "expert_started", "expert": "a", "questions": 4}
    ended = {"event": "expert_finished", "expert": "a", "answers": 4, "failed": 0}
    assert events == [{**e, "round": r} for r in (0, 1) for e in (began, ended)]


async def test_the_state_is_plain_json(table: Any, everyone: Any) -> None:
    engines = {alias: ScriptedEngine(alias, {"*": "Answer: x"}) for alias in everyone}
    async with Pool.from_engines(engines) as pool:
        state = await create_talk(Debate()).ainvoke(
            {"questions": {"q": Question(id="q", text="?").to_json()}}, context=table.arrange(pool)
        )
    assert json.loads(json.dumps(state)) == state
    assert sorted(state["answers"]["a"]) == [f"q#{r}.{n}" for r in (0, 1) for n in range(3)]


async def test_the_order_of_the_questions_changes_no_answer(table: Any) -> None:
    def answer(request: Any) -> str:
        return f"Answer: {request.sampling.seed % 3}"

    rows: list[dict[str, Any]] = []
    questions = [Question(id=f"q{i}", text=f"{i}?", gold="1", kind="number") for i in range(9)]
    for batch in (questions, questions[::-1]):
        engines = {alias: ScriptedEngine(alias, answer) for alias in "abcd"}
        async with Pool.from_engines(engines) as pool:
            solutions = await answer_with(SelfConsistency(samples=5), batch, table.arrange(pool))
        rows.append({s.question.id: s.row for s in solutions})
    assert rows[0] == rows[1]
