"""An expert that failed gives its questions to the next best; nobody is asked the same twice."""

from __future__ import annotations

from typing import Any

from expertmix.agents import Pool, PoolEvent
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import Resources, create_graph, solve
from expertmix.graph.replacing import MOST_ROUNDS
from expertmix.retrieval import Question


def says(letter: str, faults: Faults | None = None) -> ScriptedEngine:
    return ScriptedEngine(letter, {"*": f"Answer: ({letter})"}, faults=faults)


def questions(number: int) -> dict[str, dict[str, Any]]:
    made = (
        Question(id=f"q{i}", text=f"Colour {i}?", options=("red", "blue"), kind="choice")
        for i in range(number)
    )
    return {q.id: q.to_json() for q in made}


async def run(engines: dict[str, ScriptedEngine], number: int = 4, **how: Any) -> dict[str, Any]:
    async with Pool.from_engines(engines) as pool:
        state = {"questions": questions(number)}
        return await create_graph().ainvoke(state, context=Resources(pool=pool, **how))  # pyright: ignore[reportArgumentType]


async def test_a_broken_experts_questions_go_to_the_runner_up() -> None:
    engines = {"a": says("A", Faults(load="it broke")), "b": says("B"), "c": says("B")}
    state = await run(engines, 6, k=2)
    for qid, recruits in state["recruits"].items():
        answered = [r["expert"] for r in recruits if r["expert"] != "a"]
        assert len(answered) == 2
        assert len({r["expert"] for r in recruits}) == len(recruits)
        put_in = [r for r in recruits if "replaces" in r]
        assert all(r["replaces"] == "a" for r in put_in)
        assert bool(put_in) == any(r["expert"] == "a" for r in recruits)
        assert state["verdicts"][qid]["answer"] == "B"
    asked = [r.id for r in engines["b"].requests]
    assert len(asked) == len(set(asked)) == 6


async def test_one_failing_question_is_replaced_and_no_other() -> None:
    engines = {"a": says("A", Faults(fail_ids={"q1"})), "b": says("B"), "c": says("A")}
    state = await run(engines, 4, k=2)
    for qid, recruits in state["recruits"].items():
        owed = qid == "q1" and any(r["expert"] == "a" for r in recruits)
        assert any("replaces" in r for r in recruits) == owed


async def test_without_substitutes_the_panel_stays_as_it_was() -> None:
    engines = {"a": says("A", Faults(load="it broke")), "b": says("B"), "c": says("B")}
    state = await run(engines, 6, k=2, substitute=False)
    assert all(len(recruits) == 2 for recruits in state["recruits"].values())


async def test_when_everybody_fails_it_ends_and_says_so() -> None:
    engines = {name: says("A", Faults(load=f"{name} broke")) for name in "abcdef"}
    state = await run(engines, 3, k=2)
    for qid, recruits in state["recruits"].items():
        assert len(recruits) <= 2 * MOST_ROUNDS
        verdict = state["verdicts"][qid]
        assert verdict["answer"] is None
        assert verdict["missing"] == {r["expert"]: f"{r['expert']} broke" for r in recruits}


async def test_who_streams_the_graph_hears_of_experts() -> None:
    engines = {"a": says("A"), "b": says("B", Faults(fail_ids={"q0"}))}
    async with Pool.from_engines(engines) as pool:
        told = [
            part
            async for part in create_graph().astream(
                {"questions": questions(2)},  # pyright: ignore[reportArgumentType]
                context=Resources(pool=pool, k=2),
                stream_mode="custom",
            )
        ]
    begun = [t for t in told if t["event"] == "expert_started"]
    assert {(t["expert"], t["questions"]) for t in begun} == {("a", 2), ("b", 2)}
    ended = {t["expert"]: t["failed"] for t in told if t["event"] == "expert_finished"}
    assert ended == {"a": 0, "b": 1}


def test_a_watcher_of_solve_sees_the_pools_events() -> None:
    events: list[PoolEvent] = []
    with Pool.from_engines({"a": says("A"), "b": says("A")}) as pool:
        solve(list(questions(3).values()), pool, k=2, watch=events.append)
        seen = len(events)
        solve(list(questions(3).values()), pool, k=2)
    assert {e.kind for e in events} >= {"queued", "ready", "finished"}
    assert len(events) == seen, "a watcher is forgotten when its run is over"
