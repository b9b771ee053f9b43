"""Handing replies from the pool's thread to the caller's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable

from ..engines import Reply

__all__ = ["Delivery"]


class Delivery:
    """Calls `on_reply` in the caller's loop with each reply, in order; those that come together wake it once.

    Context variables are as they are where it is made.

    Args:
        caller: The loop that is to hear.
        on_reply: What it does with each. If it raises, the loop's exception handler is told, and the next
            reply comes all the same.
    """

    def __init__(
        self, caller: asyncio.AbstractEventLoop, on_reply: Callable[[Reply], None]
    ) -> None:
        self._caller = caller
        self._on_reply = on_reply
        self._context = contextvars.copy_context()
        self._waiting: deque[Reply] = deque()

    def deliver(self, reply: Reply) -> None:
        """Hand over a reply; from the pool's thread."""
        self._waiting.append(reply)
        # Counted after it was put there: if others are waiting, their hand-over takes it along.
        if len(self._waiting) == 1:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
                self._caller.call_soon_threadsafe(self._hand_over, context=self._context)

    def _hand_over(self) -> None:
        while self._waiting:
            try:
                self._on_reply(self._waiting.popleft())
            except Exception as error:
                told = {"message": "a listener to replies failed", "exception": error}
                self._caller.call_exception_handler(told)
