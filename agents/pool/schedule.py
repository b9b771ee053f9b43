"""Which lane loads which weights, and when: a short schedule, always the same one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple

from ...retrieval import InputError
from .devices import Device
from .exact import Solution, bound_makespan, count_lanes, solve_exactly

__all__ = ["Placement", "Schedule", "Task", "make_schedule"]

EXACT_UP_TO = 10  # tasks; benchmarks/load_plan.py tells how often the optimum is proven
EFFORT = 15_000  # steps that one search may try, about 0.05 s
GLANCE = 750  # and a search that only shows whether a further one is worth it
AHEAD = 8  # pieces among which the one that waits least begins
ROUNDS = 5  # beginnings anew, with what ended last brought forward
HOPE = 1.2  # a cut that costs more than this times the whole, at a glance, is given up
DIGITS = 9  # of a second: smaller differences are rounding


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


def make_schedule(
    tasks: Iterable[Task], devices: Sequence[Device], *, exact_up_to: int = EXACT_UP_TO
) -> Schedule:
    """Place tasks in the lanes of devices so that the last one ends as early as possible.

    A lane does one thing after the other, and the lanes of a device never hold more than its memory.
    The cost is the makespan plus the `load_seconds` of every part of a task after its first: a task is
    split only where that shortens the makespan by more than the added loads take. Ties go to the fewest
    loads, then the smallest sum of ends, then what is found first with the tasks in order of their keys.

    A search comes first. Again and again the piece begins that waits least; among equals the longest, or
    the one that takes most memory for longest, or one of the longest family. Then pieces are moved and
    exchanged as long as that helps, and what ends last is brought forward. Then the task with the
    longest pieces is cut into one part more, step by step, and the cheapest step improved in the same
    way. With up to `exact_up_to` tasks OR-tools, if installed, goes on until nothing can cost less or a
    fixed effort is spent. Neither chance nor the clock has a part in it.

    Args:
        tasks: In any order, with different keys.
        devices: At least one.
        exact_up_to: The most tasks for which OR-tools is asked; 0 for never.

    Raises:
        InputError: a task fits no device.
    """
    known = sorted(tasks, key=lambda task: task.key)
    assert len({task.key for task in known}) == len(known), "two tasks have the same key"
    _check_memory(known, devices)
    bound = bound_makespan(known, devices)
    plan, proven = _search(known, devices, bound), not known
    if 0 < len(known) <= exact_up_to:
        solution = solve_exactly(known, devices, at_most=_measure(plan)[0], bound=bound)
        if solution is not None:
            plan = min(_follow(solution, known, devices), plan, key=_measure)
            proven = solution.proven
    return Schedule(
        placements=tuple(sorted(_list_placements(plan), key=attrgetter("start"))),
        method="exact" if proven else "heuristic",
        lower_bound=min(bound, _get_makespan(plan)),
    )


def _check_memory(tasks: Iterable[Task], devices: Sequence[Device]) -> None:
    largest = max(devices, key=attrgetter("memory_bytes"))
    for task in tasks:
        if task.memory_bytes > largest.memory_bytes:
            raise InputError(
                f"{task.name or task.key} needs {task.memory_bytes / 2**30:.2f} GiB, but the largest"
                f" device, {largest.name}, has {largest.memory_bytes / 2**30:.2f}; choose fewer bits or"
                " a shorter context, or give the device more memory in the pool file"
            )


class _Piece(NamedTuple):
    """One of the equal parts of a task."""

    task: Task
    parts: int
    work: float
    swap: float
    """Seconds of its load after one of its family."""
    length: float
    """Seconds with a load of its own."""


def _cut(task: Task, parts: int) -> list[_Piece]:
    work, swap = task.work_seconds / parts, task.load_seconds
    if task.family is not None and task.swap_seconds is not None:
        swap = min(swap, task.swap_seconds)
    return [_Piece(task, parts, work, swap, task.load_seconds + work)] * parts


class _Step(NamedTuple):
    """A piece in a lane."""

    piece: _Piece
    lane: int
    start: float
    load: float
    end: float


_GET_END = attrgetter("end")


class _Timeline:
    """What a device does when it begins pieces in a given order, each as early as it can."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.steps: list[_Step] = []
        self.end = self.added = self.total = 0.0
        self.loads = 0
        self._lanes: list[_Step | None] = [None] * device.lanes
        self._now = 0.0

    def offer(self, piece: _Piece, lane: int | None = None) -> _Step | None:
        """The step that ends the piece first, in this lane or in any."""
        best: _Step | None = None
        ready = self._wait_for(piece.task.memory_bytes)
        for number in range(len(self._lanes)) if lane is None else (lane,):
            before, start, load = self._lanes[number], ready, piece.task.load_seconds
            if before is not None:
                if not self._may_follow(piece, before):
                    continue
                start = ready if ready > before.end else before.end
                if piece.task.family == before.piece.task.family:
                    load = piece.swap
            end = start + load + piece.work
            if best is None or end < best.end:
                best = _Step(piece, number, start, load, end)
            if before is None:
                break  # one empty lane is as good as the next
        return best if best is not None and best.end < math.inf else None

    def take(self, step: _Step) -> None:
        """Begin a piece as offered."""
        load, parts = step.piece.task.load_seconds, step.piece.parts
        self.steps.append(step)
        self._lanes[step.lane] = step
        self._now = step.start
        self.end = max(self.end, step.end)
        self.added += load * (parts - 1) / parts
        self.loads += step.load >= load
        self.total += step.end

    def _wait_for(self, memory: int) -> float:
        """When so much memory is free, from the last beginning on; never on too small a device."""
        busy = [step for step in self._lanes if step is not None and step.end > self._now]
        free = self.device.memory_bytes - memory
        for step in busy:
            free -= step.piece.task.memory_bytes
        if free >= 0:
            return self._now
        for step in sorted(busy, key=_GET_END):
            free += step.piece.task.memory_bytes
            if free >= 0:
                return step.end
        return math.inf

    def _may_follow(self, piece: _Piece, before: _Step) -> bool:
        if before.piece.task.last and not piece.task.last:
            return False
        here = (step.piece.task for step in self.steps if step.lane == before.lane)
        return piece.parts == 1 or piece.task not in here


