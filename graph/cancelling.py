"""Cancelling a graph once, whoever asks for it and how often."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["cancel_once"]

T = TypeVar("T")


async def cancel_once(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; if this is cancelled, cancel it once and wait until it has ended.

    anyio (and with it MCP, Starlette, httpx) cancels what it wants to end again and again. LangGraph, cancelled
    a second time while it ends its nodes, leaves those that work side by side running.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
