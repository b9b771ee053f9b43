"""Answers are kept before anybody hears of them, and a slow disk holds up nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from expertmix.agents import AnswerStore, Pool
from expertmix.agents.engines import Reply, Request
from expertmix.agents.engines.scripted import ScriptedEngine


class SlowStore(AnswerStore):
    """Writes when it is allowed to, and counts how often."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may_write = threading.Event()
        self.began = threading.Event()
        self.written: list[int] = []

    def keep_rows(self, rows: Iterable[tuple[str, str]]) -> None:
        rows = list(rows)
        self.began.set()
        assert self.may_write.wait(20)
        self.written.append(len(rows))
        super().keep_rows(rows)


@pytest.fixture
def store(tmp_path: Path) -> SlowStore:
    return SlowStore(tmp_path / "replies.sqlite")


def ask(number: int) -> list[Request]:
    return [
        Request(id=f"{i}", messages=({"role": "user", "content": f"{i}?"},)) for i in range(number)
    ]


def make_pool(store: AnswerStore) -> Pool:
    return Pool.from_engines({"a": ScriptedEngine("a", {"*": "one two"})}, store=store)


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
        found.append(len(AnswerStore(store.path)))

    async with make_pool(store) as pool:
        replies = await pool.generate("a", ask(200), on_reply=look)
    assert heard == [reply.request_id for reply in replies]
    assert all(there >= number for number, there in enumerate(found, 1))


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


async def test_closing_writes_what_waits(store: SlowStore) -> None:
    pool = make_pool(store).open()
    asked = asyncio.create_task(pool.generate("a", ask(3)))
    await asyncio.to_thread(store.began.wait, 10)
    closing = asyncio.create_task(asyncio.to_thread(pool.close))
    await asyncio.sleep(0.1)
    assert not closing.done()
    store.may_write.set()
    await closing
    assert [reply.text for reply in await asked] == ["one two"] * 3
    assert len(AnswerStore(store.path)) == 3


async def test_a_caller_who_leaves_keeps_the_answers_that_came(store: SlowStore) -> None:
    async with make_pool(store) as pool:
        asked = asyncio.create_task(pool.generate("a", ask(3)))
        await asyncio.to_thread(store.began.wait, 10)
        asked.cancel()
        store.may_write.set()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert len(AnswerStore(store.path)) >= 1
