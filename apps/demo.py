"""The demo: profile real small models, let them solve questions together, and say what that was worth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..agents import (
    Answer,
    Catalog,
    Policy,
    Pool,
    Profile,
    build_requests,
    is_correct,
    read_reply,
    recruit,
    vote,
)
from ..agents.pool.assembly import on_cuda
from ..graph import Result, RunFolder, Score
from ..retrieval import InputError, Question, read_questions
from .overviews import tabulate_plan, tabulate_profile
from .progress import PoolProgress
from .session import PanelSettings, plan_run, profile_experts, solve_into
from .tables import clean_text, tabulate_answers, tabulate_costs

__all__ = ["run_demo"]

K = 2  # three of the laptop pool's four experts share weights: a larger panel would hold clones
SEEDS = range(20)


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
    console.print(_compare(result, everyone, profile, catalog))
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

    with Pool(catalog, store=RunFolder(run).store, on_event=progress.show) as pool:
        return asyncio.run(work(pool))


def _compare(
    result: Result,
    everyone: Mapping[str, Mapping[str, Answer]],
    profile: Profile,
    catalog: Catalog,
) -> Table:
    """The panel next to each expert alone, other ways to recruit, chance and the oracle."""
    questions = [solution.question for solution in result]
    k = min(K, len(catalog))
    table = Table(
        title=f"Right answers on {len(questions)} questions that no profile has seen",
        title_justify="left",
    )
    for column in ("who", "calls each", "right", "share", "95 % interval"):
        table.add_column(column, justify="left" if column == "who" else "right")
    for alias, answers in everyone.items():
        right = sum(_is_right(answers[q.id], q) for q in questions)
        _add(table, alias, 1, Score(right=right, total=len(questions)))
    table.add_section()
    best = max(sorted(catalog), key=lambda alias: profile[alias].strength)
    chosen = sum(_is_right(everyone[best][q.id], q) for q in questions)
    _add(table, f"best on the references ({best})", 1, Score(right=chosen, total=len(questions)))
    skills = {solution.question.id: solution.skills for solution in result}
    top = _replay(questions, everyone, skills, profile, catalog, "top_k", k, 0)
    _add(table, f"vote of the best {k} on the references", k, top)
    drawn = [
        _replay(questions, everyone, skills, profile, catalog, "random", k, seed) for seed in SEEDS
    ]
    mean = sum(score.share for score in drawn) / len(drawn)
    table.add_row(
        f"vote of {k} at random, mean of {len(SEEDS)} draws", str(k), "", f"{mean:.3f}", ""
    )
    assert result.score is not None
    _add(table, f"[bold]the panel: {k} recruited by skill[/bold]", k, result.score)
    for other in (size for size in (1, 2, 3) if size != k and size <= len(catalog)):
        score = _replay(questions, everyone, skills, profile, catalog, "skill", other, 0)
        _add(table, f"the same with {other}", other, score)
    table.add_section()
    table.add_row("chance", "0", "", f"{result.chance or 0:.3f}", "")
    any_right = sum(any(_is_right(a[q.id], q) for a in everyone.values()) for q in questions)
    _add(
        table,
        "oracle: any expert right",
        len(catalog),
        Score(right=any_right, total=len(questions)),
    )
    return table


def _replay(
    questions: Sequence[Question],
    everyone: Mapping[str, Mapping[str, Answer]],
    skills: Mapping[str, Sequence[str]],
    profile: Profile,
    catalog: Catalog,
    policy: Policy,
    k: int,
    seed: int,
) -> Score:
    """What another policy would have scored with the very same answers."""
    chosen = recruit(skills, tuple(catalog), k=k, profile=profile, policy=policy, seed=seed)
    right = 0
    for question in questions:
        recruits = chosen[question.id]
        answers = [everyone[r.expert][question.id] for r in recruits]
        verdict = vote(question, answers, {r.expert: r.weight for r in recruits})
        right += is_correct(verdict.answer, question)
    return Score(right=right, total=len(questions))


def _is_right(answer: Answer, question: Question) -> bool:
    return is_correct(answer.answer, question)


def _add(table: Table, name: str, calls: int, score: Score) -> None:
    low, high = score.interval
    table.add_row(name, str(calls), str(score.right), f"{score.share:.3f}", f"{low:.3f}–{high:.3f}")
