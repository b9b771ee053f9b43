"""Requests that are answered one by one, several at a time, until their engine closes.

For engines that hold no batch themselves: addresses and LangChain chat models. One function that
answers one request is enough; order, concurrency, streaming, cancelling and closing are here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from .base import Chunk, Failure, Reply, Request

__all__ = ["AnswerOne", "InFlight", "OnText"]


class OnText(Protocol):
    """Is called with each piece of text, and of what the model thinks, as it arrives."""

    def __call__(self, text: str, reasoning: str = "", /) -> None:
        """Pass on one piece."""
        ...


AnswerOne: TypeAlias = Callable[[Request, OnText | None], Coroutine[Any, Any, Reply]]
"""Answers one request. Its failures are replies; it streams only if it is given somewhere to."""


class InFlight:
    """What one engine is answering at the moment."""

    def __init__(self, name: str, answer: AnswerOne, *, concurrency: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        self._name = name
        self._answer = answer
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[Reply]] = set()
        self._open = False

    def open(self) -> None:
        """Begin to accept requests; before this and after `close` they fail."""
        self._open = True

    async def answer_all(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None
    ) -> list[Reply]:
        """Answer all requests; replies come in their order, `on_reply` hears of them as they do."""
        replies: dict[int, Reply] = {}
        waiting = iter(enumerate(requests))

        async def work(waiting: Iterator[tuple[int, Request]]) -> None:
            for place, request in waiting:
                replies[place] = reply = await self._run(request, None)
                if on_reply is not None:
                    on_reply(reply)

        # Few workers rather than a task per request: a batch of thousands then queues in its own
        # iterator, and a single question that arrives meanwhile waits for one slot, not for all.
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(requests))):
                group.create_task(work(waiting))
        return [replies[place] for place in range(len(requests))]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answer one request piece by piece; closing the iterator aborts it."""
        pieces: asyncio.Queue[Chunk | None] = asyncio.Queue()

        def put(text: str, reasoning: str = "", /) -> None:
            pieces.put_nowait(Chunk(text=text, reasoning=reasoning))

        task = asyncio.create_task(self._run(request, put))
        task.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield Chunk(reply=await task)
        finally:
            if task.cancel():
                await asyncio.wait({task})

    async def close(self) -> None:
        """Abort what is running; its replies are failures. Safe to call twice."""
        self._open = False
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, request: Request, on_text: OnText | None) -> Reply:
        if not self._open:
            return Reply.failed(request, self._not_running())
        task = asyncio.create_task(self._answer_in_slot(request, on_text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._open or caller is None or caller.cancelling():
                raise  # whoever asked gave up
            return Reply.failed(request, self._not_running())

    async def _answer_in_slot(self, request: Request, on_text: OnText | None) -> Reply:
        async with self._slots:
            return await self._answer(request, on_text)

    def _not_running(self) -> Failure:
        return Failure(
            kind="engine", message=f'engine "{self._name}" is not running: not started, or closed'
        )
