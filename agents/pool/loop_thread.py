"""An event loop in a thread of its own, which other loops and plain code hand work to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

T = TypeVar("T")
REST_SECONDS = 5.0
"""What is still going on when the thread is to end may take so long."""


class LoopThread:
    """Runs coroutines one beside the other, whoever asks for them; may be started again once stopped."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Between `start` and `stop`."""
        return self._loop is not None

    def start(self) -> asyncio.AbstractEventLoop:
        """Begin; returns the loop."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
        self._thread.start()
        return self._loop

    def stop(self, wind_up: Coroutine[Any, Any, None], close: Callable[[], None]) -> None:
        """Run `wind_up` in the loop, let the rest come to its end, then `close` here, and end. Blocks."""
        loop, thread = self._loop, self._thread
        assert loop is not None
        assert thread is not None
        try:
            asyncio.run_coroutine_threadsafe(_end(wind_up), loop).result()
        finally:
            close()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            self._loop = self._thread = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there from whichever loop we are in; cancelling reaches it.

        Raises:
            RuntimeError: the thread does not run.
        """
        if self._loop is None:
            work.close()
            raise RuntimeError("the pool is not open: use it in a `with` block, or call open()")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def call_soon(self, do: Callable[[], None]) -> None:
        """Call `do` there as soon as may be; nothing happens where the thread does not run."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(do)


async def _end(wind_up: Coroutine[Any, Any, None]) -> None:
    """Close what is loaded, then let every caller have its answer before the loop ends."""
    await wind_up
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    if rest:
        _, late = await asyncio.wait(rest, timeout=REST_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
