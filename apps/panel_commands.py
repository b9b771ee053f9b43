"""The commands that put a panel to work: `ask`, `solve`, `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..agents import AnswerStore, Catalog, PoolEvent
from ..graph import Result, RunFolder
from ..retrieval import InputError, Question, read_questions
from .console import measuring, open_stderr, print_json, resumable, show, tell_failures, watching
from .options import (
    AbstainOption,
    AdaptiveOption,
    AggregatorOption,
    CostOption,
    JsonOption,
    KOption,
    LimitOption,
    MergingOption,
    MetricsOption,
    PictureOption,
    PolicyOption,
    PoolOption,
    ProfileOption,
    SamplesOption,
    SeedOption,
    StoreOption,
)
from .overviews import draw_plan, tabulate_outlooks, tabulate_plan
from .pools import find_pool
from .session import PanelSettings, answer_once, plan_run, solve_into
from .tables import clean_text, tabulate_answers, tabulate_costs, tabulate_experts, tell_answer
from .timeline_picture import text_timeline, write_picture

__all__ = ["ask", "plan", "solve", "timeline"]


def ask(
    text: Annotated[str, typer.Argument(help="The question.")],
    pool: PoolOption = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="A choice; give one or more times.")
    ] = None,
    profile: ProfileOption = None,
    k: KOption = None,
    policy: PolicyOption = "skill",
    adaptive: AdaptiveOption = None,
    merging: MergingOption = "posterior",
    aggregator: AggregatorOption = None,
    abstain_below: AbstainOption = 0.0,
    cost_weight: CostOption = 0.0,
    samples: SamplesOption = 1,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer one question, and show who answered and why."""
    settings = PanelSettings(
        k=k,
        profile=profile,
        policy=policy,
        adaptive=adaptive,
        merging=merging,
        aggregator=aggregator,
        abstain_below=abstain_below,
        cost_weight=cost_weight,
        samples=samples,
        seed=seed,
    )
    question = Question.from_json({"id": "q1", "text": text, "options": option or []})
    catalog = Catalog.load(find_pool(pool))
    with watching(quiet=as_json) as progress:
        result = answer_once(question, catalog, settings, progress.show)
    if as_json:
        print_json({**result[0].row, "ledger": result.ledger})
    else:
        show(tell_answer(result[0]), tabulate_costs(result.ledger))
    tell_failures(result)


def solve(
    questions: Annotated[Path, typer.Argument(help=".jsonl or .parquet, one question a row.")],
    pool: PoolOption = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder; a second run goes on.")] = Path(
        "runs/solve"
    ),
    profile: ProfileOption = None,
    k: KOption = None,
    policy: PolicyOption = "skill",
    adaptive: AdaptiveOption = None,
    merging: MergingOption = "posterior",
    aggregator: AggregatorOption = None,
    abstain_below: AbstainOption = 0.0,
    cost_weight: CostOption = 0.0,
    samples: SamplesOption = 1,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    store: StoreOption = None,
    metrics: MetricsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a file of questions into a folder; what is finished is never asked again."""
    settings = PanelSettings(
        k=k,
        profile=profile,
        policy=policy,
        adaptive=adaptive,
        merging=merging,
        aggregator=aggregator,
        abstain_below=abstain_below,
        cost_weight=cost_weight,
        samples=samples,
        seed=seed,
    )
    asked = read_questions(questions, limit=limit)
    catalog = Catalog.load(find_pool(pool))
    keep = "off" if str(store) == "off" else None if store is None else AnswerStore(store)
    with resumable(out), watching(quiet=as_json) as progress, measuring(metrics) as count:

        def watch(event: PoolEvent) -> None:
            progress.show(event)
            count(event)

        result = solve_into(out, asked, catalog, settings, watch, store=keep)
    _report(result, out, as_json)
    if (why := progress.failures.get("answer store")) is not None:
        open_stderr().print(
            f"[red]not every reply was kept:[/red] {clean_text(why)}", soft_wrap=True
        )


def plan(
    questions: Annotated[Path, typer.Argument(help=".jsonl or .parquet, one question a row.")],
    pool: PoolOption = None,
    profile: ProfileOption = None,
    k: KOption = None,
    policy: PolicyOption = "skill",
    adaptive: AdaptiveOption = None,
    merging: MergingOption = "posterior",
    aggregator: AggregatorOption = None,
    abstain_below: AbstainOption = 0.0,
    cost_weight: CostOption = 0.0,
    samples: SamplesOption = 1,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    picture: PictureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `solve` would load and ask, when and where, without loading anything."""
    settings = PanelSettings(
        k=k,
        profile=profile,
        policy=policy,
        adaptive=adaptive,
        merging=merging,
        aggregator=aggregator,
        abstain_below=abstain_below,
        cost_weight=cost_weight,
        samples=samples,
        seed=seed,
    )
    made = plan_run(read_questions(questions, limit=limit), Catalog.load(find_pool(pool)), settings)
    if as_json:
        print_json(made.to_json())
    else:
        show(tabulate_plan(made), draw_plan(made))
    if picture is not None:
        write_picture(made.draw(), picture, "Plan")


def timeline(
    run: Annotated[Path, typer.Argument(help="Run folder of `solve`.")],
    picture: PictureOption = None,
) -> None:
    """Show what a run loaded and generated, when and where; `--picture` draws it."""
    if not (run / "timeline.json").is_file():
        raise InputError(f"no timeline in {run}: give the run folder of `expertmix solve`")
    drawn = RunFolder(run).read_timeline()
    show(text_timeline(drawn))
    for device in drawn.devices:
        share = drawn.idle_share(device)
        idle = "" if share is None else f", idle {share:.1%} of the time while work was queued"
        show(
            f"{device}: generating {drawn.busy(device):.1f} s, loading {drawn.loading(device):.1f} s{idle}"
        )
    if picture is not None:
        write_picture(drawn, picture, run.name)


def _report(result: Result, out: Path, as_json: bool) -> None:
    if as_json:
        print_json({"answers": result.to_rows(), "ledger": result.ledger})
    else:
        accuracy = [tabulate_experts(result)] if result.score is not None else []
        where = clean_text(str(out))
        kept = (
            f"Answers are in {where}/answers.jsonl, costs in {where}/ledger.json, what ran when in "
            f"{where}/timeline.svg."
        )
        outlooks = (
            [tabulate_outlooks(result.ledger["forecast"])] if result.ledger["forecast"] else []
        )
        show(tabulate_answers(result), *accuracy, tabulate_costs(result.ledger), *outlooks, kept)
    tell_failures(result)
