"""What every command does with its terminal: results on stdout, the rest on stderr, and how it ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from ..agents import PoolEvent
from ..agents.pool.metrics import PoolMetrics
from ..graph import Result
from ..retrieval import InputError
from .interruption import Terminated
from .progress import PoolProgress
from .tables import clean_text

__all__ = [
    "fail_for",
    "measuring",
    "open_stderr",
    "open_stdout",
    "print_json",
    "resumable",
    "show",
    "tell_failures",
    "watching",
]


def tell_failures(result: Result) -> None:
    """Name experts that failed; without a single answer, and without abstaining, so has the command."""
    missing = {
        expert: why for solution in result for expert, why in solution.row["missing"].items()
    }
    for expert, why in missing.items():
        open_stderr().print(
            f"[yellow]{expert} failed:[/yellow] {clean_text(why, 1000)}", soft_wrap=True
        )
    if all(solution.answer is None and not solution.abstained for solution in result):
        raise typer.Exit(1)


def fail_for(progress: PoolProgress) -> None:
    """Name what failed to load, and end with status 1 if anything did."""
    for weights, why in progress.failures.items():
        open_stderr().print(
            f"[red]{clean_text(weights)} failed:[/red] {clean_text(why, 1000)}", soft_wrap=True
        )
    if progress.failures:
        raise typer.Exit(1)


@contextmanager
def resumable(out: Path, what: str = "every finished answer") -> Generator[None]:
    """Turn an interruption into a sentence about what is kept, and status 130 (143 for SIGTERM)."""
    try:
        yield
    except KeyboardInterrupt as error:
        is_terminated = isinstance(error, Terminated)
        open_stderr().print(
            f"\n[yellow]{'terminated' if is_terminated else 'interrupted'}:[/yellow] {what} "
            f"is kept in {clean_text(str(out))}; run the same command to go on",
            soft_wrap=True,
        )
        raise typer.Exit(143 if is_terminated else 130) from None


@contextmanager
def watching(*, quiet: bool = False) -> Generator[PoolProgress]:
    """Show on stderr what the pool does."""
    with PoolProgress(open_stderr(), quiet=quiet) as progress:
        yield progress


@contextmanager
def measuring(path: Path | None) -> Generator[Callable[[PoolEvent], None]]:
    """Write Prometheus metrics to a file as events come, at most once a second, and at the end."""
    if path is None:
        yield lambda _: None
        return
    metrics, written = PoolMetrics(), time.monotonic()
    metrics.write(path)  # a path that cannot be written is told before anything runs

    def count(event: PoolEvent) -> None:
        nonlocal written
        metrics.show(event)
        if time.monotonic() - written >= 1.0:
            metrics.write(path)
            written = time.monotonic()

    try:
        yield count
    finally:
        try:
            metrics.write(path)
        except InputError as error:  # the run's own end is more important
            open_stderr().print(f"[yellow]metrics:[/yellow] {clean_text(str(error))}")


def show(*parts: Any) -> None:
    """Print tables and texts to stdout."""
    console = open_stdout()
    for part in parts:
        console.print(part)


def print_json(content: Any) -> None:
    """Print plain values as one line of JSON."""
    typer.echo(json.dumps(content))  # ASCII: what models write cannot command a terminal


def open_stdout() -> Console:
    """A console for results."""
    # In a pipe there is no width to ask for; a fixed one keeps tables readable.
    return Console(width=None if sys.stdout.isatty() else 120, emoji=False)


def open_stderr() -> Console:
    """A console for everything else."""
    return Console(stderr=True, emoji=False)
