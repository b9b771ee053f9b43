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

__all__ = ["PoolProgress"]


class PoolProgress:
    """One bar per expert and stage, one spinner per model that loads. Use it as a context manager.

    Args:
        console: Where to draw; nothing is drawn if it is no terminal or `quiet` is set.
        quiet: Draw nothing, but go on collecting `failures`.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.failures: dict[str, str] = {}
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
                self._task("load", f"loading {escape(event.weights)}", total=1)
            case "ready" | "failed":
                task = self._task("load", f"loading {escape(event.weights)}", total=1)
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
            case _:
                pass

    def _task(self, kind: str, name: str, *, total: int) -> TaskID:
        if (kind, name) not in self._tasks:
            self._tasks[kind, name] = self._progress.add_task(name, total=total)
        return self._tasks[kind, name]
