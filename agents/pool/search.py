"""The search for a good schedule: lists, moves and exchanges, and cuts. Neither chance nor a clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from .devices import Device
from .exact import Solution, count_lanes
from .tasks import Placement, Task

__all__ = [
    "Plan",
    "follow_solution",
    "get_makespan",
    "list_placements",
    "measure_plan",
    "search_plan",
]

EFFORT = 15_000  # steps that one search may try, about 0.05 s
GLANCE = 750  # and a search that only shows whether a further one is worth it
AHEAD = 8  # pieces among which the one that waits least begins
ROUNDS = 5  # beginnings anew, with what ended last brought forward
HOPE = 1.2  # a cut that costs more than this times the whole, at a glance, is given up
DIGITS = 9  # of a second: smaller differences are rounding


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


Plan = list[_Timeline]
_Cost = tuple[float, int, float]


def measure_plan(plan: Plan) -> _Cost:
    """What is minimized, one after the other."""
    return (
        round(get_makespan(plan) + sum(timeline.added for timeline in plan), DIGITS),
        sum(timeline.loads for timeline in plan),
        round(sum(timeline.total for timeline in plan), DIGITS),
    )


def get_makespan(plan: Plan) -> float:
    """When the last piece ends."""
    return max(timeline.end for timeline in plan)


def search_plan(tasks: Sequence[Task], devices: Sequence[Device], bound: float) -> Plan:
    """The cheaper of two plans: with every task whole, and with some of them split."""
    plan = _optimize([piece for task in tasks for piece in _cut(task, 1)], devices)
    price = measure_plan(plan)[0]
    cuts: list[tuple[_Cost, list[_Piece]]] = []
    for pieces in _list_cuts(tasks, devices, gain=price - bound):
        first = _spread(sorted(pieces, key=lambda piece: -piece.length), devices)
        cuts.append((measure_plan(_improve(first, GLANCE)), pieces))
    cost, pieces = min(cuts, key=lambda cut: cut[0], default=((math.inf, 0, 0.0), []))
    if cost[0] > price * HOPE:
        return plan
    return min(plan, _optimize(pieces, devices), key=measure_plan)


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


def _optimize(pieces: Sequence[_Piece], devices: Sequence[Device]) -> Plan:
    """Improve several beginnings, then others with what ended last brought forward."""
    plans = [_improve(_spread(order, devices), EFFORT // 3) for order in _sort(pieces)]
    best = plan = min(plans, key=measure_plan)
    order = [step.piece for step in sorted(_list_steps(plan), key=attrgetter("start"))]
    rounds = EFFORT // (2 * len(pieces) * (AHEAD + len(devices)) + 1)
    for _ in range(min(ROUNDS, rounds)):
        for step in sorted(_list_steps(plan), key=_GET_END)[-2:]:
            at = order.index(step.piece)
            order.insert(at // 2, order.pop(at))
        plan = _improve(_spread(order, devices), EFFORT // ROUNDS)
        best = min(best, plan, key=measure_plan)
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


def _spread(order: Sequence[_Piece], devices: Sequence[Device]) -> Plan:
    """Place pieces about in order, those that must be last in their turn or after all others."""
    plan = _begin(sorted(order, key=lambda piece: piece.task.last), devices)
    assert plan is not None, "a piece has no place"
    other = _begin(order, devices) if any(piece.task.last for piece in order) else None
    return plan if other is None else min(plan, other, key=measure_plan)


def _begin(order: Sequence[_Piece], devices: Sequence[Device]) -> Plan | None:
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


def _improve(plan: Plan, effort: int) -> Plan:
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


def _rank(plan: Plan) -> tuple[float, int, int, float]:
    """The cost, and how many devices end last: of two, one has to be relieved first."""
    price, loads, total = measure_plan(plan)
    late = get_makespan(plan) - 10**-DIGITS
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


def _list_changes(plan: Plan) -> Iterator[Mapping[int, Sequence[_Piece]]]:
    """Other orders of one device or two, those that relieve the device that ends last first."""
    orders = [[step.piece for step in timeline.steps] for timeline in plan]
    room = [
        get_makespan(plan) * timeline.device.lanes - sum(map(_least, order))
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


def _list_steps(plan: Plan) -> list[_Step]:
    return [step for timeline in plan for step in timeline.steps]


def follow_solution(solution: Solution, tasks: Sequence[Task], devices: Sequence[Device]) -> Plan:
    """The plan that CP-SAT's solution stands for, with every piece as early as it can be."""
    plan = [_Timeline(device) for device in devices]
    for begun in solution.begun:
        step = plan[begun.device].offer(_cut(tasks[begun.task], begun.parts)[0], begun.lane)
        assert step is not None, "the solver has broken a rule"
        plan[begun.device].take(step)
    return plan


def list_placements(plan: Plan) -> Iterator[Placement]:
    """What a plan places where, device by device."""
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
