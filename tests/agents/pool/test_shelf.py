"""Answers are kept before anybody hears of them, and a slow disk holds up nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from expertmix.agents import AnswerStore, Catalog, Pool, PoolEvent
from expertmix.agents.engines import Reply, Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.agents.pool import loop_thread
from expertmix.agents.pool.store import Kept
from expertmix.retrieval import InputError


class SlowStore(AnswerStore):
    """Writes when it is allowed to, and remembers how much at a time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may_write = threading.Event()
        self.began = threading.Event()
        self.written: list[int] = []

    def keep_all(self, kept: Iterable[Kept]) -> None:
        kept = list(kept)
        self.began.set()
        assert self.may_write.wait(20)
        self.written.append(len(kept))
        super().keep_all(kept)


class SlowCommits(SlowStore):
    """Writes at once, and commits when it is allowed to."""

    def keep_all(self, kept: Iterable[Kept]) -> None:
        self.open().set_trace_callback(self._trace)
        AnswerStore.keep_all(self, kept)

    def _trace(self, statement: str) -> None:
        if statement == "COMMIT":
            self.began.set()
            assert self.may_write.wait(20)


@pytest.fixture
def store(tmp_path: Path) -> SlowStore:
    return SlowStore(tmp_path / "replies.sqlite")


def ask(number: int, say: str = "") -> list[Request]:
    return [
        Request(id=f"{i}", messages=({"role": "user", "content": f"{say}{i}?"},))
        for i in range(number)
    ]


def make_pool(store: AnswerStore) -> Pool:
    return Pool.from_engines(
        {"a": lambda: ScriptedEngine("a", {"*": "one two"}, latency=0.001)}, store=store
    )


def count_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM replies").fetchone()[0])


def is_closed(store: AnswerStore) -> bool:
    """SQLite removes its log when the last connection goes."""
    return not Path(f"{store.path}-wal").exists()


# Keeping


async def test_the_loop_goes_on_while_the_disk_is_slow(store: SlowStore) -> None:
    async with asyncio.timeout(15), make_pool(store) as pool:
        kept = asyncio.create_task(pool.generate("a", ask(1)))
        await asyncio.to_thread(store.began.wait, 10)
        streamed = [chunk.text async for chunk in pool.stream("a", ask(1)[0])]
        assert "".join(streamed) == "one two"
        assert not kept.done()
        store.may_write.set()
        assert [reply.text for reply in await kept] == ["one two"]


async def test_who_hears_of_an_answer_finds_it_on_disk(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "replies.sqlite")
    found: list[int] = []
    heard: list[str] = []

    def look(reply: Reply) -> None:
        heard.append(reply.request_id)
        found.append(count_rows(store.path))

    async with make_pool(store) as pool:
        await pool.generate("a", ask(200), on_reply=look)
    assert sorted(heard, key=int) == [f"{i}" for i in range(200)]
    assert all(there >= number for number, there in enumerate(found, 1))


async def test_what_is_not_yet_safe_is_not_found(tmp_path: Path) -> None:
    store = SlowCommits(tmp_path / "replies.sqlite")
    async with asyncio.timeout(15), make_pool(store) as pool:
        first = asyncio.create_task(pool.generate("a", ask(1)))
        await asyncio.to_thread(store.began.wait, 10)
        second = asyncio.create_task(pool.generate("a", ask(1)))
        while pool.ledger.account("a", "reason").calls < 2:
            await asyncio.sleep(0.005)
        assert pool.ledger.account("a", "reason").reused == 0
        store.may_write.set()
        await asyncio.gather(first, second)


async def test_what_comes_while_the_disk_is_busy_is_written_at_once(store: SlowStore) -> None:
    async with asyncio.timeout(15), make_pool(store) as pool:
        asked = asyncio.create_task(pool.generate("a", ask(100)))
        await asyncio.to_thread(store.began.wait, 10)
        while pool.ledger.account("a", "reason").calls < 100:
            await asyncio.sleep(0.01)
        store.may_write.set()
        await asked
    assert sum(store.written) == 100
    assert len(store.written) <= 3


