"""Progress is told on any console, drawn on terminals, and silent where that was asked."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from expertmix.agents import PoolEvent
from expertmix.apps.progress import PoolProgress


def tell(*events: PoolEvent, quiet: bool = False, **how: Any) -> tuple[str, PoolProgress]:
    out = io.StringIO()
    console = Console(file=out, width=120, **how)
    with PoolProgress(console, quiet=quiet) as progress:
        for event in events:
            progress.show(event)
    return out.getvalue(), progress


DIED = PoolEvent(kind="died", weights="a[b]", message="engine died: \x1b[31mred[/bold]")


def test_a_death_is_told_and_cannot_command_the_terminal() -> None:
    text, _ = tell(DIED)
    assert "a[b]: engine died: [31mred[/bold]" in text
    assert "\x1b" not in text


def test_quiet_means_silent_but_failures_are_collected() -> None:
    failed = PoolEvent(kind="failed", weights="m", message="no memory")
    text, progress = tell(DIED, failed, quiet=True)
    assert text == ""
    assert progress.failures == {"m": "no memory"}


def test_loads_swaps_and_speeds_are_drawn_on_a_terminal() -> None:
    text, _ = tell(
        PoolEvent(kind="loading", weights="first"),
        PoolEvent(kind="ready", weights="first", seconds=2.0),
        PoolEvent(kind="loading", weights="second", way="reload", previous="first"),
        PoolEvent(kind="queued", weights="second", alias="x", stage="reason", number=4),
        PoolEvent(kind="tokens", weights="second", number=300, seconds=2.0),
        PoolEvent(kind="finished", weights="second", alias="x", stage="reason", number=4),
        force_terminal=True,
    )
    for words in ("loading first", "swapping in second", "150 tokens/s", "reason  x", "4/4"):
        assert words in text
