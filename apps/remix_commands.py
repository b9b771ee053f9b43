"""The commands about re-mixing the experts inside a model: `remix study`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE
from rich.table import Table
from typer.core import TyperCommand

from ..agents.moe.settings import RemixSettings
from .console import open_stderr, print_json, resumable, show
from .options import JsonOption, SeedOption
from .remix_study import RemixStudySettings, run_remix_study
from .study import read_names
from .tables import clean_text

__all__ = ["ManyFiles", "remix_app", "repeat_options", "tabulate_alignment", "tabulate_remixing"]

remix_app = typer.Typer(
    help="Re-mix the experts inside a mixture-of-experts model.", no_args_is_help=True
)
SEVERAL = ("--references", "--test")


class ManyFiles(TyperCommand):
    """Takes several files behind one `--references` or `--test`, as well as one behind each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its files."""
        return super().parse_args(ctx, repeat_options(args))


def repeat_options(arguments: Sequence[str]) -> list[str]:
    """`--test A B` becomes `--test A --test B`."""
    repeated: list[str] = []
    current, is_first = None, False
    for word in arguments:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            current = name if name in SEVERAL else None
            repeated.append(word)
            is_first = not equals
            continue
        # Whatever is no file of questions is none of theirs: the model may stand behind them.
        if current is not None and (is_first or word.endswith(".parquet")):
            if not is_first:
                repeated.append(current)
            is_first = False
        else:
            current = None
        repeated.append(word)
    return repeated


@remix_app.callback()
def _remix() -> None:  # pyright: ignore[reportUnusedFunction]
    """Re-mix the experts inside a mixture-of-experts model."""


@remix_app.command("study", cls=ManyFiles)
def study(
    model: Annotated[
        str, typer.Argument(help="Folder of a mixture-of-experts model, or a Hugging Face id.")
    ],
    references: Annotated[
        list[Path], typer.Option("--references", help="Parquet files of solved questions.")
    ],
    test: Annotated[list[Path], typer.Option("--test", help="Parquet files of test questions.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; a second run goes on.")] = Path(
        "runs/remix"
    ),
    split: Annotated[
        str | None,
        typer.Option("--split", help="Splits of the tests, between commas; default: test, or all."),
    ] = None,
    reference_split: Annotated[
        str | None,
        typer.Option("--reference-split", help="Those of the references; default: train…, or all."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions of each file.")
    ] = None,
    reference_limit: Annotated[
        int | None,
        typer.Option("--reference-limit", min=1, help="References of each file; default: --limit."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names between commas; default: all.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Of the random controls.")] = 3,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Critical layers.")] = 5,
    core: Annotated[
        int, typer.Option("--core", min=0, help="Experts that may change in each; 0: all.")
    ] = 20,
    tune: Annotated[
        bool,
        typer.Option("--tune/--no-tune", help="Choose solver and gates on the references."),
    ] = True,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option("--dtype", help="Of the weights.")
    ] = "auto",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Commit of a Hugging Face id.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Questions in a pass.")] = 8,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Study solvers against controls over test sets, from one model pass per question."""
    settings = RemixStudySettings(
        references=references,
        tests=test,
        test_splits=() if split is None else read_names(split),
        reference_splits=() if reference_split is None else read_names(reference_split),
        limit=limit,
        reference_limit=reference_limit,
        methods=() if methods is None else read_names(methods),
        seeds=seeds,
        seed=seed,
        remix=RemixSettings(layers=layers, core_experts=core or None),
        dtype=dtype,
        revision=revision,
        batch=batch,
        tunes=tune,
    )
    with resumable(out):
        found = run_remix_study(
            model,
            settings,
            out,
            lambda line: open_stderr().print(clean_text(line), highlight=False),
        )
    if as_json:
        print_json(found.rows)
    else:
        show(
            tabulate_remixing(found.rows),
            tabulate_alignment(found.alignment),
            *map(clean_text, found.notes),
        )
        show(f"Results, settings, samples and the plot are in {clean_text(str(out))}.")


def tabulate_remixing(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of `summarise_remixing` for people."""
    table = Table(box=SIMPLE, title="Re-mixing", title_justify="left")
    for column in ("test", "method"):
        table.add_column(column)
    for column in ("right %", "95 %", "− base", "95 %", "+ / −", "changed", "FLOPs", "gap"):
        table.add_column(column, justify="right")
    shown: str | None = None
    for row in rows:
        delta = row["delta_base"]
        is_new = row["test"] != shown
        if is_new and shown is not None:
            table.add_section()
        shown = row["test"]
        is_base = row["method"] == "base"
        table.add_row(
            f"{clean_text(row['test'])} ({row['n']})" if is_new else "",
            row["method"].replace("_", " "),
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['low']:.1f}–{100 * row['high']:.1f}",
            "" if is_base else f"{100 * delta['mean']:+.1f}",
            "" if is_base else f"{100 * delta['low']:+.1f} … {100 * delta['high']:+.1f}",
            "" if is_base else f"{row['fixed']:g} / {row['broken']:g}",
            f"{100 * row['accepted']:.0f} %",
            f"{row['flops_ratio']:.2f} x",
            "" if row["gap_closed"] is None or is_base else f"{100 * row['gap_closed']:.0f} %",
        )
    return table


def tabulate_alignment(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of `measure_alignment` for people."""
    title = "Does the neighbours' gradient point where the question's own would?"
    table = Table(box=SIMPLE, title=title, title_justify="left")
    for column in ("test", "neighbours"):
        table.add_column(column)
    for column in ("cosine", "where it is wrong", "explained by same letters"):
        table.add_column(column, justify="right")
    for row in rows:
        wrong, letters = row["cosine_wrong"], row["letter_correlation"]
        table.add_row(
            clean_text(row["test"]),
            row["neighbours"],
            f"{row['cosine']:+.3f} ± {1.96 * row['error']:.3f}",
            "" if wrong is None else f"{wrong:+.3f}",
            "" if letters is None else f"r = {letters:+.2f}",
        )
    return table