_Plan = list[_Timeline]
_Cost = tuple[float, int, float]


def _measure(plan: _Plan) -> _Cost:
    """What is minimized, one after the other."""
    return (
        round(_get_makespan(plan) + sum(timeline.added for timeline in plan), DIGITS),
        sum(timeline.loads for timeline in plan),
        round(sum(timeline.total for timeline in plan), DIGITS),
    )


def _get_makespan(plan: _Plan) -> float:
    return max(timeline.end for timeline in plan)


def _search(tasks: Sequence[Task], devices: Sequence[Device], bound: float) -> _Plan:
    """The cheaper of two plans: with every task whole, and with some of them split."""
    plan = _optimize([piece for task in tasks for piece in _cut(task, 1)], devices)
    price = _measure(plan)[0]
    cuts: list[tuple[_Cost, list[_Piece]]] = []
    for pieces in _list_cuts(tasks, devices, gain=price - bound):
        first = _spread(sorted(pieces, key=lambda piece: -piece.length), devices)
        cuts.append((_measure(_improve(first, GLANCE)), pieces))
    cost, pieces = min(cuts, key=lambda cut: cut[0], default=((math.inf, 0, 0.0), []))
    if cost[0] > price * HOPE:
        return plan
    return min(plan, _optimize(pieces, devices), key=_measure)


def _list_cuts(
    tasks: Sequence[Task], devices: Sequence[Device], *, gain: float
) -> Iterator[list[_Piece]]:
    """Cut the task with the longest pieces into one part more while the added loads may pay."""
    most = {task.key: count_lanes(task, devices) for task in tasks if task.splittable}
    parts = dict.fromkeys((task.key for task in tasks), 1)
    effort = EFFORT
    while effort > 0 and (left := [t for t in tasks if parts[t.key] < most.get(t.key, 1)]):
        parts[max(left, key=lambda task: _cut(task, parts[task.key])[0].length).key] += 1
        if math.fsum(task.load_seconds * (parts[task.key] - 1) for task in tasks) >= gain:
            return
        pieces = [piece for task in tasks for piece in _cut(task, parts[task.key])]
        effort -= GLANCE + len(pieces) * (AHEAD + len(devices))
        yield pieces


