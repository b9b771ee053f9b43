"""Engines in Ray actors, on a cluster of this machine that nobody else can reach."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from expertmix.agents.engines import (
    Chunk,
    Engine,
    EngineError,
    Pulsed,
    Reply,
    Request,
    Sampling,
)
from expertmix.agents.engines.launcher import Launcher
from expertmix.agents.engines.outpost import Outpost, Place
from expertmix.agents.engines.remote import RayEngine
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.agents.pool.cluster import connect
from expertmix.agents.pool.nodes import find_nodes

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
]


def ask(question: str, **fields: Any) -> Request:
    return Request(
        id=f"{question}/it/0",
        question_id=question,
        messages=({"role": "user", "content": question},),
        **fields,
    )


BATCH = [ask(f"q{number}") for number in range(4)]


# What the actors build. Ray sends this module along, since over there nobody could import it.


def build_uneven(settings: Mapping[str, Any], launcher: Launcher) -> Engine:
    """Answers q0 at once, and each further question that many seconds later."""

    def wait(request: Request) -> float:
        return settings["step"] * int((request.question_id or "q0")[1:])

    return ScriptedEngine("uneven", {"*": "fine"}, latency=wait)


class Noting(ScriptedEngine):
    """Never answers, shows a pulse of its own, and writes down how its life went."""

    def __init__(self, diary: str) -> None:
        super().__init__("noting", {"*": "fine"}, faults=Faults(hang_ids={"q1"}))
        self.diary = Path(diary)

    @property
    def pulse(self) -> float:
        return time.monotonic() - 100

    @property
    def generated_tokens(self) -> int:
        return 42

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        self.note("asked")
        try:
            return await super().generate(requests, on_reply)
        except asyncio.CancelledError:
            self.note("aborted")
            raise

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.note("asked")
        try:
            yield Chunk(text="one")
            await asyncio.Event().wait()
        finally:
            self.note("aborted")

    async def close(self) -> None:
        self.note("closed")
        await super().close()

    def note(self, word: str) -> None:
        with self.diary.open("a", encoding="utf-8") as file:
            file.write(f"{word}\n")


def build_noting(settings: Mapping[str, Any], launcher: Launcher) -> Engine:
    return Noting(settings["diary"])


def build_telling(settings: Mapping[str, Any], launcher: Launcher) -> Engine:
    """Answers with the value of an environment variable of its process."""
    return ScriptedEngine("telling", lambda request: os.environ.get(request.question_id or "", ""))


def build_never(settings: Mapping[str, Any], launcher: Launcher) -> Engine:
    raise LookupError("no such weights")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """The only node of a cluster that starts and ends with these tests."""
    before = children()
    assert connect("local")
    assert not connect("local")
    import ray
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield Place(node_id=find_nodes()[0].id, name="node-1")
    cloudpickle.unregister_pickle_by_value(module)
    ray.shutdown()
    _, left = psutil.wait_procs(children() - before, timeout=10)
    assert not left


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outpost(place: Place) -> AsyncIterator[Outpost]:
    """One actor for all tests that do not end theirs."""
    outpost = Outpost(place)
    yield outpost
    await outpost.close()


def scripted(at: Outpost | Place, **settings: Any) -> RayEngine:
    given = {"engine": "scripted", "name": "it", "script": {"*": "fine", "q2": "A"}, **settings}
    return RayEngine("it", given, at=at)


def noting(at: Outpost, folder: Path) -> tuple[RayEngine, Path]:
    diary = folder / "diary"
    return RayEngine("it", {"diary": str(diary)}, at=at, build=build_noting), diary


async def until(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.01)


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_a_cluster_of_our_own_is_out_of_reach_for_others(place: Place) -> None:
    heard = {
        ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:"))
        for process in {psutil.Process(), *children()}
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert heard
    assert [str(address) for address in heard if not address.is_loopback] == []


# replies


async def test_replies_keep_their_order_and_questions_are_known_over_there(
    outpost: Outpost,
) -> None:
    engine = scripted(outpost)
    heard: list[Reply] = []
    load = await engine.start()
    replies = await engine.generate(BATCH, heard.append)

    assert isinstance(engine, Engine)
    assert load.seconds > 0
    assert await engine.start() is load
    assert [reply.request_id for reply in replies] == [request.id for request in BATCH]
    assert [reply.text for reply in replies] == ["fine", "fine", "A", "fine"]
    assert sorted(map(id, heard)) == sorted(map(id, replies))
    assert await engine.generate([]) == []


async def test_replies_come_one_by_one_as_they_finish(outpost: Outpost) -> None:
    engine = RayEngine("it", {"step": 0.3}, at=outpost, build=build_uneven)
    await engine.start()
    came: list[float] = []
    await engine.generate(BATCH[::-1], lambda _: came.append(time.monotonic()))

    gaps = [later - earlier for earlier, later in pairwise(came)]
    assert len(gaps) == 3
    assert min(gaps) > 0.1


async def test_a_reply_crosses_with_everything_in_it(outpost: Outpost) -> None:
    settings = {"engine": "scripted", "name": "it", "script": {"*": "B two"}, "context_length": 9}
    near = ScriptedEngine("it", {"*": "B two"}, context_length=9)
    far = RayEngine("it", settings, at=outpost)
    requests = [
        ask("one", options=("A", "B")),
        ask("two", sampling=Sampling(logprobs=1, stop=("two",))),
        ask("too long for the window that it was given"),
    ]
    loads = [await near.start(), await far.start()]

    assert await far.generate(requests) == await near.generate(requests)
    assert loads[1].context_length == loads[0].context_length == 9


async def test_an_answer_streams_in_pieces(outpost: Outpost) -> None:
    engine = scripted(outpost, script={"*": "one two three"})
    await engine.start()
    chunks = [chunk async for chunk in engine.stream(ask("q0"))]

    assert [chunk.text for chunk in chunks] == ["one", " two", " three", ""]
    assert chunks[-1].reply is not None
    assert chunks[-1].reply.text == "one two three"


async def test_thousands_of_replies_cross(outpost: Outpost) -> None:
    engine = scripted(outpost)
    await engine.start()
    replies = await engine.generate([ask(f"x{number}") for number in range(3000)])

    assert {reply.text for reply in replies} == {"fine"}
    assert engine.generated_tokens == 3000


async def test_an_engine_that_is_misused_says_so(outpost: Outpost) -> None:
    engine = scripted(outpost)
    with pytest.raises(RuntimeError, match="must be started"):
        await engine.generate(BATCH)
    await engine.start()
    with pytest.raises(ValueError, match="different ids"):
        await engine.generate([BATCH[0], BATCH[0]])


# aborting, and signs of life


async def test_cancelling_aborts_over_there(outpost: Outpost, tmp_path: Path) -> None:
    engine, diary = noting(outpost, tmp_path)
    await engine.start()
    heard: list[Reply] = []
    task = asyncio.create_task(engine.generate(BATCH, heard.append))
    await until(lambda: len(heard) == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await until(lambda: diary.read_text().split() == ["asked", "aborted"])
    assert [reply.text for reply in await engine.generate([BATCH[0]])] == ["fine"]


async def test_leaving_a_stream_aborts_over_there(outpost: Outpost, tmp_path: Path) -> None:
    engine, diary = noting(outpost, tmp_path)
    await engine.start()
    stream = engine.stream(ask("q0"))
    assert (await anext(stream)).text == "one"
    await stream.aclose()

    await until(lambda: diary.read_text().split() == ["asked", "aborted"])


async def test_the_pulse_is_that_of_the_engine_over_there(outpost: Outpost, tmp_path: Path) -> None:
    engine, _ = noting(outpost, tmp_path)
    await engine.start()
    assert isinstance(engine, Pulsed)
    task = asyncio.create_task(engine.generate([ask("q1")]))
    await until(lambda: engine.generated_tokens == 42)
    started = engine.pulse
    await asyncio.sleep(1.2)

    assert engine.pulse == started  # it was alive a hundred seconds before, and not since
    task.cancel()


async def test_the_pulse_of_an_engine_without_one_is_that_of_its_actor(outpost: Outpost) -> None:
    engine = scripted(outpost, faults={"hang_ids": ["*"]})
    await engine.start()
    started = engine.pulse
    task = asyncio.create_task(engine.generate(BATCH))
    await until(lambda: engine.pulse > started)
    task.cancel()


# failing


async def test_an_engine_that_dies_over_there_fails_what_it_still_owes(outpost: Outpost) -> None:
    engine = scripted(outpost, faults={"die_after": 2})
    await engine.start()
    replies = await engine.generate(BATCH)

    assert [reply.failure is None for reply in replies] == [True, True, False, False]
    assert replies[3].failure is not None
    assert replies[3].failure.message == 'engine "it" died after 2 replies'


async def test_an_actor_that_is_killed_loses_nothing_that_was_finished(place: Place) -> None:
    engine = RayEngine("it", {"step": 1.0}, at=place, build=build_uneven)
    await engine.start()
    heard: list[Reply] = []

    def kill(reply: Reply) -> None:
        heard.append(reply)
        if len(heard) == 1:
            os.kill(engine.pid or 0, signal.SIGKILL)

    replies = await engine.generate(BATCH, kill)
    late = await engine.generate([ask("q7")])

    assert [reply.text for reply in replies] == ["fine", "", "", ""]
    failures = [reply.failure for reply in (*replies[1:], *late)]
    for failure in failures:
        assert failure is not None
        assert (failure.kind, failure.retryable) == ("engine", True)
        assert failure.message.startswith("engine 'it' died: the process of the actor on node-1")
        assert "\n" not in failure.message
    assert len(heard) == 4
    await engine.close()


async def test_an_actor_that_is_killed_ends_a_stream_with_a_failure(place: Place) -> None:
    engine = scripted(place, faults={"hang_ids": ["*"]})
    await engine.start()
    task = asyncio.create_task(anext(engine.stream(ask("q0"))))
    await asyncio.sleep(0.1)
    os.kill(engine.pid or 0, signal.SIGKILL)
    chunk = await task

    assert chunk.reply is not None
    assert chunk.reply.failure is not None
    assert chunk.reply.failure.kind == "engine"
    await engine.close()


async def test_an_engine_that_does_not_start_says_why_in_its_own_words(outpost: Outpost) -> None:
    failing = [
        (scripted(outpost, faults={"load": "the weights are gone"}), "the weights are gone"),
        (RayEngine("it", {}, at=outpost, build=build_never), "LookupError: no such weights"),
        (
            RayEngine("it", {"engine": "steam"}, at=outpost),
            'no engine "steam" can be built on a node; there are vllm, transformers and scripted',
        ),
    ]
    for engine, reason in failing:
        for _ in range(2):
            with pytest.raises(EngineError) as raised:
                await engine.start()
            assert str(raised.value) == reason
            assert raised.value.failure.kind == "load"
        await engine.close()
    well = scripted(outpost)
    assert await well.start()  # the actor has survived it


async def test_a_node_that_is_not_there_is_named() -> None:
    engine = scripted(Place(node_id="0" * 56, name="node-9"))
    with pytest.raises(EngineError, match="node-9 is gone"):
        await engine.start()
    await engine.close()


async def test_a_node_without_room_is_named(place: Place) -> None:
    every = os.cpu_count() or 1
    first = Outpost(Place(node_id=place.node_id, name="node-1", cpus=every))
    second = Outpost(Place(node_id=place.node_id, name="node-1", cpus=every), patience=0.5)
    await first.start()
    with pytest.raises(EngineError, match=r"node-1 has no room: .* CPUs .* within 0\.5 s") as lack:
        await scripted(second).start()
    assert lack.value.failure.retryable
    await asyncio.gather(first.close(), second.close())


# the actor


async def test_closing_ends_the_engine_then_its_actor_and_may_be_done_twice(
    place: Place, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    engine = RayEngine("it", {"diary": str(diary)}, at=place, build=build_noting)
    await engine.start()
    pid = engine.pid or 0
    task = asyncio.create_task(engine.generate(BATCH))
    await until(diary.exists)
    assert lives(pid)
    await engine.close()
    await engine.close()
    replies = await task

    assert "closed" in diary.read_text()
    await until(lambda: not lives(pid))
    assert [reply.failure is None for reply in replies] == [True, False, True, True]
    assert replies[1].failure is not None
    late = await engine.generate(BATCH)
    assert {reply.failure and reply.failure.message for reply in late} == {"engine 'it' was closed"}
    with pytest.raises(EngineError, match="was closed"):
        await scripted(engine_outpost(engine)).start()


def engine_outpost(engine: RayEngine) -> Outpost:
    return engine._outpost  # pyright: ignore[reportPrivateUsage]


async def test_an_engine_that_is_closed_while_it_starts_leaves_nothing(place: Place) -> None:
    engine = scripted(place, load_seconds=60)
    task = asyncio.create_task(engine.start())
    await until(lambda: engine.pid is not None)
    pid = engine.pid or 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.close()

    await until(lambda: not lives(pid))


async def test_engines_of_one_actor_live_and_end_apart(outpost: Outpost) -> None:
    first, second = scripted(outpost), scripted(outpost, script={"*": "second"})
    await asyncio.gather(first.start(), second.start())
    await first.close()

    assert first.pid == second.pid is not None
    assert [reply.text for reply in await second.generate(BATCH[:1])] == ["second"]
    assert outpost.free_bytes is not None
    assert 0 < outpost.free_bytes < psutil.virtual_memory().total


async def test_an_actor_has_our_number_of_threads_whatever_its_cpus(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    where = Place(node_id=place.node_id, name="node-1", cpus=1)
    engine = RayEngine("it", {}, at=where, build=build_telling)
    await engine.start()
    replies = await engine.generate([ask("OMP_NUM_THREADS"), ask("CUDA_VISIBLE_DEVICES")])

    assert [reply.text for reply in replies] == ["3", ""]
    await engine.close()
