"""A client that leaves takes its work with it, down to the engine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest

from expertmix.agents.engines.scripted import Faults

SLOW = Faults(hang_ids={"*"})


async def leave(running: Any, model: str, *, calls: int = 1, **more: Any) -> None:
    """Ask, and go away once so many calls are with the engine."""
    body = {"model": model, "messages": [{"role": "user", "content": "Where?"}], **more}
    async with httpx.AsyncClient(base_url=running.url, trust_env=False, verify=False) as web:
        asked = asyncio.create_task(web.post("/v1/chat/completions", json=body, timeout=60))
        while running.engines["a"].calls < calls:
            await asyncio.sleep(0.005)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["expert/a", "expertmix/auto"])
async def test_engines_are_told_when_a_client_has_left(
    start: Any, expert: Any, model: str, stream: bool
) -> None:
    running = start({"a": expert("a", {"*": "x"}, faults=SLOW)})
    await leave(running, model, stream=stream)
    running.wait_until(lambda: running.engines["a"].cancelled == 1)
    running.wait_until(lambda: running.app.gate.running == 0)
    assert running.engines["a"].calls == 1


async def test_who_stays_keeps_a_batch_alive(start: Any, expert: Any) -> None:
    slow = expert("a", {"*": "Answer: x"}, latency=0.5)
    running = start({"a": slow}, window=0.5)
    stays = asyncio.create_task(asyncio.to_thread(running.post, "expertmix/auto", "Who?"))
    await leave(running, "expertmix/auto")
    assert (await stays).status_code == 200
    assert (slow.calls, slow.cancelled) == (1, 0)


async def test_several_answers_are_all_cancelled(start: Any, expert: Any) -> None:
    running = start({"a": expert("a", {"*": "x"}, faults=SLOW)})
    await leave(running, "expert/a", calls=3, stream=True, n=3)
    running.wait_until(lambda: running.engines["a"].cancelled == 3)
