"""Back-pressure: who asks for more than may wait, waits himself, in the order of coming."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

__all__ = ["Gate"]


class Gate:
    """Lets requests in as long as fewer than `most` are inside.

    A call with more requests than may ever be inside gets in alone.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, number: int) -> None:
        """Wait until so many requests may come in."""
        if not self._line and self._has_room(number):
            self._inside += number
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((number, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._inside -= number
            with contextlib.suppress(ValueError):  # whoever let others in may have passed it over
                self._line.remove((number, turn))
            self._let_in()
            raise

    def leave(self, number: int) -> None:
        """So many requests are done."""
        self._inside -= number
        self._let_in()

    def _let_in(self) -> None:
        while self._line and self._has_room(self._line[0][0]):
            entering, turn = self._line.popleft()
            if not turn.done():
                self._inside += entering
                turn.set_result(None)

    def _has_room(self, number: int) -> bool:
        return self._inside == 0 or self._inside + number <= self._most
