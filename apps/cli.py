"""The command line: `expertmix ask`, `solve`, `plan`, `profile`, `study`, `demo`, `pool check`, `schema`, `doctor`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..agents import Catalog, Policy
from ..agents.pool import PoolFile
from ..graph import Result
from ..retrieval import InputError, Question, read_questions
from .doctor import diagnose, removable, repair
from .overviews import tabulate_checks, tabulate_findings, tabulate_plan, tabulate_profile
from .pools import check_pool, find_pool
from .progress import PoolProgress
from .session import PanelSettings, answer_once, plan_run, profile_experts, solve_into
from .study import StudySettings, read_names, read_numbers, run_study, tabulate_study
from .tables import (
    clean_text,
    tabulate_answers,
    tabulate_costs,
    tabulate_experts,
    tell_answer,
)

__all__ = ["app", "main"]

app = typer.Typer(
    help="Recruit local language models by skill, run each once, merge their answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
pool_app = typer.Typer(help="Look at a pool file.", no_args_is_help=True)
app.add_typer(pool_app, name="pool")

PoolOption = Annotated[
    Path | None,
    typer.Option(
        "--pool", help="Pool file; default: pool.yaml here, else the built-in laptop pool."
    ),
]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Folder made by `expertmix profile`.")
]
KOption = Annotated[int | None, typer.Option("-k", "--k", help="Experts per question; default 3.")]
PolicyOption = Annotated[Policy, typer.Option("--policy", help="How experts are recruited.")]
AggregatorOption = Annotated[
    str | None,
    typer.Option("--aggregator", help="Expert that merges drafts; `best`: the profile's."),
]
AdaptiveOption = Annotated[
    float | None,
    typer.Option("--adaptive", help="Mean calls per question: ask more experts only in disputes."),
]
MergingOption = Annotated[
    Literal["posterior", "vote"],
    typer.Option("--merging", help="Weigh answers by what the profile says, or count them."),
]
AbstainOption = Annotated[
    float, typer.Option("--abstain-below", help="Give no answer below this confidence.")
]
CostOption = Annotated[
    float, typer.Option("--cost-weight", help="How much cheap experts are preferred; 0: not.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
SamplesOption = Annotated[int, typer.Option("--samples", min=1, help="Answers per expert.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]


@app.command()
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
    with _watching(quiet=as_json) as progress:
        result = answer_once(question, catalog, settings, progress.show)
    if as_json:
        _print_json({**result[0].row, "ledger": result.ledger})
    else:
        _show(tell_answer(result[0]), tabulate_costs(result.ledger))
    _tell_failures(result)


@app.command()
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
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First N only.")] = None,
    seed: SeedOption = 0,
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
    with _resumable(out), _watching(quiet=as_json) as progress:
        result = solve_into(out, asked, catalog, settings, progress.show)
    _report(result, out, as_json)
    if (why := progress.failures.get("answer store")) is not None:
        _stderr().print(f"[red]not every reply was kept:[/red] {clean_text(why)}", soft_wrap=True)


@app.command()
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
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First N only.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what `solve` would load and ask, without loading anything."""
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
        _print_json(made.to_json())
    else:
        _show(tabulate_plan(made))


@app.command()
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
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First N only.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Find out who is good at what, on labelled questions; only what is missing is asked."""
    labelled = read_questions(references, limit=limit)
    catalog = Catalog.load(find_pool(pool))
    asked = None if experts is None else [alias.strip() for alias in experts.split(",")]
    with _resumable(out), _watching(quiet=as_json) as progress:
        made, ledger = profile_experts(
            out, labelled, catalog, progress.show, experts=asked, samples=samples, seed=seed
        )
    if as_json:
        _print_json({**made.to_json(), "ledger": ledger})
    else:
        kept = f"The profile is in {clean_text(str(out))}."
        _show(tabulate_profile(made), tabulate_costs(ledger), kept)
    for note in made.notes:
        _stderr().print(f"[yellow]note:[/yellow] {clean_text(note, 1000)}", soft_wrap=True)
    _fail_for(progress)


@app.command()
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
    with _resumable(out):
        found = run_study(table, settings, out, lambda line: _stderr().print(line, highlight=False))
    if as_json:
        _print_json(found.rows)
    else:
        _show(tabulate_study(found.rows), *map(clean_text, found.notes))
        _show(f"Results and the plot are in {clean_text(str(out))}.")


@app.command()
def demo(
    examples: Annotated[Path, typer.Option(help="Folder with the demo's questions.")] = Path(
        "examples"
    ),
    pool: Annotated[
        Path | None, typer.Option("--pool", help="Another pool than the laptop's.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where it keeps its answers.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Profile, solve and compare on real small models; a few minutes on two cores."""
    from .demo import run_demo

    with _resumable(out), _watching() as progress:
        run_demo(examples, pool, out, _stdout(), progress)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("--out", help="Write to a file.")] = None,
) -> None:
    """Print the JSON Schema of pool files, for editors."""
    text = json.dumps(PoolFile.model_json_schema(), indent=2)
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")


