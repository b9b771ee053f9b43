"""What every engine promises, asked of each in turn."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, fail, hang, say
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from expertmix.agents.engines import Engine, Reply, Request
from expertmix.agents.engines.chat_model import ChatModelEngine
from expertmix.agents.engines.openai import OpenAIEngine
from expertmix.agents.engines.replay import ReplayEngine
from expertmix.agents.engines.scripted import Faults, ScriptedEngine

ENGINES = ["scripted", "replay", "openai", "chat_model"]
BAD = "q1"
"""The question on which each engine below fails."""


class Parrot(BaseChatModel):
    """Answers; fails on the bad question; never answers where that is asked for."""

    hangs: bool = False

    @property
    def _llm_type(self) -> str:
        return "parrot"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise AssertionError("the engine must use the async face")

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        if self.hangs:
            await asyncio.Event().wait()
        if messages[-1].content == BAD:
            raise RuntimeError("told to")
        return ChatResult(generations=[ChatGeneration(message=AIMessage("fine"))])


def write_table(folder: Path, ids: Iterator[str]) -> Path:
    pa = pytest.importorskip("pyarrow", reason="recordings are parquet tables")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"question_id": id, "model": "ada", "predicted": "B"} for id in ids if id != BAD]
    pq.write_table(pa.Table.from_pylist(rows), folder / "outcomes.parquet")
    return folder


@asynccontextmanager
async def build(
    kind: str, server: FaultServer, folder: Path, *, hangs: bool = False
) -> AsyncGenerator[Engine]:
    """An engine of that kind, not yet started."""
    engine: Engine
    match kind:
        case "scripted":
            faults = Faults(fail_ids={BAD}, hang_ids={"*"} if hangs else ())
            engine = ScriptedEngine("it", {"*": "fine"}, faults=faults)
        case "replay":
            engine = ReplayEngine("it", write_table(folder, (f"q{n}" for n in range(9))), "ada")
        case "openai":
            # One at a time, so that the second chat request is the bad one.
            server.plan = [hang()] * 9 if hangs else [say("fine"), fail(400)]
            engine = OpenAIEngine("it", server.address, "smol", concurrency=1)
        case _:
            engine = ChatModelEngine("it", Parrot(hangs=hangs), concurrency=2)
    try:
        yield engine
    finally:
        await engine.close()


def ask(question: str) -> Request:
    return Request(
        id=f"{question}/it/0",
        question_id=question,
        messages=({"role": "user", "content": question},),
    )


BATCH = [ask(f"q{n}") for n in range(4)]


@pytest.mark.parametrize("kind", ENGINES)
async def test_replies_keep_their_order_and_each_is_reported_once(
    kind: str, server: FaultServer, tmp_path: Path
) -> None:
    heard: list[Reply] = []
    async with build(kind, server, tmp_path) as engine:
        assert isinstance(engine, Engine)
        await engine.start()
        replies = await engine.generate(BATCH, heard.append)
        assert await engine.generate([]) == []
    assert [reply.request_id for reply in replies] == [request.id for request in BATCH]
    assert sorted(map(id, heard)) == sorted(map(id, replies))


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_request_that_fails_is_a_reply_among_the_others(
    kind: str, server: FaultServer, tmp_path: Path
) -> None:
    async with build(kind, server, tmp_path) as engine:
        await engine.start()
        replies = await engine.generate(BATCH)
    assert [reply.failure is None for reply in replies] == [True, False, True, True]
    failed = replies[1]
    assert (failed.finish, failed.text) == ("error", "")
    assert failed.failure is not None
    assert failed.failure.message


@pytest.mark.parametrize("kind", ENGINES)
async def test_starting_twice_gives_the_same_load(
    kind: str, server: FaultServer, tmp_path: Path
) -> None:
    async with build(kind, server, tmp_path) as engine:
        first, second = await asyncio.gather(engine.start(), engine.start())
        assert first == second == await engine.start()


@pytest.mark.parametrize("kind", ENGINES)
async def test_an_engine_closes_twice_and_fails_what_comes_after(
    kind: str, server: FaultServer, tmp_path: Path
) -> None:
    async with build(kind, server, tmp_path) as engine:
        await engine.close()
    async with build(kind, server, tmp_path) as engine:
        await engine.start()
        await engine.close()
        await engine.close()
        [reply] = await engine.generate(BATCH[:1])
        chunks = [chunk async for chunk in engine.stream(BATCH[0])]
    for late in (reply, chunks[-1].reply):
        assert late is not None
        assert late.failure is not None
        assert late.failure.kind == "engine"


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_stream_ends_with_the_whole_reply(
    kind: str, server: FaultServer, tmp_path: Path
) -> None:
    async with build(kind, server, tmp_path) as engine:
        await engine.start()
        good = [chunk async for chunk in engine.stream(BATCH[0])]
        bad = [chunk async for chunk in engine.stream(BATCH[1])]
    for chunks in (good, bad):
        assert [chunk.reply is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    reply = good[-1].reply
    assert reply is not None
    assert "".join(chunk.text for chunk in good) == reply.text != ""
    assert bad[-1].reply is not None
    assert bad[-1].reply.failure is not None


@pytest.mark.parametrize("kind", ["scripted", "openai", "chat_model"])
async def test_a_call_that_hangs_can_be_cancelled_at_once(
    kind: str, server: FaultServer, tmp_path: Path
) -> None:
    async with build(kind, server, tmp_path, hangs=True) as engine:
        await engine.start()
        call = asyncio.create_task(engine.generate(BATCH))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 5)


@pytest.mark.parametrize("kind", ["scripted", "openai", "chat_model"])
async def test_closing_ends_what_is_in_flight_in_failures(
    kind: str, server: FaultServer, tmp_path: Path
) -> None:
    async with build(kind, server, tmp_path, hangs=True) as engine:
        await engine.start()
        call = asyncio.create_task(engine.generate(BATCH))
        await asyncio.sleep(0.05)
        await engine.close()
        replies = await asyncio.wait_for(call, 5)
    kinds = [reply.failure.kind for reply in replies if reply.failure is not None]
    assert kinds == ["engine"] * len(BATCH)
