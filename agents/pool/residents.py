"""Engines that hold, or are about to hold, weights on a device."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..engines import Engine, Pulsed, Request
from .devices import Device
from .groups import Group
from .jobs import Job

__all__ = ["Need", "Resident", "Slice", "State"]

State: TypeAlias = Literal["loading", "ready", "asleep", "leaving"]
"""`loading` and `leaving` take memory already and still; a `ready` one that has to give way is draining:
it finishes its slices and gets no more. A group that failed has no resident."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a group wants of a device."""

    memory_bytes: int
    family: str | None = None
    """Weights with the same family can replace each other in place; None: they cannot."""
    is_probed: bool = False
    """Whether a fresh load has shown how these weights answer, so that a swap can be checked."""
    devices: tuple[Device, ...] = ()
    """Where it may go; the ones of the host, or the address that serves one model at a time."""
    is_stated: bool = False
    """Whether somebody said how much memory it takes: then nothing that is measured counts."""
    load_seconds: float = 0.0
    """What loading took the last time; 0 if nobody knows."""


@dataclass(slots=True, eq=False)
class Slice:
    """Requests of one job that an engine works on."""

    job: Job
    requests: list[Request]
    begun: float
    task: asyncio.Task[None] | None = None
    answered: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """An engine on a device, from the decision to load until its memory is free again."""

    number: int
    group: Group
    device: Device
    memory_bytes: int
    state: State = "loading"
    family: str | None = None
    replica: bool = False
    """Whether it was loaded beside another engine with the same weights."""
    previous: str = ""
    """The weights that had to go for it."""
    engine: Engine | None = None
    can_sleep: bool = False
    slices: list[Slice] = field(default_factory=list[Slice])
    born_at: float = 0.0
    """When it got its weights."""
    turn_at: float = 0.0
    """Since when it has had the weights, or has been at work without a pause."""
    used_at: float = 0.0
    heard_at: float = 0.0
    """When it last gave a reply."""
    working_as: str = ""
    """The weights that it was last said to be at work with; empty since it was said to rest."""
    is_dead: bool = False
    tokens: int = 0
    """Generated so far, as last told."""
    answered: int = 0
    """Requests answered since `turn_at`."""
    told_at: float = 0.0
    charged_at: float = 0.0

    def charge(self, now: float) -> None:
        """Put the time since this was last done to the account of whoever had requests in flight."""
        seconds, self.charged_at = now - self.charged_at, now
        total = sum(len(slice_.requests) for slice_ in self.slices)
        for slice_ in self.slices:
            slice_.job.seconds += seconds * len(slice_.requests) / total

    @property
    def last_sign(self) -> float:
        """When it last showed that it is alive (`time.monotonic`, which is an event loop's time)."""
        told = [self.heard_at, *(slice_.begun for slice_ in self.slices)]
        if isinstance(self.engine, Pulsed):
            told.append(self.engine.pulse)
        return max(told)

    @property
    def in_flight(self) -> int:
        """Requests that it works on."""
        return sum(len(slice_.requests) - slice_.answered for slice_ in self.slices)

    @property
    def is_busy(self) -> bool:
        """Whether it occupies a lane of its device."""
        return self.state == "loading" or bool(self.slices)
