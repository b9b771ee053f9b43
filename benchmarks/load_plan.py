"""How good the load plan's schedules are, and which solver should prove it.

    python benchmarks/load_plan.py [--json] [--quick]

Random instances whose memory, families and splits matter, solved by the search of `make_schedule`, by
OR-tools' CP-SAT (`agents/pool/exact.py`, a fixed effort) and by SciPy's HiGHS (`load_plan_milp.py`, two
seconds), the latter two with the same bounds. A solver that is not installed is left out. Keys:
`cpsat_seconds`, `milp_seconds` (mean, limit included), `cpsat_proven`, `milp_proven` (share of the
instances), `heuristic_seconds` (mean), `heuristic_gap_mean`, `heuristic_gap_worst` (cost of the search's
schedule ÷ optimum - 1, where CP-SAT has proven one), `heuristic_seconds_200` (200 tasks, 8 devices of two
lanes, mean); `--quick` takes one instance of each size instead of five.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from random import Random
from statistics import fmean

from load_plan_milp import solve_by_milp

from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.schedule import make_schedule
from expertmix.agents.pool.tasks import Schedule, Task

SIZES = (4, 6, 8, 10, 12)
SHAPES = ((1, 2), (2, 1), (2, 2), (4, 1))  # devices, lanes of each
SECONDS = 2.0
NEAR = 0.05  # seconds by which two optima may differ: ticks here, tolerances there


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One instance."""

    heuristic_seconds: float
    cpsat_seconds: float | None = None
    cpsat_proven: bool = False
    milp_seconds: float | None = None
    milp_proven: bool = False
    gap: float | None = None


def draw_instance(
    random: Random, number: int, devices: int, lanes: int
) -> tuple[list[Task], list[Device]]:
    """Models of 2 to 9 GiB on devices of 10 to 14, so that not all of them run side by side."""
    machines = [
        Device(name=f"cuda:{index}", memory_bytes=random.choice((10, 10, 14)) << 30, lanes=lanes)
        for index in range(devices)
    ]
    return [draw_task(random, f"task-{index:03d}") for index in range(number)], machines


def draw_task(random: Random, key: str) -> Task:
    """Some need long, some can be split, some can replace each other, a few must be last."""
    family = random.choice((None, "llama", "qwen"))
    load = float(random.randint(2, 12))
    return Task(
        key=key,
        load_seconds=load,
        work_seconds=float(random.choice((random.randint(1, 20), random.randint(5, 60)))),
        memory_bytes=random.randint(2, 9) << 30,
        family=family,
        swap_seconds=max(1.0, load // 4),
        splittable=random.random() < 0.7,
        last=random.random() < 0.15,
    )


def measure(tasks: Sequence[Task], devices: Sequence[Device]) -> Figures:
    """Solve one instance every way that is installed."""
    found, heuristic_seconds = time_schedule(tasks, devices, exact_up_to=0)
    cost = count_cost(found, tasks)
    if find_spec("ortools") is None:
        return Figures(heuristic_seconds=heuristic_seconds)
    best, both_seconds = time_schedule(tasks, devices, exact_up_to=len(tasks))
    optimum, proven = count_cost(best, tasks), best.method == "exact"
    figures = Figures(
        heuristic_seconds=heuristic_seconds,
        cpsat_seconds=max(0.0, both_seconds - heuristic_seconds),
        cpsat_proven=proven,
        gap=cost / optimum - 1 if proven else None,
    )
    if find_spec("scipy") is None:
        return figures
    started = time.perf_counter()
    solved = solve_by_milp(tasks, devices, at_most=cost, bound=found.lower_bound, seconds=SECONDS)
    milp_seconds = time.perf_counter() - started
    milp_proven = solved is not None and solved[1]
    if solved is not None and solved[1] and proven:
        assert abs(solved[0] - optimum) < NEAR, f"{solved[0]} is not {optimum}"
    return replace(figures, milp_seconds=milp_seconds, milp_proven=milp_proven)


def time_schedule(
    tasks: Sequence[Task], devices: Sequence[Device], *, exact_up_to: int
) -> tuple[Schedule, float]:
    """A schedule, and the seconds it took."""
    started = time.perf_counter()
    schedule = make_schedule(tasks, devices, exact_up_to=exact_up_to)
    return schedule, time.perf_counter() - started


def count_cost(schedule: Schedule, tasks: Sequence[Task]) -> float:
    """The makespan, and the loads that splitting adds."""
    loads = {task.key: task.load_seconds for task in tasks}
    return schedule.makespan + sum(loads[p.key] * (1 - p.share) for p in schedule.placements)


def summarize(rows: Sequence[Figures]) -> dict[str, float]:
    """Means over instances; what was not measured is left out."""
    cpsat = [row.cpsat_seconds for row in rows if row.cpsat_seconds is not None]
    milp = [row.milp_seconds for row in rows if row.milp_seconds is not None]
    gaps = [row.gap for row in rows if row.gap is not None]
    figures = {"heuristic_seconds": fmean(row.heuristic_seconds for row in rows)}
    if cpsat:
        figures["cpsat_seconds"] = fmean(cpsat)
        figures["cpsat_proven"] = fmean(row.cpsat_proven for row in rows)
    if milp:
        figures["milp_seconds"] = fmean(milp)
        figures["milp_proven"] = fmean(row.milp_proven for row in rows)
    if gaps:
        figures["heuristic_gap_mean"] = fmean(gaps)
        figures["heuristic_gap_worst"] = max(gaps)
    return {key: round(value, 4) for key, value in figures.items()}


def print_row(name: str, figures: dict[str, float]) -> None:
    """One line of the table, with a dash for what was not measured."""
    columns = (
        ("cpsat_seconds", "9.2f"),
        ("cpsat_proven", "9.0%"),
        ("milp_seconds", "9.2f"),
        ("milp_proven", "9.0%"),
        ("heuristic_seconds", "9.3f"),
        ("heuristic_gap_mean", "9.1%"),
        ("heuristic_gap_worst", "9.1%"),
    )
    cells = [format(figures[key], form) if key in figures else f"{'-':>9}" for key, form in columns]
    print(f"{name:>16}" + "".join(cells), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="one instance of each size")
    arguments = parser.parse_args()
    if not arguments.json:
        heads = ("CP-SAT s", "proven", "MILP s", "proven", "search s", "gap", "worst")
        print(f"{'tasks, lanes':>16}" + "".join(f"{head:>9}" for head in heads))
    measure(*draw_instance(Random(0), 4, 2, 1))  # imports
    rows: list[Figures] = []
    for number in SIZES:
        for devices, lanes in SHAPES:
            for seed in range(1 if arguments.quick else 5):
                random = Random(f"{number} {devices} {lanes} {seed}")
                rows.append(measure(*draw_instance(random, number, devices, lanes)))
            if not arguments.json:
                part = rows[-(1 if arguments.quick else 5) :]
                print_row(f"{number}, {devices} x {lanes}", summarize(part))
    large = [
        time_schedule(*draw_instance(Random(seed), 200, 8, 2), exact_up_to=0)[1]
        for seed in range(3)
    ]
    figures = {**summarize(rows), "heuristic_seconds_200": round(fmean(large), 3)}
    if arguments.json:
        print(json.dumps(figures))
        return
    print_row("all", figures)
    print(f"200 tasks, 8 x 2: the search takes {figures['heuristic_seconds_200']:.2f} s")


if __name__ == "__main__":
    main()
