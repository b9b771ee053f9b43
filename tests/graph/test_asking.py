"""Asking one expert: retries, time limits, and what is told meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langgraph.types import RetryPolicy, TimeoutPolicy
from pydantic import TypeAdapter

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines import Failure, Reply, Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import Resources, create_graph
from expertmix.graph.asking import RetryableExpertError, fail_batch
from expertmix.graph.events import GraphEvent, describe_events
from expertmix.graph.state import ExpertBatch
from expertmix.retrieval import InputError, Question

AT_ONCE = RetryPolicy(max_attempts=2, initial_interval=0.01, retry_on=RetryableExpertError)
EVENT: TypeAdapter[Any] = TypeAdapter(GraphEvent)


class Shaky(ScriptedEngine):
    """An engine whose address is out of reach for its first calls."""

    def __init__(self, name: str, *, away: int, only: str = "", passing: bool = True) -> None:
        super().__init__(name, {"*": "Answer: 7"})
        self._away, self._only, self._passing = away, only, passing

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        replies = await super().generate(requests)
        if self.calls <= self._away:
            failure = Failure(kind="address", message="out of reach", retryable=self._passing)
            replies = [
                Reply.failed(request, failure) if self._only in (request.question_id or "") else r
                for request, r in zip(requests, replies, strict=True)
            ]
        for reply in replies:
            if on_reply is not None:
                on_reply(reply)
        return replies


def questions(number: int) -> Any:
    made = (Question(id=f"q{i}", text=f"Sum {i}?", kind="number") for i in range(number))
    return {"questions": {question.id: question.to_json() for question in made}}


def says(name: str, faults: Faults | None = None, **more: Any) -> ScriptedEngine:
    return ScriptedEngine(name, {"*": "Answer: 7"}, faults=faults, **more)


async def run(
    engines: dict[str, Any], number: int = 2, *, graph: dict[str, Any] | None = None, **more: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What comes of it, and the events."""
    told: list[dict[str, Any]] = []
    state: dict[str, Any] = {}
    settings: dict[str, Any] = {"k": len(engines), "substitute": False} | more
    async with Pool.from_engines(engines) as pool:
        compiled = create_graph(Resources(pool=pool, **settings), **(graph or {}))
        async for mode, part in compiled.astream(
            questions(number), stream_mode=["custom", "values"]
        ):
            if mode == "custom":
                told.append(part)  # pyright: ignore[reportArgumentType]
            else:
                state = part  # pyright: ignore[reportAssignmentType]
    return state, told


