"""Which models keep dying, and for how long nobody asks them."""

from __future__ import annotations

import math

from ..engines import Failure

__all__ = ["Health"]

MOST_DEATHS = 2
"""Times in a row, without an answer in between, that a model may die before its questions fail."""
COOL_DOWN = 60.0
"""Seconds after which a model that kept dying may be tried again."""


class Health:
    """What is known of groups that failed, by their keys. Times are the loop's."""

    def __init__(self) -> None:
        self._broken: dict[str, tuple[Failure, float]] = {}
        self._deaths: dict[str, int] = {}
        self._died_at: dict[str, float] = {}

    def why_broken(self, key: str, now: float) -> Failure | None:
        """Why a group is not to be asked now; None if it may be."""
        failure, until = self._broken.get(key, (None, 0.0))
        return failure if now < until else None

    def note_answer(self, key: str) -> None:
        """A model that answers is well."""
        self._deaths.pop(key, None)

    def note_death(self, key: str, failure: Failure, now: float, *, born: float) -> int | None:
        """One more death; the number of them if that was one too many, else None.

        Engines that were there already when another of the group died (replicas on a node that is lost)
        die of the same cause: they count once.
        """
        if born < self._died_at.get(key, -math.inf):
            return None
        self._died_at[key] = now
        deaths = self._deaths[key] = self._deaths.get(key, 0) + 1
        if deaths < MOST_DEATHS:
            return None
        self._deaths[key] = 0
        self._broken[key] = (failure, now + COOL_DOWN)
        return deaths

    def note_load_failure(self, key: str, failure: Failure) -> None:
        """What cannot be loaded and will not go better the next time is not tried again."""
        if not failure.retryable:
            self._broken[key] = (failure, math.inf)
