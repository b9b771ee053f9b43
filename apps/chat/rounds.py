"""Several calls of one chat model that are answered together: one pass for a whole `batch`.

LangChain runs callbacks, caches, rate limits and retries for every message list by itself. A round leaves all
of that as it is. It only holds each list back at the moment at which the model would answer it, until every
other list of the batch has come to the same point or has ended elsewhere (in the cache, in an error). Then all
that wait are answered in one go.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Round"]

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
T = TypeVar("T")

_present: contextvars.ContextVar[Round[Any, Any] | None] = contextvars.ContextVar(
    "expertmix_round", default=None
)


class Round(Generic[Asked, Answer]):
    """Collects what several tasks ask, and answers it together once none of them can ask any more.

    Args:
        owner: Whose round it is; others that are asked on the way do not join it.
        answer: Answers all at once, an exception in the place of what cannot be answered.
    """

    def __init__(
        self,
        owner: object,
        answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer | Exception]]],
    ) -> None:
        self._owner = owner
        self._answer = answer
        self._running = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[Asked, asyncio.Future[Answer], contextvars.Context]] = []
        self._pass: asyncio.Task[None] | None = None

    @staticmethod
    def of(owner: object) -> Round[Any, Any] | None:
        """The round in which this task is one of several.

        A callback that asks from another loop (LangChain runs plain ones in threads) takes no part: the
        round would wait for it, and it for the round.
        """
        found = _present.get()
        if found is None or found._owner is not owner or found._loop is not _running_loop():
            return None
        return found

    async def run(
        self, works: Sequence[Callable[[], Coroutine[Any, Any, T]]]
    ) -> list[T | BaseException]:
        """Run tasks side by side; gives what each of them gave or raised, in their order."""
        self._running = len(works)
        self._loop = asyncio.get_running_loop()
        before = _present.set(self)
        try:
            tasks = [asyncio.ensure_future(self._take_part(work)) for work in works]
        finally:
            _present.reset(before)
        try:
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if self._pass is not None:
                self._pass.cancel()

    async def ask(self, asked: Asked) -> Answer:
        """Wait for the others, and then for the answer.

        Raises:
            Exception: what came in the place of the answer.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer, contextvars.copy_context()))
        self._begin_if_complete()
        return await answer

    async def _take_part(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await work()
        finally:
            self._running -= 1
            self._begin_if_complete()

    def _begin_if_complete(self) -> None:
        wanted = [waiting for waiting in self._waiting if not waiting[1].done()]
        if not wanted or len(wanted) < self._running:
            return
        self._waiting = []
        *_, (_, _, context) = wanted  # of the last that asked, whoever may have ended since
        # Whoever is asked in the course of the pass is no part of this round.
        context.run(_present.set, None)
        work = self._carry_out([(asked, answer) for asked, answer, _ in wanted])
        self._pass = asyncio.get_running_loop().create_task(work, context=context)

    async def _carry_out(self, wanted: Sequence[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        try:
            given = await self._answer([asked for asked, _ in wanted])
        except Exception as error:  # what concerns all is told to each
            given = [error] * len(wanted)
        for (_, answer), told in zip(wanted, given, strict=True):
            if answer.done():
                continue
            if isinstance(told, Exception):
                answer.set_exception(told)
            else:
                answer.set_result(told)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
