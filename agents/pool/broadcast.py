"""Telling everybody who watches a pool what happens in it, in its own time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable

from .events import PoolEvent

__all__ = ["Broadcast", "Watcher"]

Watcher = Callable[[PoolEvent], None]


class Broadcast:
    """Gives every event its time and hands it to the watchers; in the pool's thread.

    Args:
        watchers: Who is told from the beginning.
    """

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        self._watchers = list(watchers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = 0.0
        self._finished: Counter[tuple[str, str, str]] = Counter()

    def begin(self, loop: asyncio.AbstractEventLoop, *, at: float) -> None:
        """Count seconds by this loop's clock, from `at` on."""
        self._loop, self._begun = loop, loop.time() - at
        self._finished.clear()  # a loop that has ended tells no more

    def add(self, watcher: Watcher) -> Callable[[], None]:
        """Tell one more, until what is returned is called."""
        self._watchers.append(watcher)
        return lambda: self._drop(watcher)

    def tell(self, event: PoolEvent) -> None:
        """Hand an event to all. Who cannot take it hears of nothing further, and costs no answer."""
        at = 0.0 if self._loop is None else self._loop.time() - self._begun
        event = dataclasses.replace(event, at=at)
        for watcher in tuple(self._watchers):  # another thread may take one out
            try:
                watcher(event)
            except Exception as error:
                self._drop(watcher)
                what = f"{type(error).__name__}: {error}"
                self.warn("a watcher", f"{what}; it hears of nothing further")

    def warn(self, weights: str, message: str) -> None:
        """Tell of something that nobody has to act on now."""
        self.tell(PoolEvent(kind="warning", weights=weights, message=message))

    def count_finished(self, weights: str, alias: str, stage: str) -> None:
        """Count a reply; those that come together are told together."""
        if not self._finished:
            asyncio.get_running_loop().call_soon(self._tell_finished)
        self._finished[weights, alias, stage] += 1

    def _tell_finished(self) -> None:
        counts, self._finished = self._finished, Counter()
        for (weights, alias, stage), number in counts.items():
            event = PoolEvent(
                kind="finished", weights=weights, alias=alias, stage=stage, number=number
            )
            self.tell(event)

    def _drop(self, watcher: Watcher) -> None:
        with contextlib.suppress(ValueError):
            self._watchers.remove(watcher)
