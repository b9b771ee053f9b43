"""How much longer a request may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

__all__ = ["Patience"]


class Patience:
    """Seconds that a request may still take; waiting for its turn costs it none of them.

    Args:
        seconds: For all attempts together.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = self.left = seconds
        self.paused = 0.0
        """Seconds that it has waited because the server wanted a pause."""

    def spend(self, pause: float) -> None:
        """Count a pause that the request has waited through, in seconds."""
        self.left -= pause
        self.paused += pause

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Let the seconds run while something is done about the request.

        Raises:
            TimeoutError: they have run out.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self.left):
                yield
        finally:
            self.left -= loop.time() - began
