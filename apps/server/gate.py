"""How many requests are worked on, how many may wait, and that an end is orderly."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from .errors import ApiError

__all__ = ["Gate"]


class Gate:
    """Lets so many requests in, has so many wait in the order of coming, and refuses the rest.

    Args:
        running: Requests inside at one time.
        waiting: Requests that may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.running = 0
        """Requests inside."""
        self.is_draining = False
        """Whether nobody is let in any more."""
        self._most_running = running
        self._most_waiting = waiting
        self._line: deque[asyncio.Future[None]] = deque()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._inside: set[asyncio.Task[Any]] = set()
        self._is_over = False

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._line)

    async def enter(self) -> None:
        """Wait for a place. Whoever has one must `hold` it or `leave`.

        Raises:
            ApiError: 429 where too many wait already, 503 where the server ends.
        """
        if self.is_draining:
            raise _ending()
        if self.running < self._most_running:
            self.running += 1
            self._is_empty.clear()
            return
        if len(self._line) >= self._most_waiting:
            raise ApiError(
                429,
                f"{self.running} requests are worked on and {len(self._line)} wait; ask again later",
                code="too_many_requests",
                headers={"retry-after": "1"},
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn  # whoever leaves hands its place over
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()
            with contextlib.suppress(ValueError):
                self._line.remove(turn)
            raise

    def leave(self) -> None:
        """Give the place to whoever waits longest."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
        if not self.running:
            self._is_empty.set()

    def drain(self) -> None:
        """Let nobody in any more; whoever waits is sent away."""
        self.is_draining = True
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_exception(_ending())

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Keep the place that was entered until the block ends.

        Raises:
            ApiError: 503 where what runs is given up meanwhile.
        """
        task = asyncio.current_task()
        assert task is not None
        self._inside.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_over:
                raise
            task.uncancel()
            told = "the server ended before there was an answer"
            raise ApiError(503, told, code="draining") from None
        finally:
            self._inside.discard(task)
            self.leave()

    def give_up(self) -> int:
        """Cancel everything that is inside; gives how many that are."""
        self._is_over = True
        for task in self._inside:
            task.cancel()
        return len(self._inside)

    async def wait_until_empty(self) -> None:
        """Return when nobody is inside."""
        await self._is_empty.wait()


def _ending() -> ApiError:
    return ApiError(
        503,
        "the server is ending and takes no further requests",
        code="draining",
        headers={"retry-after": "5"},
    )
