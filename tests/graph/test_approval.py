"""A person decides on the plan: approve it, do without somebody, or refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import ValidationError

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import Resources, create_graph
from expertmix.retrieval import InputError, Question

CONFIG: Any = {"configurable": {"thread_id": "1"}}


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")


def questions(number: int) -> Any:
    made = (Question(id=f"q{i}", text=f"Sum {i}?", kind="number") for i in range(number))
    return {"questions": {question.id: question.to_json() for question in made}}


def engines(*names: str, **faults: Faults) -> dict[str, ScriptedEngine]:
    return {
        name: ScriptedEngine(name, {"*": "Answer: 7"}, faults=faults.get(name)) for name in names
    }


def panel(pool: Pool, **settings: Any) -> Any:
    settings = {"k": 2, "experts": tuple("abcd")} | settings
    resources = Resources(pool=pool, **settings)
    return create_graph(resources, approval=True, checkpointer=InMemorySaver())


async def test_nobody_is_asked_before_the_plan_is_approved() -> None:
    made = engines(*"abcd")
    async with Pool.from_engines(made) as pool:
        graph = panel(pool)
        state = await graph.ainvoke(questions(3), CONFIG)
        [shown] = state["__interrupt__"]
        json.dumps(shown.value)
        assert sum(engine.calls for engine in made.values()) == 0
        assert shown.value["kind"] == "approve_plan"
        assert shown.value["questions"] == 3
        assert shown.value["calls"] == shown.value["most_calls"] == 6
        assert sum(row["calls"] for row in shown.value["experts"].values()) == 6
        assert all(row["reason"] for row in shown.value["experts"].values())
        state = await graph.ainvoke(Command(resume={"approved": True}), CONFIG)
    assert {verdict["answer"] for verdict in state["verdicts"].values()} == {"7"}
    asked = {alias: len(engine.requests) for alias, engine in made.items() if engine.calls}
    assert asked == {alias: row["calls"] for alias, row in shown.value["experts"].items()}


async def test_others_stand_in_for_those_to_do_without_even_after_a_failure() -> None:
    made = engines(*"abcd", c=Faults(load="it broke"))
    async with Pool.from_engines(made) as pool:
        graph = panel(pool)
        await graph.ainvoke(questions(4), CONFIG)
        decision = {"approved": True, "without": ["a"]}
        state = await graph.ainvoke(Command(resume=decision), CONFIG)
    assert made["a"].calls == 0
    for qid, recruits in state["recruits"].items():
        assert "a" not in {row["expert"] for row in recruits}
        assert state["verdicts"][qid]["votes"]["7"]
    assert made["b"].calls
    assert made["d"].calls


async def test_a_refused_plan_asks_nobody_and_says_why() -> None:
    made = engines(*"abcd")
    async with Pool.from_engines(made) as pool:
        graph = panel(pool)
        await graph.ainvoke(questions(2), CONFIG)
        decision = {"approved": False, "reason": "too dear"}
        state = await graph.ainvoke(Command(resume=decision), CONFIG)
    assert sum(engine.calls for engine in made.values()) == 0
    for verdict in state["verdicts"].values():
        assert (verdict["answer"], verdict["method"]) == (None, "none")
        assert verdict["note"] == "the plan was not approved: too dear"


async def test_a_decision_that_is_none_can_be_given_again() -> None:
    made = engines(*"abcd")
    async with Pool.from_engines(made) as pool:
        graph = panel(pool)
        await graph.ainvoke(questions(1), CONFIG)
        with pytest.raises(ValidationError):
            await graph.ainvoke(Command(resume={"aproved": True}), CONFIG)
        state = await graph.ainvoke(Command(resume={"approved": True, "without": ["zoe"]}), CONFIG)
        [shown] = state["__interrupt__"]
        assert shown.value["problem"] == (
            'there is no expert "zoe" to do without; there are a, b, c, d'
        )
        state = await graph.ainvoke(Command(resume={"approved": True}), CONFIG)
    assert state["verdicts"]["q0"]["answer"] == "7"


async def test_doing_without_everybody_ends_without_an_answer() -> None:
    made = engines(*"abcd")
    async with Pool.from_engines(made) as pool:
        graph = panel(pool)
        await graph.ainvoke(questions(1), CONFIG)
        decision = {"approved": True, "without": list("abcd")}
        state = await graph.ainvoke(Command(resume=decision), CONFIG)
    assert state["verdicts"]["q0"]["method"] == "none"


async def test_whoever_is_barred_merges_no_drafts_either() -> None:
    made = engines(*"abc") | {"d": ScriptedEngine("d", {"*": "Answer: 8"})}
    async with Pool.from_engines(made) as pool:
        graph = panel(pool, k=4, aggregator="c", seed=1)
        await graph.ainvoke(questions(1), CONFIG)
        decision = {"approved": True, "without": ["c"]}
        state = await graph.ainvoke(Command(resume=decision), CONFIG)
    assert made["c"].calls == 0
    assert state["verdicts"]["q0"]["method"] == "vote"


async def test_recruits_can_be_edited_between_the_steps() -> None:
    made = engines(*"abcd")
    async with Pool.from_engines(made) as pool:
        resources = Resources(pool=pool, k=1, experts=tuple("abcd"))
        graph: Any = create_graph(
            resources, checkpointer=InMemorySaver(), interrupt_after=["recruit"]
        )
        state = await graph.ainvoke(questions(1), CONFIG)
        [first] = state["recruits"]["q0"]
        other = next(name for name in "abcd" if name != first["expert"])
        edited = {"recruits": {"q0": [{**first, "expert": other}]}}
        await graph.aupdate_state(CONFIG, edited)
        state = await graph.ainvoke(None, CONFIG)  # after a round it recruits, and stops again
        if not state["verdicts"]:
            state = await graph.ainvoke(None, CONFIG)
    assert {name for name, engine in made.items() if engine.calls} == {other}
    assert state["verdicts"]["q0"]["answer"] == "7"


async def test_editing_without_resources_says_what_to_do() -> None:
    async with Pool.from_engines(engines("a")) as pool:
        graph: Any = create_graph(checkpointer=InMemorySaver(), interrupt_after=["recruit"])
        await graph.ainvoke(questions(1), CONFIG, context=Resources(pool=pool, k=1))
        with pytest.raises(InputError, match=r"create_graph\(resources\)"):
            await graph.aupdate_state(CONFIG, {"recruits": {}})
