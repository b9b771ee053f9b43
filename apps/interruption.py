"""An orderly end: what runs is finished, what is finished is kept, and nothing further begins."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..agents import Pool

__all__ = ["GRACE_SECONDS", "Terminated", "run_interruptibly"]

T = TypeVar("T")
GRACE_SECONDS = 10.0
"""What running requests may take after SIGTERM; schedulers commonly send SIGKILL after thirty."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


def run_interruptibly(
    work: Coroutine[Any, Any, T], pool: Pool, *, grace: float = GRACE_SECONDS
) -> T:
    """Run a coroutine to its end, as `asyncio.run` does, and end it in order on SIGTERM.

    Then nothing further is given to the engines, their replies are kept for `grace` seconds, and the
    rest is given up. A second SIGTERM gives it up at once, as Ctrl-C does.

    Raises:
        Terminated: after SIGTERM.
        KeyboardInterrupt: after Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)  # signals come to the main thread alone

    async def supervise() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        ends: list[asyncio.Task[None]] = []

        async def end() -> None:
            with contextlib.suppress(RuntimeError):  # a pool that is closed has nothing to finish
                await pool.drain(grace)
            task.cancel()

        def terminate() -> None:
            if ends:
                task.cancel()
            else:
                ends.append(loop.create_task(end()))

        before = signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await task
        except asyncio.CancelledError:
            if ends:
                raise Terminated from None
            raise
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)

    return asyncio.run(supervise())
