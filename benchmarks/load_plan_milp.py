"""The scheduling problem of `agents/pool/exact.py` as a mixed-integer program, for SciPy's HiGHS.

Lanes are sequences of arcs, time is continuous, "either this first or that" is a large constant; pieces
that do not fit a device's memory together are ordered in pairs, which is all there is to say with up to
two lanes on a device. It is what `benchmarks/load_plan.py` compares CP-SAT with, and nothing else uses it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise, permutations
from typing import Any, NamedTuple

from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.exact import count_lanes
from expertmix.agents.pool.tasks import Task

__all__ = ["solve_by_milp"]

_Lane = tuple[int, int]


class _Piece(NamedTuple):
    """Variables of a task in a lane."""

    task: int
    lane: _Lane
    here: int
    start: int
    end: int
    swapped: int


def solve_by_milp(
    tasks: Sequence[Task],
    devices: Sequence[Device],
    *,
    at_most: float,
    bound: float,
    seconds: float,
) -> tuple[float, bool] | None:
    """The least cost that HiGHS finds, and whether it has proven that there is none less.

    Args:
        tasks: Each fits a device.
        devices: None with more than two lanes.
        at_most: Cost of a schedule that is known.
        bound: Seconds that no schedule can undercut.
        seconds: Time limit.

    Returns:
        None if nothing was found in time.
    """
    assert all(device.lanes <= 2 for device in devices), "more than two lanes on a device"
    return _Program(tasks, devices, at_most, bound).solve(seconds)


class _Program:
    def __init__(
        self, tasks: Sequence[Task], devices: Sequence[Device], at_most: float, bound: float
    ) -> None:
        self.tasks, self.devices, self.horizon = tasks, devices, at_most
        self.slack = at_most - bound
        self.limits: list[tuple[float, float, bool]] = []
        self.rows: list[tuple[dict[int, float], float, float]] = []
        self.lanes = [(d, lane) for d, device in enumerate(devices) for lane in range(device.lanes)]
        self.pieces: list[_Piece] = []
        self.follows: dict[int, list[int]] = {}
        self.makespan = self.new(bound, at_most)
        self.cost: dict[int, float] = {self.makespan: 1.0}
        for index in range(len(tasks)):
            self.add_task(index)
        self.require(self.cost, high=at_most)
        for lane in self.lanes:
            self.order([piece for piece in self.pieces if piece.lane == lane])
        for swapped, arcs in self.follows.items():
            self.require({**dict.fromkeys(arcs, 1.0), swapped: -1.0}, low=0.0)
        for device in range(len(devices)):
            self.share_memory(device)
        self.break_symmetry()

    def new(self, low: float = 0.0, high: float = 1.0, *, whole: bool = False) -> int:
        """A variable; return its number."""
        self.limits.append((low, high, whole))
        return len(self.limits) - 1

    def require(
        self, terms: Mapping[int, float], low: float = -math.inf, high: float = math.inf
    ) -> None:
        """Keep a weighted sum of variables within limits."""
        self.rows.append((dict(terms), low, high))

    def solve(self, seconds: float) -> tuple[float, bool] | None:
        """Hand everything to HiGHS."""
        optimize: Any = importlib.import_module("scipy.optimize")
        sparse: Any = importlib.import_module("scipy.sparse")
        entries = [
            (row, n, x) for row, (terms, _, _) in enumerate(self.rows) for n, x in terms.items()
        ]
        at_row, at_column, values = zip(*entries, strict=True)
        lows, highs, wholes = zip(*self.limits, strict=True)
        shape = (len(self.rows), len(self.limits))
        matrix = sparse.csr_array((values, (at_row, at_column)), shape=shape)
        _, least, most = zip(*self.rows, strict=True)
        result = optimize.milp(
            [self.cost.get(number, 0.0) for number in range(len(self.limits))],
            integrality=[int(whole) for whole in wholes],
            bounds=optimize.Bounds(lows, highs),
            constraints=optimize.LinearConstraint(matrix, least, most),
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )
        return None if result.x is None else (float(result.fun), result.status == 0)

    def add_task(self, index: int) -> None:
        """Say where it is, in how many parts, and how long each takes."""
        task = self.tasks[index]
        most = count_lanes(task, self.devices) if task.splittable else 1
        if task.load_seconds * most > self.slack:
            most = max(1, min(most, 1 + int(self.slack / task.load_seconds)))
        parts = {self.new(whole=True): n for n in range(1, most + 1)}
        self.require(dict.fromkeys(parts, 1.0), 1.0, 1.0)
        self.cost |= {part: (n - 1) * task.load_seconds for part, n in parts.items()}
        here = {self.new(whole=True): lane for lane in self.lanes if self.fits(task, lane)}
        self.require(
            {**dict.fromkeys(here, 1.0), **{part: -n for part, n in parts.items()}}, 0.0, 0.0
        )
        work = {part: -task.work_seconds / n for part, n in parts.items()}
        span = self.new_span(task, work) if most == 1 else None
        for there, lane in here.items():
            times = self.new_span(task, work, there) if span is None else span
            self.pieces.append(_Piece(index, lane, there, *times))

    def new_span(
        self, task: Task, work: Mapping[int, float], there: int | None = None
    ) -> tuple[int, int, int]:
        """Variables for its start, its end and whether it is swapped in."""
        saved = (
            max(0.0, task.load_seconds - (task.swap_seconds or math.inf)) if task.family else 0.0
        )
        start, end = self.new(0.0, self.horizon), self.new(0.0, self.horizon)
        swapped = self.new(0.0, 1.0 if saved else 0.0)
        self.follows[swapped] = []
        terms = {end: 1.0, start: -1.0, swapped: saved, **work}
        if there is None:
            self.require(terms, low=task.load_seconds)
        else:  # what is not there takes no time
            self.require({**terms, there: -self.horizon}, low=task.load_seconds - self.horizon)
        self.require({self.makespan: 1.0, end: -1.0}, low=0.0)
        return start, end, swapped

    def fits(self, task: Task, lane: _Lane) -> bool:
        """Whether the lane's device has enough memory."""
        return self.devices[lane[0]].memory_bytes >= task.memory_bytes

    def order(self, inside: Sequence[_Piece]) -> None:
        """Make the pieces in a lane a sequence: each has one before it and one after, or an end."""
        before = {piece: {self.new(whole=True): 1.0} for piece in inside}
        after = {piece: {self.new(whole=True): 1.0} for piece in inside}
        self.require({arc: 1.0 for arcs in before.values() for arc in arcs}, high=1.0)
        for first, then in permutations(inside, 2):
            tasks = self.tasks[first.task], self.tasks[then.task]
            if tasks[0].last and not tasks[1].last:
                continue
            arc = self.new(whole=True)
            before[then][arc] = after[first][arc] = 1.0
            self.precede(first, then, arc)
            if tasks[0].family is not None and tasks[0].family == tasks[1].family:
                self.follows[then.swapped].append(arc)
        for piece in inside:
            self.require({**before[piece], piece.here: -1.0}, 0.0, 0.0)
            self.require({**after[piece], piece.here: -1.0}, 0.0, 0.0)

    def precede(self, first: _Piece, then: _Piece, arc: int) -> None:
        """One ends before the other starts if the arc is taken."""
        terms = {then.start: 1.0, first.end: -1.0, arc: -self.horizon}
        self.require(terms, low=-self.horizon)

    def share_memory(self, device: int) -> None:
        """Put what does not fit together one after the other, whichever comes first."""
        inside = [piece for piece in self.pieces if piece.lane[0] == device]
        for one, other in combinations(inside, 2):
            needs = sum(self.tasks[piece.task].memory_bytes for piece in (one, other))
            if one.lane != other.lane and needs > self.devices[device].memory_bytes:
                first, then = self.new(whole=True), self.new(whole=True)
                self.require({first: 1.0, then: 1.0, one.here: -1.0, other.here: -1.0}, low=-1.0)
                self.precede(one, other, first)
                self.precede(other, one, then)

    def break_symmetry(self) -> None:
        """Of lanes and devices that are alike, the one with the earliest task comes first."""
        lanes = [[lane for lane in self.lanes if lane[0] == d] for d in range(len(self.devices))]
        pairs = [([one], [other]) for alike in lanes for one, other in pairwise(alike)]
        for (one, before), (other, after) in pairwise(zip(self.devices, lanes, strict=True)):
            if (one.memory_bytes, one.lanes) == (other.memory_bytes, other.lanes):
                pairs.append((before, after))
        for before, after in pairs:
            for late in (piece for piece in self.pieces if piece.lane in after):
                earlier = (p.here for p in self.pieces if p.lane in before and p.task <= late.task)
                self.require({**dict.fromkeys(earlier, 1.0), late.here: -1.0}, low=0.0)
