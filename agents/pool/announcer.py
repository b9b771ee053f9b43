"""Telling watchers what happens to engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..engines import Pulsed
from .events import EventKind, PoolEvent
from .groups import Group
from .residents import Resident

__all__ = ["Announcer"]

_AT_WORK = (
    "tokens",
    "resting",
)  # said of the weights that did it, which may have been swapped since
TELL_SECONDS = 1.0
"""How often the speed of a working engine is told."""


class Announcer:
    """Makes events of what the residency loop does.

    Args:
        tell: Called with each event, in the pool's loop.
    """

    def __init__(self, tell: Callable[[PoolEvent], None]) -> None:
        self._tell = tell

    def tell(self, kind: EventKind, resident: Resident, **details: Any) -> None:
        """Something happened to an engine."""
        self._tell(
            PoolEvent(
                kind=kind,
                weights=(kind in _AT_WORK and resident.working_as) or resident.group.name,
                device=resident.device.name,
                engine=resident.number,
                **details,
            )
        )

    def tell_of(self, group: Group, kind: EventKind, *, message: str) -> None:
        """Something is to be said of weights that no engine holds."""
        self._tell(PoolEvent(kind=kind, weights=group.name, message=message))

    def tell_tokens(self, resident: Resident, now: float, *, at_once: bool = False) -> None:
        """How many tokens an engine has generated since this was last told, and in what time."""
        seconds = now - resident.told_at
        if not isinstance(resident.engine, Pulsed) or not (at_once or seconds >= TELL_SECONDS):
            return
        number = resident.engine.generated_tokens - resident.tokens
        resident.told_at = now
        resident.tokens = resident.engine.generated_tokens
        if number > 0:
            self.tell("tokens", resident, number=number, seconds=seconds)

    def tell_rests(self, residents: Iterable[Resident], now: float) -> None:
        """Engines that have worked and got nothing further."""
        for resident in residents:
            if resident.working_as and not resident.slices:
                self.tell_tokens(resident, now, at_once=True)
                self.tell("resting", resident)
                resident.working_as = ""
