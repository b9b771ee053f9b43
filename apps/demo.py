"""The demo: profile real small models, let them solve questions together, and say what that was worth."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..agents import Answer, Catalog, Expertise, Pool, build_requests, read_reply
from ..agents.pool.devices import on_cuda
from ..graph import RunFolder
from ..retrieval import InputError, Question, read_questions
from .comparison import tabulate_comparison
from .overviews import tabulate_plan, tabulate_profile
from .progress import PoolProgress
from .session import PanelSettings, plan_run, profile_experts, solve_into
from .tables import clean_text, tabulate_answers, tabulate_costs
from .timeline_picture import text_timeline

__all__ = ["run_demo"]

K = 2  # three of the laptop pool's four experts share weights: a larger panel would hold clones


def run_demo(
    examples: Path, pool: Path | None, out: Path, console: Console, progress: PoolProgress
) -> None:
    """Profile → solve → tables. Interrupted, it goes on where it was.

    Args:
        examples: Folder with `questions.jsonl`, `references.jsonl` and `pool.yaml`.
        pool: Another pool file than the examples' own.
        out: Where answers are kept; a second run asks nothing again.
        console: Where the tables go.
        progress: Watches the pool.

    Raises:
        InputError: the examples are not there, or a model of the pool cannot be used.
    """
    if not (examples / "questions.jsonl").is_file():
        raise InputError(
            f"no questions.jsonl in {examples}: run the demo in a clone of the project, "
            "or name the folder with --examples"
        )
    started = time.perf_counter()
    if pool is None and on_cuda():
        console.print(
            f"There is a GPU here: `expertmix demo --pool {examples / 'pool-gpu.yaml'}` runs the same "
            "demo on models from the Hugging Face hub. Going on with the laptop's pool."
        )
    catalog = Catalog.load(pool or examples / "pool.yaml")
    questions = read_questions(examples / "questions.jsonl")
    references = read_questions(examples / "references.jsonl")
    _show_pool(catalog, console)

    console.rule("1. Profile: who is good at what?", align="left")
    console.print(f"{len(references)} labelled questions, every expert answers all of them.")
    profile, profiling = profile_experts(out / "profile", references, catalog, progress.show)
    console.print(tabulate_profile(profile))

    console.rule("2. Solve: each question goes to the experts its skills ask for", align="left")
    settings = PanelSettings(k=min(K, len(catalog)), profile=out / "profile")
    console.print(tabulate_plan(plan_run(questions, catalog, settings)))
    result = solve_into(out / "run", questions, catalog, settings, progress.show)
    console.print(tabulate_answers(result))
    console.print(tabulate_costs(result.ledger))

    console.rule("3. What was that worth?", align="left")
    everyone = _ask_everyone(out / "run", questions, catalog, progress)
    k = min(K, len(catalog))
    expertise = Expertise.of_profile(profile, tuple(catalog), k=k)
    sizes = [size for size in (1, 2, 3) if size <= len(catalog)]
    console.print(tabulate_comparison(result, everyone, expertise, k=k, calls=sizes))
    console.rule("4. What ran when", align="left")
    console.print(text_timeline(RunFolder(out / "run").read_timeline()))
    seconds = time.perf_counter() - started
    console.print(
        f"Profiling took {profiling['calls']} calls and {profiling['completion_tokens']:,} generated "
        f"tokens, solving {result.ledger['calls']} and {result.ledger['completion_tokens']:,}. "
        f"This took {seconds / 60:.1f} minutes in all. Everything is kept in {clean_text(str(out))}."
    )
    for weights, why in progress.failures.items():
        told = f"[red]{clean_text(weights)} failed:[/red] {clean_text(why, 1000)}"
        console.print(told, soft_wrap=True)


def _show_pool(catalog: Catalog, console: Console) -> None:
    console.print(f"{len(catalog)} experts:")
    for spec in catalog.values():
        extras = [spec.style]
        extras += ["adapter"] if getattr(spec, "adapter", None) else []
        extras += ["persona"] if spec.persona else []
        extras += ["merged adapter"] if getattr(spec, "merge", None) else []
        if split := getattr(spec, "split", None):
            extras.append(f"in {split.experts} experts, {split.top_k} of them on")
        weights = getattr(spec, "weights", None)
        name = next(iter(weights.model_dump().values())) if weights else spec.engine
        console.print(f"  [bold]{spec.alias}[/bold]: {name} ({', '.join(extras)})")


def _ask_everyone(
    run: Path, questions: Sequence[Question], catalog: Catalog, progress: PoolProgress
) -> dict[str, dict[str, Answer]]:
    """Every expert's answer to every question; what the panel already asked is not asked again."""

    async def work(pool: Pool) -> dict[str, dict[str, Answer]]:
        async def one(alias: str) -> dict[str, Answer]:
            spec = catalog[alias]
            requests = build_requests(
                questions, sampling=spec.sampling.to_sampling(), style=spec.style
            )
            replies = await pool.generate(alias, requests, stage="comparison")
            pairs = zip(replies, questions, strict=True)
            return {q.id: read_reply(reply, q, alias) for reply, q in pairs}

        given = await asyncio.gather(*map(one, catalog))
        return dict(zip(catalog, given, strict=True))

    with Pool(
        catalog, store=RunFolder(run).store, on_event=progress.show, patience=math.inf
    ) as pool:
        return asyncio.run(work(pool))
