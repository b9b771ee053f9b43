"""Live progress of a pool in a terminal; quiet in a pipe."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from ..agents import PoolEvent
from .tables import clean_text

__all__ = ["PoolProgress"]


class PoolProgress:
    """One bar per expert and stage, one spinner per model that loads or works.

    Engines that die, and warnings, are told as they come. Use it as a context manager, in terminals and in
    notebooks; hand `show` to a pool.

    Args:
        console: Where to draw; nothing is drawn if it is no terminal.
        quiet: Draw and tell nothing, but go on collecting `failures`.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.failures: dict[str, str] = {}
        self._is_quiet = quiet
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> PoolProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, event: PoolEvent) -> None:
        """Take in one event; called from the pool's thread (rich's progress is thread-safe)."""
        match event.kind:
            case "loading":
                task = self._task("load", _name_load(event), total=1)
                self._progress.update(task, completed=0)
            case "ready" | "failed":
                task = self._task("load", _name_load(event), total=1)
                self._progress.update(task, completed=1)
                if event.kind == "failed":
                    self.failures[event.weights] = event.message
            case "queued":
                name = f"{event.stage}  {escape(event.alias or '')}"
                task = self._task("ask", name, total=0)
                total = self._progress.tasks[self._progress.task_ids.index(task)].total or 0
                self._progress.update(task, total=total + event.number)
            case "finished":
                name = f"{event.stage}  {escape(event.alias or '')}"
                self._progress.advance(self._task("ask", name, total=0), event.number)
            case "tokens" if event.seconds > 0:
                task = self._task("speed", escape(event.weights), total=None)
                speed = f"{escape(event.weights)}  {event.number / event.seconds:,.0f} tokens/s"
                self._progress.update(task, description=speed, advance=event.number)
            case "died" | "warning" if not self._is_quiet:
                told = f"[yellow]{clean_text(event.weights)}:[/yellow] {clean_text(event.message, 500)}"
                self._progress.console.print(told, soft_wrap=True)
            case _:
                pass

    def _task(self, kind: str, name: str, *, total: int | None) -> TaskID:
        if (kind, name) not in self._tasks:
            self._tasks[kind, name] = self._progress.add_task(name, total=total)
        return self._tasks[kind, name]


def _name_load(event: PoolEvent) -> str:
    how = {"fresh": "loading", "reload": "swapping in", "wake": "waking"}[event.way]
    return f"{how} {escape(event.weights)}"
