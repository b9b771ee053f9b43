"""The command that compares methods: `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..agents import Catalog
from ..graph.comparison import Comparison
from ..graph.lineup import ALL
from ..graph.methods import METHODS
from ..graph.remix_tables import choose
from ..graph.verdicts import count
from ..retrieval import TASKS, InputError, Question, read_questions, read_task
from .compare_session import CompareSettings, compare_into
from .console import fail_for, print_json, resumable, show, watching
from .options import JsonOption, PoolOption, ProfileOption
from .pools import find_pool
from .tables import clean_text

__all__ = ["compare", "tabulate_methods"]

EXAMPLES = Path("examples")


def compare(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="Questions with gold answers: .jsonl, .parquet, or hf:NAME:SPLIT@COMMIT; default: "
            "the examples of a clone, with their references and pool."
        ),
    ] = None,
    pool: PoolOption = None,
    methods: Annotated[
        str, typer.Option("--methods", help=f"`all`, or names with commas: {', '.join(METHODS)}.")
    ] = ALL,
    calls: Annotated[
        str,
        typer.Option("--calls", help="Calls per question that methods are fitted to, such as 3,6."),
    ] = "4",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Times that all is drawn anew.")] = 1,
    profile: ProfileOption = None,
    references: Annotated[
        list[str] | None,
        typer.Option("--references", help="Labelled questions to profile the experts on."),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help=f"The data's benchmark: {', '.join(TASKS)}.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Rows whose column `split` says so.")
    ] = None,
    reference_split: Annotated[
        str | None, typer.Option("--reference-split", help="The same for the references.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="So many questions, drawn by --seed.")
    ] = None,
    reference_limit: Annotated[
        int | None, typer.Option("--reference-limit", min=1, help="The same for the references.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what --limit draws.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", help="Its folder; a second run goes on, or adds methods.")
    ] = Path("runs/compare"),
    as_json: JsonOption = False,
) -> None:
    """Compare the panel with debate, Mixture-of-Agents, self-consistency and others at equal compute."""
    if not data:
        data, pool, references = _take_examples(pool, references, profile)
    questions = _read(data, task, split, limit, seed)
    labelled = _read(references or [], task, reference_split, reference_limit, seed, questions)
    where = find_pool(pool)
    settings = CompareSettings(
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        calls=_read_numbers(calls),
        seeds=seeds,
        data=", ".join(Path(path).name for path in data),
        pool=Path(where).name,
    )
    with resumable(out), watching(quiet=as_json) as progress:
        comparison = compare_into(
            out,
            questions,
            Catalog.load(where),
            settings,
            progress.show,
            references=labelled,
            profile=profile,
        )
    if as_json:
        print_json(comparison.to_json())
    else:
        told = "\n".join(f"• {clean_text(line, 2000)}" for line in comparison.findings)
        show(
            tabulate_methods(comparison), told, f"The report is {clean_text(str(out))}/report.html."
        )
    fail_for(progress)


def tabulate_methods(comparison: Comparison) -> Table:
    """Accuracy with its interval, and what each method costs."""
    number = comparison.rows[0]["n"]
    table = Table(
        title=f"Right answers on {count(number, 'question')}, and their costs", title_justify="left"
    )
    columns = (
        "method",
        "right",
        "95 %",
        "to the strongest",
        "p",
        "calls",
        "tokens",
        "seconds",
        "loads",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    in_bounds = False
    for row in comparison.rows:
        if row["is_bound"] and not in_bounds:
            table.add_section()
            in_bounds = True
        delta, seconds = row["delta"], row["seconds_mean"]
        name = clean_text(row["label"])
        table.add_row(
            f"[bold]{name}[/bold]" if row["is_ours"] else name,
            f"{row['accuracy']:.3f}",
            "" if row["method"] == "chance" else f"{row['low']:.3f}–{row['high']:.3f}",
            "" if delta is None else f"{delta['mean'] * 100:+.1f}",
            "" if delta is None else _tell_p(row["p_holm"]),
            f"{row['calls_mean']:.3g}",
            f"{row['tokens_mean']:.0f}",
            "—" if seconds is None else f"{seconds:.2f}",
            str(row["loads"]),
        )
    table.caption = (
        "p: McNemar's test against the strongest expert alone, corrected for all rows (Holm). Calls, "
        "generated tokens and engine seconds are per question; loads, on a device that holds one model."
    )
    table.caption_justify = "left"
    return table


def _tell_p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}"


def _take_examples(
    pool: Path | None, references: list[str] | None, profile: Path | None
) -> tuple[list[str], Path | None, list[str]]:
    """What a clone of the project brings."""
    if not (EXAMPLES / "questions.jsonl").is_file():
        raise InputError(
            f"there is no {EXAMPLES}/questions.jsonl here; name a file of questions with gold answers"
        )
    given = references or ([] if profile is not None else [str(EXAMPLES / "references.jsonl")])
    return [str(EXAMPLES / "questions.jsonl")], pool or EXAMPLES / "pool.yaml", given


def _read(
    paths: list[str],
    task: str | None,
    split: str | None,
    limit: int | None,
    seed: int,
    others: Sequence[Question] = (),
) -> list[Question]:
    """Questions of all files, in their order; an id that another question has gets its file's name before it.

    Rows without ids are numbered in each file, so that different questions of two files may share one.
    """
    texts = {question.id: question.text for question in others}
    found: list[Question] = []
    for path in paths:
        read = (
            read_questions(path, split=split)
            if task is None
            else read_task(path, task, split=split)
        )
        for question in read:
            if texts.get(question.id, question.text) != question.text:
                question = replace(question, id=f"{Path(path).stem}/{question.id}")
            texts[question.id] = question.text
            found.append(question)
    if limit is None or limit >= len(found):
        return found
    drawn = {question.id for question in choose(found, limit, seed)}
    return [question for question in found if question.id in drawn]


def _read_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f'--calls is "{text}"; give numbers with commas, such as 3,6') from None