@pool_app.command("check")
def pool_check(
    pool: Annotated[Path, typer.Argument(help="Pool file.")],
    as_json: JsonOption = False,
) -> None:
    """Check a pool file: every expert's weights, address, adapter, and whether they fit."""
    checks = check_pool(Catalog.load(pool))
    if as_json:
        _print_json([check.to_json() for check in checks])
    else:
        _show(tabulate_checks(checks))
    if any(check.problem for check in checks):
        raise typer.Exit(1)


@app.command()
def doctor(
    as_json: JsonOption = False,
    fix: Annotated[
        bool, typer.Option("--repair", help="Remove packages that break vLLM on a CPU.")
    ] = False,
    pool: Annotated[
        Path | None, typer.Option("--pool", help="Also say what of this pool would be loaded.")
    ] = None,
) -> None:
    """Tell what is installed, what fits into memory, what would work here, and why not."""
    findings = diagnose()
    if fix and (packages := removable(findings)):
        typer.echo(repair(packages), err=True)
        findings = diagnose()
    checks = [] if pool is None else check_pool(Catalog.load(pool))
    if as_json:
        told = [finding.to_json() for finding in findings]
        _print_json({"findings": told, "pool": [check.to_json() for check in checks]})
    else:
        _show(tabulate_findings(findings), *([tabulate_checks(checks)] if checks else []))
    if any(finding.status == "broken" for finding in findings) or any(c.problem for c in checks):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what a person can correct is one sentence and exit status 2."""
    # SIGTERM ends a run as Ctrl-C does: finished work is kept and the models' processes go.
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
    try:
        app(standalone_mode=True)
    except InputError as error:
        _stderr().print(f"[red]error:[/red] {clean_text(str(error), 2000)}", soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read us has gone (`| head`); Python must not complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _report(result: Result, out: Path, as_json: bool) -> None:
    if as_json:
        _print_json({"answers": result.to_rows(), "ledger": result.ledger})
    else:
        accuracy = [tabulate_experts(result)] if result.score is not None else []
        where = clean_text(str(out))
        kept = f"Answers are in {where}/answers.jsonl, costs in {where}/ledger.json."
        _show(tabulate_answers(result), *accuracy, tabulate_costs(result.ledger), kept)
    _tell_failures(result)


def _tell_failures(result: Result) -> None:
    """Name experts that failed; without a single answer the command has failed, too."""
    missing = {
        expert: why for solution in result for expert, why in solution.row["missing"].items()
    }
    for expert, why in missing.items():
        _stderr().print(
            f"[yellow]{expert} failed:[/yellow] {clean_text(why, 1000)}", soft_wrap=True
        )
    if all(solution.answer is None for solution in result):
        raise typer.Exit(1)


def _fail_for(progress: PoolProgress) -> None:
    for weights, why in progress.failures.items():
        _stderr().print(
            f"[red]{clean_text(weights)} failed:[/red] {clean_text(why, 1000)}", soft_wrap=True
        )
    if progress.failures:
        raise typer.Exit(1)


@contextmanager
def _resumable(out: Path) -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _stderr().print(
            f"\n[yellow]interrupted:[/yellow] every finished answer is kept in {clean_text(str(out))}; "
            "run the same command to go on",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


@contextmanager
def _watching(*, quiet: bool = False) -> Generator[PoolProgress]:
    with PoolProgress(_stderr(), quiet=quiet) as progress:
        yield progress


def _show(*parts: Any) -> None:
    console = _stdout()
    for part in parts:
        console.print(part)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content))  # ASCII: what models write cannot command a terminal


def _stdout() -> Console:
    # In a pipe there is no width to ask for; a fixed one keeps tables readable.
    return Console(width=None if sys.stdout.isatty() else 120, emoji=False)


def _stderr() -> Console:
    return Console(stderr=True, emoji=False)


if __name__ == "__main__":
    main()
