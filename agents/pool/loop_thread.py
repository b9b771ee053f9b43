"""An event loop in a thread of its own, which other loops and plain code hand work to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

T = TypeVar("T")
REST_SECONDS = 5.0
"""What is still going on when everything is wound up may take so long."""


class LoopThread:
    """Runs coroutines one beside the other, whoever asks for them; may be started again once stopped.

    The thread ends by itself once it is told to: whoever waits for that may be interrupted, and wait again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._starting = threading.Lock()
        self._lock = (
            threading.Lock()
        )  # of the fields below, which many threads read; never held for long
        self._loop: asyncio.AbstractEventLoop | None = None
        """To which work may be handed."""
        self._thread: threading.Thread | None = None
        self._is_ending = False
        # Waited for rather than the thread: a `join` that Ctrl-C interrupts takes the thread for ended (Python 3.11).
        self._has_ended = threading.Event()
        self._close: Callable[[], None] = lambda: None
        self._error: Exception | None = None

    @property
    def is_running(self) -> bool:
        """Whether work may be handed over."""
        return self._loop is not None

    def start(self, prepare: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        """Begin, unless it runs; `prepare` is called before anything runs in the loop. One that ends is waited for.

        Raises:
            Exception: what `prepare` raises; then nothing has begun.
        """
        with self._starting:
            with self._lock:
                thread, is_ending = self._thread, self._is_ending
            if thread is not None:
                if not is_ending:
                    return
                self._has_ended.wait()
            loop = asyncio.new_event_loop()
            try:
                prepare(loop)
            except BaseException:
                loop.close()
                raise
            with self._lock:
                self._loop, self._has_ended = loop, threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(loop,), name=self._name, daemon=True
                )
                self._thread.start()

    def stop(
        self, wind_up: Callable[[], Coroutine[Any, Any, None]], close: Callable[[], None]
    ) -> None:
        """Run `wind_up` in the loop, let the rest come to its end, `close` what the loop used, and end. Blocks.

        Who hands over work meanwhile is still served. A second call waits for the same end.

        Raises:
            RuntimeError: it is called in the thread that is to end.
            Exception: what `wind_up` or `close` raised.
        """
        with self._lock:
            thread, loop, has_ended = self._thread, self._loop, self._has_ended
            if thread is None:
                return
            if thread is threading.current_thread():
                raise RuntimeError(
                    "a pool cannot be closed in its own thread: let another one do it"
                )
            if not self._is_ending:
                assert loop is not None
                self._close = close
                asyncio.run_coroutine_threadsafe(self._end(wind_up()), loop)
                self._is_ending = True  # last, in case Ctrl-C comes in between
        has_ended.wait()
        thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there from whichever loop we are in; cancelling reaches it.

        Raises:
            RuntimeError: the thread does not run.
        """
        with self._lock:
            loop = self._loop
            future = None if loop is None else asyncio.run_coroutine_threadsafe(work, loop)
        if future is None:
            work.close()
            raise RuntimeError("the pool is not open: use it in a `with` block, or call open()")
        return await asyncio.wrap_future(future)

    def call_soon(self, do: Callable[[], None]) -> None:
        """Call `do` there as soon as may be; nothing happens where the thread does not run."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(do)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
            self._close()
        except Exception as error:
            self._error = self._error or error
        finally:
            loop.close()
            with self._lock:
                self._loop = self._thread = None
                self._is_ending = False
            self._has_ended.set()

    async def _end(self, wind_up: Coroutine[Any, Any, None]) -> None:
        """Close what is loaded, and let every caller have its answer before the loop ends."""
        try:
            await wind_up
        except Exception as error:
            self._error = error
        await _finish_rest()
        with self._lock:  # from here on nothing more is handed over
            self._loop = None
        await _finish_rest()  # what was handed over at the last moment
        asyncio.get_running_loop().stop()


async def _finish_rest() -> None:
    await asyncio.sleep(0)  # what was handed over becomes a task
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    if rest:
        _, late = await asyncio.wait(rest, timeout=REST_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    await asyncio.sleep(0)  # and what has ended is told to whoever waits for it
