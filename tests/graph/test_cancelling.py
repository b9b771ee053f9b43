"""Cancelled again and again, a graph ends once, and with it all that works for it."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import Resources, run_batch
from expertmix.graph.cancelling import cancel_once
from expertmix.retrieval import Question


async def test_work_that_takes_long_to_end_is_waited_for() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)
            ended.append("in order")

    with anyio.move_on_after(0.05) as scope:
        await cancel_once(work())
    assert scope.cancelled_caught
    assert ended == ["in order"]


async def test_what_work_gives_or_raises_is_passed_on() -> None:
    async def give() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("no")

    assert await cancel_once(give()) == 7
    with pytest.raises(ValueError, match="no"):
        await cancel_once(fail())


async def test_a_panel_in_an_anyio_scope_leaves_no_expert_working() -> None:
    working = 0

    class Counting(ScriptedEngine):
        async def generate(self, requests: Any, on_reply: Any = None) -> Any:
            nonlocal working
            working += 1
            try:
                return await super().generate(requests, on_reply)
            finally:
                working -= 1

    engines = {name: Counting(name, {}, faults=Faults(hang_ids={"*"})) for name in "abc"}
    async with Pool.from_engines(engines) as pool:
        question = Question(id="q", text="What?", kind="text")
        with anyio.move_on_after(0.3):
            await run_batch([question], Resources(pool=pool, k=3))
        for _ in range(100):
            if not working:
                break
            await asyncio.sleep(0.02)
        assert working == 0
