"""Weights with work to be done, and where and when it is placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Placement", "Schedule", "Task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Weights, and what is to be done with them."""

    key: str
    load_seconds: float
    work_seconds: float
    memory_bytes: int
    """Taken from the beginning of the load to the end of the work."""
    family: str | None = None
    """Weights of one family can be put in each other's place."""
    swap_seconds: float | None = None
    """What that takes instead of a load, if it is quicker."""
    splittable: bool = True
    """Whether several lanes may each do an equal part of the work, after a load of its own."""
    last: bool = False
    """Asked again in the end: nothing follows it in its lane, unless that is `last`, too."""
    name: str | None = None
    """What a person calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A task, or an equal part of it, in a lane of a device."""

    key: str
    device: str
    lane: int
    start: float
    load_seconds: float
    """Of the load, or of the swap that takes its place."""
    work_seconds: float
    """Of this part."""
    share: float
    memory_bytes: int
    swapped: bool = False
    """Whether it is put in the place of the weights before it."""

    @property
    def end(self) -> float:
        """When its lane and its memory are free again."""
        return self.start + self.load_seconds + self.work_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """All placements, in the order in which they begin."""

    placements: tuple[Placement, ...]
    method: Literal["exact", "heuristic"]
    """`exact`: it is proven that none costs less, all times rounded to milliseconds."""
    lower_bound: float
    """Seconds that no schedule can undercut, however the tasks are split."""

    @property
    def makespan(self) -> float:
        """When the last placement ends."""
        return max((placement.end for placement in self.placements), default=0.0)

    @property
    def loads(self) -> int:
        """How often weights are loaded anew; a swap does not count."""
        return sum(not placement.swapped for placement in self.placements)

    def memory_peak(self, device: str) -> int:
        """The most bytes that are taken on a device at the same time."""
        here = [placement for placement in self.placements if placement.device == device]
        at_starts = (
            sum(other.memory_bytes for other in here if other.start <= begun.start < other.end)
            for begun in here
        )
        return max(at_starts, default=0)
