"""Places are handed on in the order of coming, never lost, and end in order."""

from __future__ import annotations

import asyncio
import random

import pytest

from expertmix.apps.server.errors import ApiError
from expertmix.apps.server.gate import Gate


async def test_so_many_are_inside_so_many_wait_and_the_rest_is_refused() -> None:
    gate = Gate(2, 1)
    await gate.enter()
    await gate.enter()
    third = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match="ask again later") as refused:
        await gate.enter()
    assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "1"})
    assert (gate.running, gate.waiting) == (2, 1)
    gate.leave()
    await third
    assert (gate.running, gate.waiting) == (2, 0)


async def test_an_end_sends_away_who_waits_and_comes_when_the_last_has_left() -> None:
    gate = Gate(1, 5)
    await gate.enter()
    waiting = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    gate.drain()
    with pytest.raises(ApiError, match="is ending") as refused:
        await waiting
    assert refused.value.status == 503
    with pytest.raises(ApiError, match="is ending"):
        await gate.enter()
    empty = asyncio.create_task(gate.wait_until_empty())
    await asyncio.sleep(0)
    assert not empty.done()
    gate.leave()
    await empty


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_whoever_leaves_the_line(seed: int) -> None:
    draw = random.Random(seed)
    gate, most = Gate(3, 100), 0

    async def visit() -> None:
        nonlocal most
        await gate.enter()
        most = max(most, gate.running)
        try:
            await asyncio.sleep(draw.random() * 0.003)
        finally:
            gate.leave()

    visits = [asyncio.create_task(visit()) for _ in range(60)]
    while not all(task.done() for task in visits):
        await asyncio.sleep(0.001)
        draw.choice(visits).cancel()
    assert (gate.running, gate.waiting) == (0, 0)
    assert most <= 3
    await gate.wait_until_empty()


async def test_what_is_given_up_ends_in_an_error_and_leaves() -> None:
    gate = Gate(1, 0)

    async def visit() -> None:
        await gate.enter()
        async with gate.hold():
            await asyncio.sleep(60)

    task = asyncio.create_task(visit())
    await asyncio.sleep(0)
    assert gate.give_up() == 1
    with pytest.raises(ApiError, match="ended before"):
        await task
    assert gate.running == 0