def named(told: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [part for part in told if part["event"] == event]


async def test_an_expert_of_which_nothing_came_is_asked_once_more() -> None:
    engine = Shaky("a", away=1)
    state, told = await run({"a": engine}, graph={"retry": AT_ONCE})
    assert engine.calls == 2
    assert {verdict["answer"] for verdict in state["verdicts"].values()} == {"7"}
    assert named(told, "expert_retried") == [
        {"event": "expert_retried", "expert": "a", "attempt": 2}
    ]
    assert not named(told, "expert_failed")


async def test_after_the_last_attempt_its_own_reason_stands_and_the_others_decide() -> None:
    state, told = await run({"a": Shaky("a", away=9), "b": says("b")}, graph={"retry": AT_ONCE})
    for verdict in state["verdicts"].values():
        assert (verdict["answer"], verdict["missing"]) == ("7", {"a": "out of reach"})
    assert [part["expert"] for part in named(told, "expert_failed")] == ["a"]


@pytest.mark.parametrize(
    "engine", [Shaky("a", away=9, only="q0"), Shaky("a", away=9, passing=False)]
)
async def test_what_came_is_not_asked_again_nor_what_will_not_get_better(engine: Shaky) -> None:
    state, told = await run({"a": engine}, graph={"retry": AT_ONCE})
    assert engine.calls == 1
    assert "a" in state["verdicts"]["q0"]["missing"]
    assert not named(told, "expert_retried")


async def test_past_its_seconds_what_came_stays_and_the_rest_has_failed() -> None:
    slow = says("slow", Faults(hang_ids={"q1"}))
    state, _ = await run({"slow": slow, "b": says("b")}, 3, expert_seconds=0.3)
    missing = {qid: verdict["missing"] for qid, verdict in state["verdicts"].items()}
    late = {"slow": 'expert "slow" gave no answer in 0.3 s'}
    assert missing == {"q0": {}, "q1": late, "q2": {}}
    assert state["verdicts"]["q0"]["votes"] == {"7": ["b", "slow"]} or set(
        state["verdicts"]["q0"]["votes"]["7"]
    ) == {"b", "slow"}


async def test_langgraphs_own_timeout_still_ends_in_a_verdict() -> None:
    slow = says("slow", Faults(hang_ids={"*"}))
    timeout = TimeoutPolicy(idle_timeout=0.3)
    state, told = await run({"slow": slow, "b": says("b")}, graph={"timeout": timeout})
    for verdict in state["verdicts"].values():
        assert verdict["answer"] == "7"
        assert verdict["missing"]["slow"].startswith("NodeTimeoutError")
    assert [part["expert"] for part in named(told, "expert_failed")] == ["slow"]


async def test_signs_of_life_are_heartbeats() -> None:
    """Replies a fifth of a second apart, for longer than the silence that is allowed."""

    def delay(request: Request) -> float:
        return 0.2 * (1 + int((request.question_id or "q0")[1:]))

    timeout = TimeoutPolicy(idle_timeout=0.5, refresh_on="heartbeat")
    state, _ = await run({"a": says("a", latency=delay)}, 5, graph={"timeout": timeout})
    assert all(not verdict["missing"] for verdict in state["verdicts"].values())


async def test_every_event_is_as_its_schema_says() -> None:
    engines = {
        "a": says("a", load_seconds=0.01),
        "b": says("b", Faults(fail_ids={"q0"})),
        "c": says("c", Faults(load="it broke")),
        "d": Shaky("d", away=9),
    }
    _, told = await run(engines, 4, graph={"retry": AT_ONCE})
    for part in told:
        EVENT.validate_python(part, strict=True)
    kinds = [part["event"] for part in told]
    assert kinds[0] == "experts_recruited"
    assert kinds[-1] == "questions_merged"
    assert told[0]["calls"] == dict.fromkeys("abcd", 4)
    assert set(kinds) >= {
        "expert_started",
        "expert_queued",
        "expert_loading",
        "expert_ready",
        "expert_progress",
        "expert_retried",
        "expert_finished",
        "expert_failed",
        "pool_trouble",
    }
    of_a = [part["event"] for part in told if part.get("expert") == "a"]
    assert of_a.index("expert_started") < of_a.index("expert_loading") < of_a.index("expert_ready")
    assert of_a[-1] == "expert_finished"
    assert named(told, "questions_merged")[0]["answered"] == 4


async def test_models_that_take_turns_are_heard_too() -> None:
    """They live in a task of the pool's own, which knows nothing of this run."""
    experts = [{"alias": name, "engine": "given", "memory_gib": 1.0} for name in "ab"]
    catalog = Catalog.from_dict({"experts": experts, "max_resident": 1})
    engines = {name: says(name, load_seconds=0.02, latency=0.05) for name in "ab"}
    async with Pool(catalog, engines=engines) as pool:
        graph = create_graph(Resources(pool=pool, k=2))
        told: list[Any] = [part async for part in graph.astream(questions(2), stream_mode="custom")]
    for part in told:
        EVENT.validate_python(part, strict=True)
    for name in "ab":
        of_one = [part["event"] for part in told if part.get("expert") == name]
        assert {"expert_loading", "expert_ready", "expert_progress"} <= set(of_one)
    assert len(named(told, "pool_swap")) == 1


async def test_runs_that_share_a_pool_hear_of_their_own_replies() -> None:
    async def run_one(pool: Pool, number: int) -> list[Any]:
        graph = create_graph(Resources(pool=pool, k=1))
        return [part async for part in graph.astream(questions(number), stream_mode="custom")]

    async with Pool.from_engines({"a": says("a", latency=0.1)}) as pool:
        runs = await asyncio.gather(*(run_one(pool, number) for number in (2, 3, 5)))
    for number, told in zip((2, 3, 5), runs, strict=True):
        assert [part["requests"] for part in named(told, "expert_queued")] == [number]
        progress = named(told, "expert_progress")
        assert [part["replies"] for part in progress] == list(range(1, number + 1))
        assert {part["of"] for part in progress} == {number}


async def test_an_aggregator_that_hangs_costs_its_seconds_and_no_verdict() -> None:
    engines = {
        "a": says("a"),
        "b": ScriptedEngine("b", {"*": "Answer: 8"}),
        "judge": says("judge", Faults(hang_ids={"*"})),
    }
    state, _ = await run(
        engines, 1, k=2, experts=("a", "b"), aggregator="judge", expert_seconds=0.3
    )
    assert state["verdicts"]["q0"]["method"] == "vote"
    assert state["verdicts"]["q0"]["note"]


def test_resources_that_can_never_work_are_refused() -> None:
    pool = Pool.from_engines({"a": says("a")})
    for wrong, sentence in (
        ({"expert_seconds": 0.0}, "expert_seconds is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"k": 0}, "k is 0"),
    ):
        settings: dict[str, Any] = wrong
        with pytest.raises(InputError, match=sentence):
            Resources(pool=pool, **settings)


def test_the_schema_of_events_names_each() -> None:
    schema = describe_events()
    names = {definition["properties"]["event"]["const"] for definition in schema["$defs"].values()}
    assert len(names) == len(schema["anyOf"])
    assert {"expert_started", "pool_swap", "questions_merged"} <= names


async def test_cancelling_the_graph_cancels_the_experts() -> None:
    engine = says("a", Faults(hang_ids={"*"}))
    async with Pool.from_engines({"a": engine}) as pool:
        running = asyncio.create_task(create_graph(Resources(pool=pool, k=1)).ainvoke(questions(1)))
        while not engine.calls:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        other = ScriptedEngine("b", {"*": "Answer: 7"})
    async with Pool.from_engines({"a": other}) as pool:
        await asyncio.wait_for(create_graph(Resources(pool=pool, k=1)).ainvoke(questions(1)), 5)


def test_an_error_read_back_from_a_checkpoint_is_its_words() -> None:
    row = Question(id="q0", text="Sum?", kind="number").to_json()
    batch = ExpertBatch(expert="a", questions=[row], draws={})
    assert (
        fail_batch(batch, "OSError('disk on fire')")["q0#0"]["error"] == "OSError('disk on fire')"
    )
    assert fail_batch(batch, OSError("disk on fire"))["q0#0"]["error"] == "OSError: disk on fire"
