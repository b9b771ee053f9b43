"""The command that shows a run as a page: `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..agents import Profile
from ..retrieval import read_questions
from .console import open_stderr, show
from .options import ProfileOption
from .tables import clean_text

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of `solve`.")],
    questions: Annotated[
        str | None,
        typer.Option(
            "--questions",
            help="The file the run was made from: a run keeps neither texts nor gold answers.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; default: report.html in the run folder.")
    ] = None,
    profile: ProfileOption = None,
    ids_only: Annotated[
        bool,
        typer.Option("--ids-only", help="Keep questions and replies out: for confidential sets."),
    ] = False,
) -> None:
    """Show a run as one HTML file that opens from disk: answers, who gave them, and what they cost."""
    from .report import write_report
    from .report.run import content_of_run

    content = content_of_run(
        run,
        None if questions is None else read_questions(questions),
        profile=None if profile is None else Profile.load(profile),
        hides=ids_only,
    )
    path = write_report(content, run / "report.html" if out is None else out)
    if questions is None:
        open_stderr().print(
            "[yellow]note:[/yellow] questions are shown by their ids only, and nothing is graded; give "
            "their file with --questions",
            soft_wrap=True,
        )
    show(f"The report is in {clean_text(str(path))}: {path.stat().st_size / 1e6:.1f} MB.")
