"""Which lane loads which weights, and when: the shortest schedule that is found, always the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ...retrieval import InputError
from .devices import Device
from .exact import Solution, bound_makespan, count_lanes, solve_exactly

__all__ = ["Placement", "Schedule", "Task", "make_schedule"]

EXACT_UP_TO = 10  # tasks; benchmarks/load_plan.py tells how many instances are proven
EFFORT = 15_000  # steps that a search may try
AHEAD = 8  # pieces among which the one that waits least begins
ROUNDS = 5  # beginnings anew, with what ended last brought forward
DIGITS = 9  # of a second; smaller differences are rounding


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
    """`exact`: it is proven that, to a millisecond, no other costs less."""
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

    A search comes first. Again and again the piece begins that has to wait least; among equals the
    longest, or the one that takes most memory for longest, or one of the longest family. Then pieces are
    moved and exchanged as long as that helps. Then the task with the longest piece is cut into one part
    more, step by step, and the cheapest step improved in the same way. With up to `exact_up_to` tasks
    OR-tools, if installed, goes on until nothing better can exist or a fixed effort is spent. Neither
    chance nor the clock has a part in it.

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
        solution = solve_exactly(known, devices, at_most=_cost(plan)[0], bound=bound)
        if solution is not None:
            plan, proven = min(_follow(solution, known, devices), plan, key=_cost), solution.proven
    return Schedule(
        placements=_list_placements(plan),
        method="exact" if proven else "heuristic",
        lower_bound=min(bound, _get_makespan(plan)),
    )


def _check_memory(tasks: Iterable[Task], devices: Sequence[Device]) -> None:
    largest = max(devices, key=lambda device: device.memory_bytes)
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
        return best

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
        free -= sum(step.piece.task.memory_bytes for step in busy)
        if free >= 0:
            return self._now
        for step in sorted(busy, key=_get_end):
            free += step.piece.task.memory_bytes
            if free >= 0:
                return step.end
        return math.inf

    def _may_follow(self, piece: _Piece, before: _Step) -> bool:
        if before.piece.task.last and not piece.task.last:
            return False
        here = (step for step in self.steps if step.lane == before.lane)
        return piece.parts == 1 or all(step.piece.task is not piece.task for step in here)


_Plan = list[_Timeline]


def _get_end(step: _Step) -> float:
    return step.end


def _get_makespan(plan: _Plan) -> float:
    return max(timeline.end for timeline in plan)


def _cost(plan: _Plan) -> tuple[float, int, float]:
    """What is minimized, one after the other."""
    return (
        round(_get_makespan(plan) + sum(timeline.added for timeline in plan), DIGITS),
        sum(timeline.loads for timeline in plan),
        round(sum(timeline.total for timeline in plan), DIGITS),
    )


def _search(tasks: Sequence[Task], devices: Sequence[Device], bound: float) -> _Plan:
    """The cheaper of two plans: with every task whole, and with some of them split."""
    plan = _optimize([piece for task in tasks for piece in _cut(task, 1)], devices)
    price = _cost(plan)[0]
    cuts = [
        (_cost(_improve(_spread(_sort_by_length(pieces), devices), EFFORT // 20)), pieces)
        for pieces in _list_cuts(tasks, devices, most=price - bound)
    ]
    cost, pieces = min(cuts, key=lambda cut: cut[0], default=((math.inf, 0, 0.0), []))
    if cost[0] > HOPE * price:
        return plan
    return min(plan, _optimize(pieces, devices), key=_cost)
HOPE = 1.02

def _sort_by_length(pieces):
    return sorted(pieces, key=lambda piece: -piece.length)

def _list_cuts(
    tasks: Sequence[Task], devices: Sequence[Device], *, most: float
) -> Iterator[list[_Piece]]:
    """Cut the task with the longest pieces into one part more while the added loads may pay."""
    limits = {task.key: count_lanes(task, devices) if task.splittable else 1 for task in tasks}
    parts = dict.fromkeys(limits, 1)
    effort = EFFORT
    while effort > 0 and (open_ := [task for task in tasks if parts[task.key] < limits[task.key]]):
        longest = max(open_, key=lambda task: _cut(task, parts[task.key])[0].length)
        parts[longest.key] += 1
        if sum(task.load_seconds * (parts[task.key] - 1) for task in tasks) >= most:
            return
        pieces = [piece for task in tasks for piece in _cut(task, parts[task.key])]
        yield pieces
        effort -= EFFORT // 20 + _toll(pieces, devices)


def _toll(pieces, devices):
    return len(pieces) * (AHEAD + len(devices))


def _optimize(pieces: Sequence[_Piece], devices: Sequence[Device]) -> _Plan:
    """Improve several beginnings and the best one's followers; the cheapest of all."""
    plans = [_improve(_spread(order, devices), EFFORT // 3) for order in _sort(pieces)]
    best = plan = min(plans, key=_cost)
    order = [s.piece for s in sorted((s for t in plan for s in t.steps), key=lambda s: s.start)]
    for _ in range(min(ROUNDS, EFFORT // 2 // _toll(pieces, devices))):
        for step in sorted((s for t in plan for s in t.steps), key=lambda s: -s.end)[:2]:
            at = order.index(step.piece)
            order.insert(at // 2, order.pop(at))
        plan = _improve(_spread(order, devices), EFFORT // ROUNDS)
        best = min(best, plan, key=_cost)
    return best


def _sort(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """The longest first, or what takes most memory for longest, or the longest family."""
    families = Counter[str]()
    for piece in pieces:
        families[piece.task.family or piece.task.key] += piece.length
    longest = sorted(pieces, key=lambda piece: -piece.length)
    yield longest
    yield sorted(pieces, key=lambda piece: -piece.length * piece.task.memory_bytes)
    names = [piece.task.family or piece.task.key for piece in longest]
    yield sorted(
        longest,
        key=lambda piece: (
            -families[piece.task.family or piece.task.key],
            piece.task.family or piece.task.key,
        ),
    )


def _spread(order: Sequence[_Piece], devices: Sequence[Device]) -> _Plan:
    """Place pieces in about this order, those that must be last where they are or at the end."""
    plan = _begin(sorted(order, key=lambda piece: piece.task.last), devices)
    assert plan is not None, "a piece fits nowhere"
    other = _begin(order, devices) if any(piece.task.last for piece in order) else None
    return plan if other is None else min(plan, other, key=_cost)


def _begin(order: Sequence[_Piece], devices: Sequence[Device]) -> _Plan | None:
    """Begin, again and again, the one of the next pieces that waits least."""
    plan, waiting = [_Timeline(device) for device in devices], list(range(len(order)))
    offered: list[dict[int, _Step | None]] = [{} for _ in devices]
    while waiting:
        offers = list[tuple[float, int, float, int, _Step]]()
        for number, (timeline, known) in enumerate(zip(plan, offered, strict=True)):
            for at in waiting[:AHEAD]:
                piece = order[at]
                if piece.task.last != order[waiting[0]].task.last:
                    continue
                if at not in known:
                    known[at] = timeline.offer(piece)
                step = known[at]
                if step is not None and step.end < math.inf:
                    offers.append(
                        (
                            step.start + step.load - piece.task.load_seconds,
                            at,
                            step.end,
                            number,
                            step,
                        )
                    )
        if not offers:
            return None
        _, at, _, number, step = min(offers)
        plan[number].take(step)
        offered[number].clear()
        waiting.remove(at)
    return plan


def _improve(plan: _Plan, effort: int) -> _Plan:
    """Make the first change that helps, until none does or the effort is spent."""
    rank, changes = _rank(plan), _list_changes(plan)
    while effort > 0 and (change := next(changes, None)) is not None:
        effort -= sum(map(len, change.values()))
        changed = [
            _replay(timeline, change[number]) if number in change else timeline
            for number, timeline in enumerate(plan)
        ]
        if (better := _rank(changed)) < rank:
            plan, rank, changes = changed, better, _list_changes(changed)
    return plan


def _rank(plan: _Plan) -> tuple[float, int, int, float]:
    """The cost, and how many devices end last: of two, one has to be relieved first."""
    price, loads, total = _cost(plan)
    end = _get_makespan(plan) - 10**-DIGITS
    return price, sum(timeline.end > end for timeline in plan), loads, total


def _replay(timeline: _Timeline, order: Iterable[_Piece]) -> _Timeline:
    """Another order on the same device; where a piece has no place, it never ends."""
    replayed = _Timeline(timeline.device)
    for piece in order:
        if (step := replayed.offer(piece)) is None:
            replayed.end = math.inf
            break
        replayed.take(step)
    return replayed


def _list_changes(plan: _Plan) -> Iterator[dict[int, list[_Piece]]]:
    """Other orders of one device or two: a piece moved, or exchanged for another."""
    orders = [[step.piece for step in timeline.steps] for timeline in plan]
    end = _get_makespan(plan)
    room = [
        end * timeline.device.lanes - sum(piece.swap + piece.work for piece in order)
        for timeline, order in zip(plan, orders, strict=True)
    ]
    for source in sorted(range(len(plan)), key=lambda number: -plan[number].end):
        here = orders[source]
        for at, piece in enumerate(here):
            rest = here[:at] + here[at + 1 :]
            for other, order in enumerate(orders):
                if other == source:
                    for to in range(len(here)):
                        if to != at:
                            yield {source: [*rest[:to], piece, *rest[to:]]}
                elif piece.swap + piece.work < room[other]:
                    for to in range(len(order) + 1):
                        yield {source: rest, other: [*order[:to], piece, *order[to:]]}
        for at, piece in enumerate(here):
            for other, order in enumerate(orders):
                if other != source:
                    for to, theirs in enumerate(order):
                        more = piece.swap + piece.work - theirs.swap - theirs.work
                        if -room[source] < more < room[other]:
                            yield {
                                source: [*here[:at], theirs, *here[at + 1 :]],
                                other: [*order[:to], piece, *order[to + 1 :]],
                            }


def _follow(solution: Solution, tasks: Sequence[Task], devices: Sequence[Device]) -> _Plan:
    plan = [_Timeline(device) for device in devices]
    for begun in solution.begun:
        step = plan[begun.device].offer(_cut(tasks[begun.task], begun.parts)[0], begun.lane)
        assert step is not None, "the solver has broken a rule"
        plan[begun.device].take(step)
    return plan


def _list_placements(plan: _Plan) -> tuple[Placement, ...]:
    placements = [
        Placement(
            key=step.piece.task.key,
            device=timeline.device.name,
            lane=step.lane,
            start=step.start,
            load_seconds=step.load,
            work_seconds=step.piece.work,
            share=1 / step.piece.parts,
            memory_bytes=step.piece.task.memory_bytes,
            swapped=step.load < step.piece.task.load_seconds,
        )
        for timeline in plan
        for step in timeline.steps
    ]
    return tuple(sorted(placements, key=lambda placement: placement.start))