async def test_a_store_that_another_process_writes_holds_up_no_reader_and_no_thread(
    tmp_path: Path,
) -> None:
    store = AnswerStore(tmp_path / "replies.sqlite")
    gaps: list[float] = []
    is_over = threading.Event()

    def watch() -> None:
        before = time.monotonic()
        while not is_over.wait(0.01):
            gaps.append(time.monotonic() - before)
            before = time.monotonic()

    async with asyncio.timeout(25), make_pool(store) as pool:
        await pool.generate("a", ask(5))
        watcher = threading.Thread(target=watch)
        watcher.start()
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            fresh = asyncio.create_task(pool.generate("a", ask(5, "new ")))
            await asyncio.sleep(0.1)
            begun = time.monotonic()
            known = await pool.generate("a", ask(5))
            waited = time.monotonic() - begun
            await asyncio.sleep(2 - waited if waited < 2 else 0)
            assert not fresh.done()
            other.execute("COMMIT")
        await fresh
        is_over.set()
        await asyncio.to_thread(watcher.join)
    assert [reply.text for reply in known] == ["one two"] * 5
    assert waited < 1.5
    assert max(gaps) < 1.5


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("is_kept", [False, True])
async def test_listeners_are_called_where_and_as_the_caller_is(
    tmp_path: Path, is_kept: bool, turns: bool
) -> None:
    name = contextvars.ContextVar("name", default="nobody")
    heard: list[tuple[str, bool]] = []
    thread = threading.current_thread()
    expert = {"alias": "a", "engine": "given", **({"memory_gib": 0.01} if turns else {})}
    devices = [{"name": "cpu", "memory_gib": 1}]
    pool = Pool(
        Catalog.from_dict({"experts": [expert], "devices": devices}),
        engines={"a": lambda: ScriptedEngine("a", {"*": "one two"})},
        store=AnswerStore(tmp_path / "replies.sqlite") if is_kept else None,
    )

    def hear(_: Reply) -> None:
        heard.append((name.get(), threading.current_thread() is thread))

    async with pool:
        for who in ("first", "second"):
            name.set(who)
            await pool.generate("a", ask(2), on_reply=hear)
    assert heard == [("first", True)] * 2 + [("second", True)] * 2


async def test_a_store_that_cannot_be_read_costs_no_answers(tmp_path: Path) -> None:
    class Unreadable(AnswerStore):
        def find(self, identity: str, request: Request) -> Reply | None:
            raise InputError("cannot read answers")

    told: list[str] = []
    pool = make_pool(Unreadable(tmp_path / "replies.sqlite"))
    pool.watch(lambda event: told.append(event.message) if event.kind == "failed" else None)
    async with pool:
        for _ in range(2):
            assert len(await pool.generate("a", ask(2))) == 2
        assert pool.store is None
    assert told == ["cannot read answers"]


async def test_a_relative_path_means_where_the_store_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with make_pool(AnswerStore("replies.sqlite")) as pool:
        monkeypatch.chdir("elsewhere")
        for _ in range(2):
            await pool.generate("a", ask(2))
        assert pool.ledger.account("a", "reason").reused == 2
    assert count_rows(tmp_path / "replies.sqlite") == 2


async def test_a_store_of_another_kind_is_honoured() -> None:
    class Dictionary(AnswerStore):
        def __init__(self) -> None:
            super().__init__(":memory:")
            self.kept: dict[str, Reply] = {}

        def find(self, identity: str, request: Request) -> Reply | None:
            return self.kept.get(request.id)

        def keep_all(self, kept: Iterable[Kept]) -> None:
            self.kept.update((request.id, reply) for _, request, reply in kept)

    store = Dictionary()
    async with make_pool(store) as pool:
        for _ in range(2):
            await pool.generate("a", ask(3))
        assert pool.ledger.account("a", "reason").reused == 3
    assert store.kept.keys() == {"0", "1", "2"}


# Leaving and closing


async def test_closing_writes_what_waits(store: SlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_thread, "REST_SECONDS", 0.05)  # however long the disk takes
    pool = make_pool(store).open()
    asked = asyncio.create_task(pool.generate("a", ask(3)))
    await asyncio.to_thread(store.began.wait, 10)
    endings = [asyncio.create_task(asyncio.to_thread(pool.close)) for _ in range(2)]
    await asyncio.sleep(0.3)
    assert not any(ending.done() for ending in endings)
    store.may_write.set()
    await asyncio.gather(*endings)
    assert [reply.text for reply in await asked] == ["one two"] * 3
    assert count_rows(store.path) == 3
    async with asyncio.timeout(5), pool:  # and it may be opened again
        assert [reply.text for reply in await pool.generate("a", ask(4))] == ["one two"] * 4
        assert pool.ledger.account("a", "reason").reused == 3


