"""An asynchronous iterator read by plain code, whether or not an event loop runs in its thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from ...graph.solve import run_here

__all__ = ["iterate_here", "run_in_context"]

T = TypeVar("T")


def run_in_context(work: Coroutine[Any, Any, T]) -> T:
    """`run_here`, with the caller's context variables: LangChain's tracers are among them."""
    context = contextvars.copy_context()

    async def within() -> T:
        return await asyncio.get_running_loop().create_task(work, context=context)

    return run_here(within())


def iterate_here(make: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
    """Read an asynchronous generator piece by piece, in a thread with a loop of its own.

    Closing the iterator closes the generator.

    Args:
        make: Makes the generator; is called in that thread.
    """
    arrivals: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()
    context = contextvars.copy_context()

    async def read() -> None:
        async with contextlib.aclosing(make()) as pieces:
            async for piece in pieces:
                arrivals.put((piece,))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(read())
        running.set_result((loop, task))
        try:
            await task
        except asyncio.CancelledError:
            arrivals.put(None)
        except BaseException as error:
            arrivals.put(error)
        else:
            arrivals.put(None)

    thread = Thread(
        target=context.run, args=(asyncio.run, main()), name="expertmix-stream", daemon=True
    )
    thread.start()
    try:
        while (arrived := arrivals.get()) is not None:
            if isinstance(arrived, BaseException):
                raise arrived
            yield arrived[0]
    finally:
        loop, task = running.result()
        with contextlib.suppress(RuntimeError):  # it has ended already
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
