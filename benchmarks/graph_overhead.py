"""What the graph and the pool cost per question when the models cost nothing.

    python benchmarks/graph_overhead.py [--json] [--quick]

Sixteen scripted experts that answer at once, three recruited per question, one batch. The figures are CPU
time of the whole process per question, so that a busy machine does not change them. Keys:
`ms_per_question_1k`, `_10k`, `_100k`, `mb_100k` (growth of resident memory); `--quick` leaves 100,000 out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import psutil

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import make_resources, run_batch
from expertmix.retrieval import Question

EXPERTS = 16


async def measure(number: int) -> tuple[float, float]:
    """CPU milliseconds per question, and megabytes by which the process grew."""
    questions = [
        Question(
            id=str(i),
            text=f"Which number is it, {i}?",
            options=(f"one of {i}", f"two of {i}", f"three of {i}"),
            kind="choice",
        )
        for i in range(number)
    ]
    engines = {
        f"expert-{i:02d}": ScriptedEngine(str(i), {"*": "Answer: (B)"}, keep_requests=False)
        for i in range(EXPERTS)
    }
    before = psutil.Process().memory_info().rss
    async with Pool.from_engines(engines) as pool:
        started = time.process_time()
        solutions = await run_batch(questions, make_resources(pool, k=3))
        seconds = time.process_time() - started
    assert all(solution.answer == "B" for solution in solutions)
    return seconds / number * 1e3, (psutil.Process().memory_info().rss - before) / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="leave out 100,000 questions")
    arguments = parser.parse_args()
    asyncio.run(measure(100))  # imports and caches
    sizes = {"1k": 1_000, "10k": 10_000} | ({} if arguments.quick else {"100k": 100_000})
    figures: dict[str, float] = {}
    for name, number in sizes.items():
        milliseconds, megabytes = asyncio.run(measure(number))
        figures[f"ms_per_question_{name}"] = round(milliseconds, 4)
        if name == "100k":
            figures["mb_100k"] = round(megabytes, 1)
        if not arguments.json:
            print(
                f"{number:>8,} questions: {figures[f'ms_per_question_{name}']:.3f} ms CPU per question"
            )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