def _optimize(pieces: Sequence[_Piece], devices: Sequence[Device]) -> _Plan:
    """Improve several beginnings, then others with what ended last brought forward."""
    plans = [_improve(_spread(order, devices), EFFORT // 3) for order in _sort(pieces)]
    best = plan = min(plans, key=_measure)
    order = [step.piece for step in sorted(_list_steps(plan), key=attrgetter("start"))]
    rounds = EFFORT // (2 * len(pieces) * (AHEAD + len(devices)) + 1)
    for _ in range(min(ROUNDS, rounds)):
        for step in sorted(_list_steps(plan), key=_GET_END)[-2:]:
            at = order.index(step.piece)
            order.insert(at // 2, order.pop(at))
        plan = _improve(_spread(order, devices), EFFORT // ROUNDS)
        best = min(best, plan, key=_measure)
    return best


def _sort(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """The longest first, what takes most memory for longest, the longest family."""
    families: dict[str, float] = {}
    for piece in pieces:
        name = piece.task.family or piece.task.key
        families[name] = families.get(name, 0.0) + piece.length
    longest = sorted(pieces, key=lambda piece: -piece.length)
    yield longest
    yield sorted(longest, key=lambda piece: -piece.length * piece.task.memory_bytes)
    ranks = sorted(families, key=lambda name: (-families[name], name))
    yield sorted(longest, key=lambda piece: ranks.index(piece.task.family or piece.task.key))


def _spread(order: Sequence[_Piece], devices: Sequence[Device]) -> _Plan:
    """Place pieces about in order, those that must be last in their turn or after all others."""
    plan = _begin(sorted(order, key=lambda piece: piece.task.last), devices)
    assert plan is not None, "a piece has no place"
    other = _begin(order, devices) if any(piece.task.last for piece in order) else None
    return plan if other is None else min(plan, other, key=_measure)


def _begin(order: Sequence[_Piece], devices: Sequence[Device]) -> _Plan | None:
    """Begin again and again, of the pieces that are next, the one that waits least."""
    plan, waiting = [_Timeline(device) for device in devices], list(range(len(order)))
    offers: list[dict[int, _Step | None]] = [{} for _ in devices]
    while waiting:
        ahead = [at for at in waiting[:AHEAD] if order[at].task.last == order[waiting[0]].task.last]
        choices: list[tuple[float, int, float, int, _Step]] = []
        for number, (timeline, known) in enumerate(zip(plan, offers, strict=True)):
            for at in ahead:
                if at not in known:
                    known[at] = timeline.offer(order[at])
                if (step := known[at]) is not None:
                    saved = order[at].task.load_seconds - step.load
                    choices.append((step.start - saved, at, step.end, number, step))
        if not choices:
            return None
        _, at, _, number, step = min(choices)
        plan[number].take(step)
        offers[number].clear()
        waiting.remove(at)
    return plan


def _improve(plan: _Plan, effort: int) -> _Plan:
    """Make the first change that helps until none does, or the effort is spent."""
    rank, changes = _rank(plan), _list_changes(plan)
    while effort > 0 and (change := next(changes, None)) is not None:
        effort -= sum(map(len, change.values()))
        changed = [
            _replay(timeline.device, change[number]) if number in change else timeline
            for number, timeline in enumerate(plan)
        ]
        if (better := _rank(changed)) < rank:
            plan, rank, changes = changed, better, _list_changes(changed)
    return plan


def _rank(plan: _Plan) -> tuple[float, int, int, float]:
    """The cost, and how many devices end last: of two, one has to be relieved first."""
    price, loads, total = _measure(plan)
    late = _get_makespan(plan) - 10**-DIGITS
    return price, sum(timeline.end > late for timeline in plan), loads, total


def _replay(device: Device, order: Iterable[_Piece]) -> _Timeline:
    """A timeline in this order; it never ends if a piece has no place in it."""
    timeline = _Timeline(device)
    for piece in order:
        if (step := timeline.offer(piece)) is None:
            timeline.end = math.inf
            break
        timeline.take(step)
    return timeline


def _list_changes(plan: _Plan) -> Iterator[Mapping[int, Sequence[_Piece]]]:
    """Other orders of one device or two, those that relieve the device that ends last first."""
    orders = [[step.piece for step in timeline.steps] for timeline in plan]
    room = [
        _get_makespan(plan) * timeline.device.lanes - sum(map(_least, order))
        for timeline, order in zip(plan, orders, strict=True)
    ]
    for source in sorted(range(len(plan)), key=lambda number: -plan[number].end):
        yield from _move(orders, source, room)
        yield from _exchange(orders, source, room)


def _move(
    orders: Sequence[list[_Piece]], source: int, room: Sequence[float]
) -> Iterator[dict[int, list[_Piece]]]:
    for at, piece in enumerate(orders[source]):
        rest = orders[source][:at] + orders[source][at + 1 :]
        for to in range(len(rest) + 1):
            if to != at:
                yield {source: [*rest[:to], piece, *rest[to:]]}
        for other, order in enumerate(orders):
            if other != source and _least(piece) < room[other]:
                for to in range(len(order) + 1):
                    yield {source: rest, other: [*order[:to], piece, *order[to:]]}


def _exchange(
    orders: Sequence[list[_Piece]], source: int, room: Sequence[float]
) -> Iterator[dict[int, list[_Piece]]]:
    here = orders[source]
    for at, piece in enumerate(here):
        for other, order in enumerate(orders):
            for to, theirs in enumerate(order):
                more = _least(piece) - _least(theirs)
                if other != source and -room[source] < more < room[other]:
                    changed = [*here[:at], theirs, *here[at + 1 :]]
                    yield {source: changed, other: [*order[:to], piece, *order[to + 1 :]]}


def _least(piece: _Piece) -> float:
    return piece.swap + piece.work


def _list_steps(plan: _Plan) -> list[_Step]:
    return [step for timeline in plan for step in timeline.steps]


def _follow(solution: Solution, tasks: Sequence[Task], devices: Sequence[Device]) -> _Plan:
    plan = [_Timeline(device) for device in devices]
    for begun in solution.begun:
        step = plan[begun.device].offer(_cut(tasks[begun.task], begun.parts)[0], begun.lane)
        assert step is not None, "the solver has broken a rule"
        plan[begun.device].take(step)
    return plan


def _list_placements(plan: _Plan) -> Iterator[Placement]:
    for timeline in plan:
        for piece, lane, start, load, _ in timeline.steps:
            yield Placement(
                key=piece.task.key,
                device=timeline.device.name,
                lane=lane,
                start=start,
                load_seconds=load,
                work_seconds=piece.work,
                share=1 / piece.parts,
                memory_bytes=piece.task.memory_bytes,
                swapped=load < piece.task.load_seconds,
            )
