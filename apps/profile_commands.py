"""The commands that find out who is good at what: `profile`, `aggregators`, `study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..agents import Catalog
from ..retrieval import read_questions
from .console import fail_for, open_stderr, print_json, resumable, show, watching
from .options import JsonOption, LimitOption, PoolOption, SamplesOption, SeedOption
from .overviews import tabulate_aggregators, tabulate_profile
from .pools import find_pool
from .session import profile_experts, score_aggregators
from .study import StudySettings, read_names, read_numbers, run_study, tabulate_study
from .tables import clean_text, tabulate_costs

__all__ = ["aggregators", "profile", "study"]


def profile(
    references: Annotated[
        str, typer.Argument(help="Labelled questions: .jsonl, .parquet or hf:NAME:SPLIT@COMMIT.")
    ],
    pool: PoolOption = None,
    out: Annotated[Path, typer.Option("--out", help="Profile folder; grows.")] = Path(
        "runs/profile"
    ),
    experts: Annotated[
        str | None, typer.Option("--experts", help="Only these, as a,b; others stay as they are.")
    ] = None,
    samples: SamplesOption = 1,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Find out who is good at what, on labelled questions; only what is missing is asked."""
    labelled = read_questions(references, limit=limit)
    catalog = Catalog.load(find_pool(pool))
    asked = None if experts is None else [alias.strip() for alias in experts.split(",")]
    with resumable(out), watching(quiet=as_json) as progress:
        made, ledger = profile_experts(
            out, labelled, catalog, progress.show, experts=asked, samples=samples, seed=seed
        )
    if as_json:
        print_json({**made.to_json(), "ledger": ledger})
    else:
        kept = f"The profile is in {clean_text(str(out))}."
        show(tabulate_profile(made), tabulate_costs(ledger), kept)
    for note in made.notes:
        open_stderr().print(f"[yellow]note:[/yellow] {clean_text(note, 1000)}", soft_wrap=True)
    fail_for(progress)


def aggregators(
    profile: Annotated[Path, typer.Argument(help="Folder made by `expertmix profile`.")],
    pool: PoolOption = None,
    experts: Annotated[
        str | None, typer.Option("--experts", help="Candidates, as a,b; default: all.")
    ] = None,
    samples: SamplesOption = 1,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find out which expert merges drafts best, on what the profile's experts wrote."""
    catalog = Catalog.load(find_pool(pool))
    asked = [] if experts is None else [alias.strip() for alias in experts.split(",")]
    with resumable(profile), watching(quiet=as_json) as progress:
        scores, ledger = score_aggregators(
            profile, catalog, progress.show, candidates=asked, samples=samples, limit=limit
        )
    if as_json:
        print_json({**scores.to_json(), "ledger": ledger})
    else:
        show(tabulate_aggregators(scores), tabulate_costs(ledger))
        show("`--aggregator best` now uses these scores.")
    fail_for(progress)


def study(
    table: Annotated[
        Path, typer.Argument(help="Folder with questions.parquet and outcomes.parquet.")
    ],
    profile_split: Annotated[
        str | None, typer.Option("--profile-split", help="Split that is learnt from.")
    ] = None,
    test_split: Annotated[
        str | None, typer.Option("--test-split", help="Split that is tested.")
    ] = None,
    split_half: Annotated[
        int | None,
        typer.Option("--split-half", help="Instead of splits: a random half each, by this seed."),
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", help="File of model names; default: all.")
    ] = None,
    policies: Annotated[
        str | None, typer.Option("--policies", help="Names between commas; default: all.")
    ] = None,
    calls: Annotated[
        str | None, typer.Option("--calls", help="Calls per question; default: 3,4.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many.")] = 10,
    skills: Annotated[
        Literal["learned", "category", "none"],
        typer.Option("--skills", help="Learnt from the profile's texts, or the column category."),
    ] = "learned",
    out: Annotated[Path, typer.Option("--out", help="Folder; a second run goes on.")] = Path(
        "runs/study"
    ),
    as_json: JsonOption = False,
) -> None:
    """Replay recruiting and merging over recorded answers, against baselines and an oracle."""
    settings = StudySettings(
        profile_split=profile_split,
        test_split=test_split,
        split_half=split_half,
        models=models,
        policies=None if policies is None else read_names(policies),
        calls=[] if calls is None else read_numbers(calls),
        seeds=seeds,
        skills=skills,
    )
    with resumable(out):
        found = run_study(
            table, settings, out, lambda line: open_stderr().print(line, highlight=False)
        )
    if as_json:
        print_json(found.rows)
    else:
        show(tabulate_study(found.rows), *map(clean_text, found.notes))
        show(f"Results and the plot are in {clean_text(str(out))}.")
