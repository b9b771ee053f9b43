"""What waits for engines: jobs by group, oldest first, and how much of it an engine gets at a time."""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections.abc import Iterator

from .jobs import Job
from .residents import Resident, Slice

__all__ = ["IN_FLIGHT", "SLICE", "Queues"]

SLICE = 32
"""Requests given to an engine at a time."""
IN_FLIGHT = 96
"""Requests that an engine has at most. It is refilled at 64, as many as vLLM batches; what no engine has
may still go to a replica, be withdrawn, or wait while another model has its turn."""


class Queues:
    """Jobs that have requests which no engine works on."""

    def __init__(self) -> None:
        self._jobs: dict[str, list[Job]] = {}
        self._served_at: dict[str, float] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def add(self, job: Job) -> None:
        """A job arrives, or gets requests back that an engine lost."""
        queue = self._jobs.setdefault(job.group.key, [])
        if not job.is_queued:
            insort(queue, job, key=lambda other: other.number)
            job.is_queued = True

    def remove(self, job: Job) -> None:
        """What waits of a job waits no more."""
        if job.is_queued:
            self._jobs[job.group.key].remove(job)
            job.is_queued = False
            self._tidy(job.group.key)

    def take_all(self, key: str) -> list[Job]:
        """Everything that waits for a group, to be refused."""
        jobs = self._jobs.pop(key, [])
        for job in jobs:
            job.is_queued = False
        return jobs

    def first(self, key: str) -> Job:
        """The oldest job of a group that has one."""
        return self._jobs[key][0]

    def waiting_since(self, key: str) -> float:
        """Since when a group has waited: its oldest job's arrival, or the last time it was served.

        Counted from its last turn, so that under a load that no order could satisfy models still
        take turns of `patience` seconds instead of giving way as soon as they may.
        """
        return max(self.first(key).arrived, self._served_at.get(key, -math.inf))

    def count(self, key: str) -> int:
        """Requests that wait for a group."""
        return sum(len(job.pending) for job in self._jobs.get(key, ()))

    def feed(self, resident: Resident, now: float, *, sharers: int) -> list[Slice]:
        """Take what an engine can take now: from each job in turn, so that small ones pass large ones.

        Args:
            resident: An engine of the queue's group.
            now: Loop time.
            sharers: Engines that the group has; each leaves the others their part.
        """
        key = resident.group.key
        if key not in self._jobs or resident.in_flight > IN_FLIGHT - SLICE:
            return []
        room = IN_FLIGHT - resident.in_flight
        if sharers > 1:
            room = min(room, math.ceil(self.count(key) / sharers))
        begun: list[Slice] = []
        while room and key in self._jobs:
            turn = list(itertools.islice(self._jobs[key], SLICE))
            fair = max(1, SLICE // len(turn))
            for job in turn:
                if not room:
                    break
                begun.append(Slice(job, job.take(min(fair, room)), now))
                room -= len(begun[-1].requests)
                if not job.pending:
                    self.remove(job)
        self._served_at[key] = now
        return begun

    def _tidy(self, key: str) -> None:
        if not self._jobs[key]:
            del self._jobs[key]
