"""Placing tasks on devices: as good as can be for few, well enough for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from ...retrieval import InputError
from .devices import Device
from .exact import bound_makespan, solve_exactly
from .search import follow_solution, get_makespan, list_placements, measure_plan, search_plan
from .tasks import Schedule, Task

__all__ = ["make_schedule"]

EXACT_UP_TO = 10  # tasks; benchmarks/load_plan.py tells how often the optimum is proven
MILLISECOND = 1e-3


def make_schedule(
    tasks: Iterable[Task],
    devices: Sequence[Device],
    *,
    exact_up_to: int = EXACT_UP_TO,
    least_gain: float = 0.0,
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
        least_gain: Seconds that it must be able to save, as far as the lower bound tells.

    Raises:
        InputError: a task fits no device.
    """
    known = sorted(tasks, key=lambda task: task.key)
    assert len({task.key for task in known}) == len(known), "two tasks have the same key"
    _check_memory(known, devices)
    bound = bound_makespan(known, devices)
    plan = search_plan(known, devices, bound)
    gap = measure_plan(plan)[0] - bound  # nothing can cost less than the bound
    proven = gap <= MILLISECOND
    if not proven and gap >= least_gain and len(known) <= exact_up_to:
        solution = solve_exactly(known, devices, at_most=measure_plan(plan)[0], bound=bound)
        if solution is not None:
            plan = min(follow_solution(solution, known, devices), plan, key=measure_plan)
            proven = solution.proven
    return Schedule(
        placements=tuple(sorted(list_placements(plan), key=attrgetter("start"))),
        method="exact" if proven else "heuristic",
        lower_bound=min(bound, get_makespan(plan)),
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
