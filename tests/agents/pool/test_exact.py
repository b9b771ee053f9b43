"""The optimum is the optimum, and the search comes close to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from random import Random
from statistics import fmean

import pytest

from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.exact import bound_makespan, count_lanes
from expertmix.agents.pool.schedule import make_schedule
from expertmix.agents.pool.tasks import Schedule, Task

Cost = tuple[float, int, float]
Lane = tuple[int, int]


@pytest.fixture(autouse=True)
def solver(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("ortools.sat.python.cp_model", reason="OR-tools is not installed")


def draw(random: Random, number: int, *, splittable: int) -> list[Task]:
    """Whole seconds, so that sums are the same whoever adds them."""
    return [
        Task(
            key=f"task-{index}",
            load_seconds=random.randint(1, 9),
            work_seconds=random.choice([12, 24, 36, 60, 96]),
            memory_bytes=random.randint(2, 9),
            family=random.choice([None, "llama"]),
            swap_seconds=random.choice([None, 1.0]),
            splittable=index < splittable,
            last=random.random() < 0.2,
        )
        for index in range(number)
    ]


def count_cost(schedule: Schedule, tasks: Sequence[Task]) -> Cost:
    loads = {task.key: task.load_seconds for task in tasks}
    added = sum(loads[p.key] * (1 - p.share) for p in schedule.placements)
    ends = sum(placement.end for placement in schedule.placements)
    return round(schedule.makespan + added, 6), schedule.loads, round(ends, 6)


def try_everything(tasks: Sequence[Task], devices: Sequence[Device]) -> Cost:
    """The least cost among all ways to cut, all orders and all lanes."""
    lanes = [(d, lane) for d, device in enumerate(devices) for lane in range(device.lanes)]
    counts = [range(1, len(lanes) + 1) if task.splittable else (1,) for task in tasks]
    best: Cost | None = None
    for parts in product(*counts):
        pieces = [at for at, count in enumerate(parts) for _ in range(count)]
        for order in set(permutations(pieces)):
            for chosen in product(lanes, repeat=len(order)):
                steps = list(zip(order, chosen, strict=True))
                if len(set(steps)) == len(steps):
                    cost = run(steps, tasks, parts, devices)
                    best = cost if best is None or (cost is not None and cost < best) else best
    assert best is not None
    return best


def run(
    steps: Sequence[tuple[int, Lane]],
    tasks: Sequence[Task],
    parts: Sequence[int],
    devices: Sequence[Device],
) -> Cost | None:
    """Place each piece as early as lane and memory allow, wherever there is a gap for it."""
    done: list[tuple[float, float, int, int]] = []  # start, end, device, bytes
    tails: dict[Lane, tuple[float, Task]] = {}
    loads = 0
    for at, lane in steps:
        task, device = tasks[at], devices[lane[0]]
        free, before = tails.get(lane, (0.0, None))
        if task.memory_bytes > device.memory_bytes or (before and before.last and not task.last):
            return None
        load = task.load_seconds
        if before and task.family and task.family == before.family and task.swap_seconds:
            load = min(load, task.swap_seconds)
        loads += load == task.load_seconds
        length = load + task.work_seconds / parts[at]
        here = [(s, e, m) for s, e, d, m in done if d == lane[0]]
        room = device.memory_bytes - task.memory_bytes
        start = next(t for t in find_starts(free, here) if fits(t, t + length, here, room))
        done.append((start, start + length, lane[0], task.memory_bytes))
        tails[lane] = (start + length, task)
    added = sum(task.load_seconds * (n - 1) for task, n in zip(tasks, parts, strict=True))
    ends = [end for _, end, _, _ in done]
    return round(max(ends) + added, 6), loads, round(sum(ends), 6)


def find_starts(free: float, here: Sequence[tuple[float, float, int]]) -> Iterator[float]:
    yield from sorted({free, *(end for _, end, _ in here if end > free)})


def fits(start: float, end: float, here: Sequence[tuple[float, float, int]], room: int) -> bool:
    moments = [start, *(s for s, _, _ in here if start < s < end)]
    return all(sum(m for s, e, m in here if s <= t < e) <= room for t in moments)


@pytest.mark.parametrize(
    ("lanes", "number", "splittable"),
    [((2,), 4, 0), ((2,), 3, 2), ((1, 1), 4, 1), ((1, 2), 3, 1), ((1, 1, 1), 3, 1), ((3,), 4, 0)],
)
def test_the_exact_schedule_is_the_best_of_all_that_there_are(
    lanes: tuple[int, ...], number: int, splittable: int
) -> None:
    for seed in range(8):
        random = Random(f"{lanes} {number} {seed}")
        memory = [10, *(random.choice([8, 10, 14]) for _ in lanes[1:])]
        devices = [
            Device(name=f"cuda:{index}", memory_bytes=size, lanes=lanes[index])
            for index, size in enumerate(memory)
        ]
        tasks = draw(random, number, splittable=splittable)
        schedule = make_schedule(tasks, devices)
        assert schedule.method == "exact"
        assert count_cost(schedule, tasks) == try_everything(tasks, devices)
        assert bound_makespan(tasks, devices) <= schedule.makespan
        assert all(schedule.memory_peak(d.name) <= d.memory_bytes for d in devices)


def test_the_search_comes_close_to_the_optimum() -> None:
    # Of 40 such instances 39 were proven: the gap was 1.2 % on average, 9.2 % at worst.
    gaps: list[float] = []
    for seed in range(8):
        random = Random(seed)
        devices = [
            Device(name=f"cuda:{index}", memory_bytes=random.choice([10, 14]), lanes=2)
            for index in range(1 + seed % 2)
        ]
        tasks = draw(random, 8, splittable=3)
        best = make_schedule(tasks, devices)
        if best.method == "exact":
            found = make_schedule(tasks, devices, exact_up_to=0)
            gaps.append(count_cost(found, tasks)[0] / count_cost(best, tasks)[0] - 1)
    assert len(gaps) >= 6
    assert fmean(gaps) < 0.03
    assert max(gaps) < 0.12


def test_the_order_of_the_tasks_does_not_matter() -> None:
    tasks = draw(Random(7), 6, splittable=3)
    devices = [Device(name="cuda:0", memory_bytes=12, lanes=2)]
    schedule = make_schedule(tasks, devices)
    assert schedule.method == "exact"
    assert make_schedule(tasks[::-1], devices) == schedule
    assert make_schedule([*tasks[3:], *tasks[:3]], devices) == schedule


def test_memory_is_counted_to_the_byte() -> None:
    odd = 7_516_192_769
    tasks = [
        Task(key=key, load_seconds=1, work_seconds=9, memory_bytes=size, splittable=False)
        for key, size in (("a", odd), ("b", 3 * odd), ("c", 4 * odd))
    ]
    full = Device(name="cuda:0", memory_bytes=4 * odd, lanes=2)
    assert make_schedule(tasks, [full]).makespan == 20
    assert make_schedule(tasks, [full]).method == "exact"
    short = Device(name="cuda:0", memory_bytes=4 * odd - 1, lanes=2)
    assert make_schedule(tasks[:2], [short]).makespan == 20


def test_without_or_tools_the_search_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    tasks = draw(Random(1), 4, splittable=2)
    devices = [Device(name="cuda:0", memory_bytes=12, lanes=2)]
    schedule = make_schedule(tasks, devices)
    assert schedule.method == "heuristic"
    assert schedule == make_schedule(tasks, devices, exact_up_to=0)


def test_the_bound_counts_what_cannot_run_side_by_side_without_a_solver() -> None:
    devices = [Device(name="cuda:0", memory_bytes=10, lanes=4)]
    tasks = [
        Task(key=key, load_seconds=1, work_seconds=4, memory_bytes=size)
        for key, size in (("a", 6), ("b", 6), ("c", 2))
    ]
    assert count_lanes(tasks[0], devices) == 4
    assert bound_makespan(tasks, devices) == 10
    assert bound_makespan(tasks[2:], devices) == 2
