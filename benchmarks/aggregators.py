"""Which small model merges drafts best? One right draft among three, the others wrong.

    python benchmarks/aggregators.py [--json] [--quick] [--cases N] [--context TOKENS]

Drafts are recorded answers of real models to MMLU-Pro (profile questions) and GSM8K, out of `../shared/data`; a
recording that was cut short ends in its answer, as `ReplayEngine` has it. Candidates are the experts of
`examples/pool.yaml` that write, with real weights through vLLM on the CPU. Copying a draft at random is right
in a third of the cases, and a vote in fewer, so whoever is near a third has merged nothing. Keys:
`tasks` → task → `cases`, `chance`, `vote`, `dropped`, `chosen`, `candidates` → alias → `right`, `total`,
`share`, `low`, `high`, `unreadable`, `too_long`, `failed`, `crowded`, `followed`; `loads`, `seconds`; or
`skipped`, with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from expertmix.agents import Answer, Catalog, Pool, build_requests, read_reply
from expertmix.agents.aggregator_cases import Cases, build_cases
from expertmix.agents.aggregator_scores import AggregatorScores
from expertmix.agents.aggregators import benchmark_aggregators
from expertmix.agents.engines import Sampling
from expertmix.agents.engines.replay import ReplayEngine
from expertmix.retrieval import Question

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
TASKS = {"mmlu_pro": "outputs_profile.parquet", "gsm8k_models": "outputs.parquet"}
SEED = 0
AUTHORS = 12
"""Recorded models per task, drawn by the seed; each costs a pass over the table."""


def make_catalog(context: int, quick: bool) -> Catalog:
    """The demo's experts that write, with room for three drafts and for an answer."""
    content = Catalog.load(ROOT / "examples" / "pool.yaml").file.model_dump(mode="json")
    experts = [row for row in content["experts"] if row["style"] == "reason"]
    for row in experts:
        row["context"] = context
        row["sampling"]["max_tokens"] = 32 if quick else 96
    return Catalog.from_dict({"experts": experts, "max_resident": 1}, base=ROOT / "examples")


async def make_cases(task: str, number: int) -> Cases:
    """Cases of as many questions as asked for, drawn by the seed among those that give one."""
    questions = await asyncio.to_thread(_read_questions, task)
    authors = await asyncio.to_thread(_read_authors, task)
    answers: list[Answer] = []
    for author in authors:
        engine = ReplayEngine(author, DATA / task, author)
        await engine.start()
        replies = await engine.generate(build_requests(questions, sampling=Sampling()))
        for question, reply in zip(questions, replies, strict=True):
            answers.append(read_reply(reply, question, author))
        await engine.close()
    cases = build_cases(questions, answers, seed=SEED)
    drawn = random.Random(SEED).sample(cases.cases, min(number, len(cases.cases)))
    return Cases(cases=tuple(drawn), wrong=cases.wrong, dropped=cases.dropped)


def _read_questions(task: str) -> list[Question]:
    from pyarrow import parquet

    kept = parquet.read_table(DATA / task / TASKS[task], columns=["question_id"])
    with_text = set(kept.column("question_id").to_pylist())
    columns = ["question_id", "question", "options", "gold"]
    rows = parquet.read_table(DATA / task / "questions.parquet", columns=columns).to_pylist()
    kind = {} if task == "mmlu_pro" else {"kind": "number"}
    rows = [row for row in rows if row["question_id"] in with_text]
    return [Question.from_json({**row, "id": row["question_id"], **kind}) for row in rows]


def _read_authors(task: str) -> list[str]:
    from pyarrow import parquet

    column = parquet.read_table(DATA / task / TASKS[task], columns=["model"]).column("model")
    return random.Random(SEED).sample(sorted(column.unique().to_pylist()), AUTHORS)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Benchmark all tasks at once, so that each weights are loaded once."""
    number = arguments.cases or (4 if arguments.quick else 24)
    started = time.perf_counter()
    cases = [await make_cases(task, number) for task in TASKS]
    async with Pool(make_catalog(arguments.context, arguments.quick)) as pool:
        scores = await asyncio.gather(
            *(benchmark_aggregators(pool, list(pool.catalog), c, {}, seed=SEED) for c in cases)
        )
        loads = len(pool.ledger.loads)
    return {
        "tasks": {task: _tell(s) for task, s in zip(TASKS, scores, strict=True)},
        "loads": loads,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _tell(scores: AggregatorScores) -> dict[str, Any]:
    candidates: dict[str, Any] = {}
    for alias, score in scores.candidates.items():
        low, high = score.interval()
        counts = ("unreadable", "too_long", "failed", "crowded", "followed")
        candidates[alias] = {
            "right": score.right,
            "total": score.total,
            "share": round(score.right / score.total, 3) if score.total else None,
            "low": round(low, 3),
            "high": round(high, 3),
            **{name: getattr(score, name) for name in counts},
            **({"reason": score.reason} if score.reason else {}),
        }
    usable = any(score.usable for score in scores.candidates.values())
    return {
        "cases": scores.number,
        "chance": round(scores.chance, 3),
        "vote": round(scores.vote, 3),
        "dropped": dict(scores.dropped),
        "chosen": scores.choose() if usable else None,
        "candidates": candidates,
    }


def show(figures: dict[str, Any]) -> None:
    """Print a table for people."""
    for task, told in figures["tasks"].items():
        print(
            f"{task}: {told['cases']} cases (1 right, 2 wrong); a draft at random {told['chance']:.3f}, "
            f"a vote {told['vote']:.3f}; chosen: {told['chosen']}; questions dropped {told['dropped']}"
        )
        for alias, row in told["candidates"].items():
            share = "-" if row["share"] is None else f"{row['share']:.3f}"
            print(
                f"{alias:>10}: {row['right']:4.0f} of {row['total']:3.0f} right, {share} "
                f"[{row['low']:.3f}, {row['high']:.3f}]; unreadable {row['unreadable']}, too long "
                f"{row['too_long']}, failed {row['failed']}; followed the two that agree "
                f"{row['followed']} of {row['crowded']} {row.get('reason', '')}".rstrip()
            )
        if all(row["low"] <= told["chance"] for row in told["candidates"].values()):
            print("            no candidate is better than a draft drawn at random")
    print(
        f"{figures['seconds']:.0f} s, {figures['loads']} loads; intervals 95 %, shrunk towards chance by 5 cases"
    )


def find_obstacle(paths: Sequence[Path]) -> str | None:
    """Why nothing can be measured here, if nothing can."""
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        return f"no recorded answers: {', '.join(missing)} not in ../shared/data"
    absent = [name for name in ("pyarrow", "vllm") if find_spec(name) is None]
    return f"{absent[0]} is not installed" if absent else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="4 cases a task, shorter answers")
    parser.add_argument("--cases", type=int, help="cases a task (24, quick 4)")
    parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer")
    arguments = parser.parse_args()
    obstacle = find_obstacle([DATA / task / name for task, name in TASKS.items()])
    if obstacle is not None:
        print(json.dumps({"skipped": obstacle}) if arguments.json else f"skipped: {obstacle}")
        return
    figures = asyncio.run(measure(arguments))
    print(json.dumps(figures)) if arguments.json else show(figures)


if __name__ == "__main__":
    main()
