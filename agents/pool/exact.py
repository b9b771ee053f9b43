"""What can be proven about schedules: how short none can be, and which one costs least."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, NamedTuple

from .devices import Device

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

    from .tasks import Task

__all__ = ["Begun", "Solution", "bound_makespan", "count_lanes", "solve_exactly"]

TICKS = 1000  # a second
EFFORT = 1.0  # of CP-SAT's own time: up to two seconds, but counted in work, not by the clock
TIES_EFFORT = 0.25
MOST_PLACES = 300  # tasks times lanes; with more, the effort is spent before the search begins
BITS = 58  # for memory times time: CP-SAT adds up such products in 64


class Begun(NamedTuple):
    """A part of a task that begins in a lane."""

    task: int
    parts: int
    device: int
    lane: int


class Solution(NamedTuple):
    """What begins, in order, and whether nothing can cost less."""

    begun: tuple[Begun, ...]
    proven: bool


def count_lanes(task: Task, devices: Sequence[Device]) -> int:
    """How many lanes there are on devices that a task fits."""
    return sum(device.lanes for device in devices if device.memory_bytes >= task.memory_bytes)


def bound_makespan(tasks: Sequence[Task], devices: Sequence[Device]) -> float:
    """Seconds that no schedule can undercut, however tasks are split.

    The largest of: the longest piece that has to be; and, for the tasks that take some number of bytes
    or more, their seconds per lane that can run at the same time, and their bytes times seconds per
    byte of the devices that they fit. Loads count as swaps wherever there is something to replace.

    Args:
        tasks: Each fits a device.
        devices: At least one.
    """
    seconds = [
        load + task.work_seconds for task, load in zip(tasks, _least_loads(tasks), strict=True)
    ]
    bounds = [0.0]
    for task, most in zip(tasks, seconds, strict=True):
        parts = count_lanes(task, devices) if task.splittable else 1
        bounds.append(most - task.work_seconds * (1 - 1 / parts))
    for memory in {task.memory_bytes for task in tasks}:
        heavy = [
            pair for pair in zip(tasks, seconds, strict=True) if pair[0].memory_bytes >= memory
        ]
        fitting = [device for device in devices if device.memory_bytes >= memory]
        lanes = sum(min(d.lanes, d.memory_bytes // memory if memory else d.lanes) for d in fitting)
        bounds.append(math.fsum(most for _, most in heavy) / lanes)
        area = math.fsum(task.memory_bytes * most for task, most in heavy)
        bounds.append(area / max(1, sum(device.memory_bytes for device in fitting)))
    return max(bounds)


def _least_loads(tasks: Sequence[Task]) -> list[float]:
    members = Counter(task.family for task in tasks if task.family is not None)
    return [
        task.load_seconds
        if task.family is None or task.swap_seconds is None or members[task.family] == 1
        else min(task.load_seconds, task.swap_seconds)
        for task in tasks
    ]


def solve_exactly(
    tasks: Sequence[Task], devices: Sequence[Device], *, at_most: float, bound: float
) -> Solution | None:
    """Ask CP-SAT for what costs least by the rule of `make_schedule`, splits included.

    One thread, a fixed seed, a fixed effort: from one version of OR-tools the same answer every time.
    SciPy's HiGHS proves less than half as many optima in more time (benchmarks/load_plan.py).

    Args:
        tasks: In the order that breaks ties.
        devices: At least one that each task fits.
        at_most: Cost of a schedule that is known.
        bound: Seconds that no schedule can undercut.

    Returns:
        None without OR-tools, if nothing was found in time, or if the problem is too large to try.
    """
    if len(tasks) * sum(device.lanes for device in devices) > MOST_PLACES:
        return None
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    return _Model(cp_model.CpModel(), tasks, devices, at_most, bound).solve(cp_model.CpSolver())


_Lane = tuple[int, int]  # a device's number, and the lane's on it


@dataclass(slots=True)
class _Span:
    """When something begins and ends: a whole task wherever it is, or its part in one lane."""

    start: cp_model.IntVar
    end: cp_model.IntVar
    size: cp_model.IntVar
    swapped: cp_model.IntVar
    followed: list[cp_model.IntVar] = field(default_factory=list["cp_model.IntVar"])
    """For each of its family in each lane: whether that comes right before it."""


class _Model:
    """The problem in CP-SAT's terms, in ticks."""

    def __init__(
        self,
        model: cp_model.CpModel,
        tasks: Sequence[Task],
        devices: Sequence[Device],
        at_most: float,
        bound: float,
    ) -> None:
        self.model, self.tasks, self.devices = model, tasks, devices
        self.slack = max(0, _to_ticks(at_most) - _to_ticks(bound))
        self.lanes = [(d, lane) for d, device in enumerate(devices) for lane in range(device.lanes)]
        rounding = len(tasks) * len(self.lanes)
        self.horizon = _to_ticks(at_most) + rounding
        self.here: dict[tuple[int, _Lane], cp_model.IntVar] = {}
        self.spans: dict[tuple[int, _Lane], _Span] = {}
        self.intervals: dict[tuple[int, _Lane], cp_model.IntervalVar] = {}
        self.makespan = model.new_int_var(max(0, _to_ticks(bound) - rounding), self.horizon, "")
        self.price: cp_model.LinearExpr = self.makespan
        least = zip(tasks, _least_loads(tasks), strict=True)
        self.saved = [_to_ticks(task.load_seconds) - _to_ticks(swap) for task, swap in least]
        for index in range(len(tasks)):
            self._add_task(index)
        model.add(self.price <= self.horizon)
        for lane in self.lanes:
            self._order(lane)
        for span in self._list_spans():
            model.add(sum(span.followed) == span.swapped)
        for device in range(len(devices)):
            self._share_memory(device)
        self._break_symmetry()

    def solve(self, solver: cp_model.CpSolver) -> Solution | None:
        """Minimize the cost; if nothing can cost less, then loads and ends as well."""
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.catch_sigint_signal = False  # it would leave Ctrl-C at its default
        # Without these three, 13 of 21 instances like the benchmark's were proven; with them, all.
        solver.parameters.linearization_level = 0
        solver.parameters.use_strong_propagation_in_disjunctive = True
        solver.parameters.use_dynamic_precedence_in_disjunctive = True
        best = self._minimize(solver, self.price, EFFORT)
        if best is None or not best.proven:
            return best
        self.model.add(self.price <= round(solver.objective_value))
        spans = self._list_spans()
        loads = sum(self.here.values()) - sum(span.swapped for span in spans)
        ends = sum(span.end for span in spans)
        tied = self._minimize(solver, loads * (len(spans) * self.horizon + 1) + ends, TIES_EFFORT)
        return best if tied is None else Solution(tied.begun, proven=True)

    def _minimize(
        self, solver: cp_model.CpSolver, target: cp_model.LinearExprT, effort: float
    ) -> Solution | None:
        solver.parameters.max_deterministic_time = effort
        self.model.minimize(target)
        status = solver.status_name(solver.solve(self.model))
        if status not in ("OPTIMAL", "FEASIBLE"):
            return None
        chosen = [place for place, here in self.here.items() if solver.boolean_value(here)]
        parts = Counter(task for task, _ in chosen)
        times = {
            p: (solver.value(self.spans[p].start), solver.value(self.spans[p].end)) for p in chosen
        }
        return Solution(
            tuple(
                Begun(task, parts[task], *lane)
                for task, lane in sorted(chosen, key=lambda place: (times[place], place))
            ),
            proven=status == "OPTIMAL",
        )

    def _add_task(self, index: int) -> None:
        task, model = self.tasks[index], self.model
        here = {
            (device, lane): model.new_bool_var("")
            for device, lane in self.lanes
            if self.devices[device].memory_bytes >= task.memory_bytes
        }
        parts = [model.new_bool_var("") for _ in range(self._count_parts(task))]
        model.add_exactly_one(parts)
        model.add(sum(here.values()) == sum(n * part for n, part in enumerate(parts, 1)))
        self.price += sum(n * _to_ticks(task.load_seconds) * part for n, part in enumerate(parts))
        shares = [_to_ticks(task.work_seconds / n) for n in range(1, len(parts) + 1)]
        work = sum(share * part for share, part in zip(shares, parts, strict=True))
        whole = self._new_span(index, work) if len(parts) == 1 else None
        for lane, there in here.items():
            span = self._new_span(index, work, there) if whole is None else whole
            self.here[index, lane], self.spans[index, lane] = there, span
            self.intervals[index, lane] = model.new_optional_interval_var(
                span.start, span.size, span.end, there, ""
            )

    def _new_span(
        self, index: int, work: cp_model.LinearExpr | int, there: cp_model.IntVar | None = None
    ) -> _Span:
        load, saved = _to_ticks(self.tasks[index].load_seconds), self.saved[index]
        swapped = self.model.new_bool_var("") if saved else self.model.new_constant(0)
        span = _Span(self._new_int(), self._new_int(), self._new_int(), swapped)
        self.model.add(span.size == load - saved * swapped + work)
        self.model.add(self.makespan >= span.end)
        if there is not None:
            self.model.add(span.start == 0).only_enforce_if(~there)
            self.model.add(span.end == 0).only_enforce_if(~there)
        return span

    def _count_parts(self, task: Task) -> int:
        """How many parts may pay: more would add loads that cost all there is to gain."""
        most = count_lanes(task, self.devices) if task.splittable else 1
        if load := _to_ticks(task.load_seconds):
            most = min(most, 1 + self.slack // load)
        return most

    def _order(self, lane: _Lane) -> None:
        """One after the other, what must be last at the end, swaps only right after the family."""
        inside = [index for index in range(len(self.tasks)) if (index, lane) in self.here]
        self.model.add_no_overlap(self.intervals[index, lane] for index in inside)
        for first, then in permutations(inside, 2):
            if self.tasks[then].last and not self.tasks[first].last:
                both = self.here[first, lane], self.here[then, lane]
                self._precede(first, then, lane, *both)
        if any(self._are_family(first, then) for first, then in permutations(inside, 2)):
            self._add_circuit(lane, inside)

    def _add_circuit(self, lane: _Lane, inside: Sequence[int]) -> None:
        new_bool = self.model.new_bool_var
        arcs: list[tuple[int, int, cp_model.LiteralT]] = [(0, 0, new_bool(""))]
        for node, index in enumerate(inside, 1):
            arcs += [(0, node, new_bool("")), (node, 0, new_bool(""))]
            arcs.append((node, node, ~self.here[index, lane]))
        for (one, first), (other, then) in permutations(enumerate(inside, 1), 2):
            follows = new_bool("")
            arcs.append((one, other, follows))
            self._precede(first, then, lane, follows)
            if self._are_family(first, then):
                self.spans[then, lane].followed.append(follows)
        self.model.add_circuit(arcs)

    def _are_family(self, first: int, then: int) -> bool:
        return self.saved[then] > 0 and self.tasks[first].family == self.tasks[then].family

    def _precede(self, first: int, then: int, lane: _Lane, *where: cp_model.IntVar) -> None:
        begins, ends = self.spans[then, lane].start, self.spans[first, lane].end
        self.model.add(begins >= ends).only_enforce_if(*where)

    def _share_memory(self, device: int) -> None:
        product = self.devices[device].memory_bytes * self.horizon
        unit = 1 << max(0, product.bit_length() - BITS)
        there = self.devices[device].memory_bytes // unit
        places = [place for place in self.here if place[1][0] == device]
        # Rounded up, but not so far that a task that fits no longer does.
        needs = [min(there, -(-self.tasks[task].memory_bytes // unit)) for task, _ in places]
        self.model.add_cumulative([self.intervals[place] for place in places], needs, there)

    def _break_symmetry(self) -> None:
        """Of lanes that are alike, the one with the earliest task comes first; so of devices."""
        lanes = [[lane for lane in self.lanes if lane[0] == d] for d in range(len(self.devices))]
        for alike in lanes:
            for one, other in pairwise(alike):
                self._sort([one], [other])
        for (one, before), (other, after) in pairwise(zip(self.devices, lanes, strict=True)):
            if (one.memory_bytes, one.lanes) == (other.memory_bytes, other.lanes):
                self._sort(before, after)

    def _sort(self, before: Sequence[_Lane], after: Sequence[_Lane]) -> None:
        earlier: list[cp_model.IntVar] = []
        for task in range(len(self.tasks)):
            earlier += [self.here[task, lane] for lane in before if (task, lane) in self.here]
            for lane in after:
                if (task, lane) in self.here:
                    self.model.add_bool_or(~self.here[task, lane], *earlier)

    def _list_spans(self) -> list[_Span]:
        return list({id(span): span for span in self.spans.values()}.values())

    def _new_int(self) -> cp_model.IntVar:
        return self.model.new_int_var(0, self.horizon, "")


def _to_ticks(seconds: float) -> int:
    return round(seconds * TICKS)