async def test_a_caller_who_leaves_keeps_the_answers_that_came(store: SlowStore) -> None:
    async with make_pool(store) as pool:
        asked = asyncio.create_task(pool.generate("a", ask(3)))
        await asyncio.to_thread(store.began.wait, 10)
        asked.cancel()
        store.may_write.set()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert count_rows(store.path) >= 1


async def test_whoever_leaves_while_it_looks_leaves_nothing_open(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "replies.sqlite")
    many = ask(500)
    async with make_pool(store) as pool:
        await pool.generate("a", many)
    for step in range(12):
        async with make_pool(store) as pool:
            asked = asyncio.create_task(pool.generate("a", many))
            await asyncio.sleep(0.002 * step)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        assert is_closed(store)


async def test_calls_that_come_while_it_closes_are_answered_or_refused(tmp_path: Path) -> None:
    said: set[str | None] = set()

    def call_until_refused(pool: Pool) -> None:
        async def call() -> None:
            while True:
                replies = await asyncio.wait_for(pool.generate("a", ask(2)), 10)
                said.update(r.failure.message if r.failure else None for r in replies)

        with pytest.raises(RuntimeError, match="not open"):
            asyncio.run(call())

    for step in range(40):
        pool = make_pool(AnswerStore(tmp_path / f"{step}.sqlite")).open()
        callers = [asyncio.to_thread(call_until_refused, pool) for _ in range(3)]
        calling = asyncio.gather(*callers)
        await asyncio.sleep(0.001 * step)
        await asyncio.to_thread(pool.close)
        await calling
    assert said <= {None, "the pool was closed"}


async def test_pools_may_share_a_store(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "replies.sqlite")
    async with make_pool(store) as lasting:

        async def go_on() -> None:
            for step in range(40):
                await lasting.generate("a", ask(5, f"{step} "))

        going = asyncio.create_task(go_on())
        while not going.done():
            async with make_pool(store) as brief:
                await brief.generate("a", ask(3, "brief "))
        await going
    assert count_rows(store.path) == 40 * 5 + 3
    assert is_closed(store)


async def test_an_opening_that_is_given_up_leaves_nothing_open(tmp_path: Path) -> None:
    may_open = threading.Event()

    class LateStore(AnswerStore):
        def open(self) -> sqlite3.Connection:
            assert may_open.wait(20)
            return super().open()

    store = LateStore(tmp_path / "replies.sqlite")
    pool = make_pool(store)
    opening = asyncio.create_task(pool.__aenter__())
    await asyncio.sleep(0.05)
    opening.cancel()
    may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert is_closed(store)
    with pytest.raises(RuntimeError, match="not open"):
        await pool.generate("a", ask(1))


def test_an_interrupted_closing_can_be_gone_on_with(store: SlowStore) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with make_pool(store) as pool, ThreadPoolExecutor(1) as caller:
            asked = caller.submit(asyncio.run, pool.generate("a", ask(2)))
            assert store.began.wait(10)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(KeyboardInterrupt):
                pool.close()
            assert not asked.done()
            threading.Timer(0.2, store.may_write.set).start()
            pool.close()
            assert [reply.text for reply in asked.result(10)] == ["one two"] * 2
            with pool.open():
                assert len(asyncio.run(pool.generate("a", ask(3)))) == 3
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_watcher_cannot_close_the_pool_that_calls_it(tmp_path: Path) -> None:
    told: list[str] = []

    def end(event: PoolEvent) -> None:
        if event.kind == "queued":
            try:
                pool.close()
            except RuntimeError as error:
                told.append(str(error))

    pool = Pool.from_engines({"a": ScriptedEngine("a", {"*": "one"})}, on_event=end)
    with pool:
        asyncio.run(pool.generate("a", ask(1)))
    assert told == ["a pool cannot be closed in its own thread: let another one do it"]


async def test_a_pool_that_is_not_open_has_nothing_to_drain(tmp_path: Path) -> None:
    pool = make_pool(AnswerStore(tmp_path / "replies.sqlite"))
    await pool.drain(1)
    async with asyncio.timeout(5), pool:  # nor is it drained when it opens
        assert [reply.text for reply in await pool.generate("a", ask(1))] == ["one two"]
    await pool.drain(1)
    async with asyncio.timeout(5), pool:
        assert pool.ledger.account("a", "reason").calls == 1
        assert len(await pool.generate("a", ask(2))) == 2
