"""The tables of what a run cost: calls and tokens, loads, and the plan beside what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .tables import Cell, Column, Line, Table, tell_figures, tell_words
from .wording import DASH, read_number, tell_points

__all__ = ["tabulate_ledger", "tabulate_loads", "tabulate_outlooks"]

Row = Mapping[str, Any]


def tabulate_ledger(ledger: Mapping[str, Any]) -> Table:
    """Calls, tokens and seconds per expert and stage, with their sums in the last line."""
    keys = {
        "calls": "Calls",
        "reused": "Reused",
        "failures": "Failed",
        "prompt_tokens": "Tokens in",
        "completion_tokens": "Tokens out",
        "seconds": "Seconds",
    }
    columns = [
        Column(title="Expert", words=True),
        Column(title="Stage", words=True),
        *(Column(title=title) for title in keys.values()),
    ]
    rows = [*ledger.get("experts", ()), {**ledger, "expert": "All", "stage": " "}]
    cells = zip(
        tell_words(rows, "expert"),
        tell_words(rows, "stage"),
        *(tell_figures(key)(rows) for key in keys),
        strict=True,
    )
    lines = [Line(cells=line) for line in cells]
    return Table(columns=columns, lines=[*lines[:-1], replace(lines[-1], look="total")])


def tabulate_loads(ledger: Mapping[str, Any]) -> Table:
    """One line per time that weights were loaded."""
    columns = (
        Column(title="Weights", words=True),
        Column(title="Device", words=True),
        Column(title="How", words=True),
        Column(title="GiB"),
        Column(title="Seconds"),
    )
    rows = [
        {
            **row,
            "device": row.get("device") or "remote",
            "way": f"{row.get('way') or DASH}{', a replica' if row.get('replica') else ''}",
            "gib": (read_number(row.get("memory_bytes")) or 0.0) / 2**30,
        }
        for row in ledger.get("loaded", ())
    ]
    words = (tell_words(rows, key) for key in ("weights", "device", "way"))
    cells = zip(*words, tell_figures("gib")(rows), tell_figures("seconds")(rows), strict=True)
    return Table(columns=columns, lines=[Line(cells=line) for line in cells])


def tabulate_outlooks(ledger: Mapping[str, Any]) -> Table:
    """What the plan of the last run said, beside what came of it."""
    columns = (
        Column(title="Figure", words=True),
        Column(title="Planned"),
        Column(title="Real"),
        Column(title="Off by"),
    )
    rows: Sequence[Row] = ledger.get("forecast", ())
    planned, real = ([tell_figures(key)([row])[0] for row in rows] for key in ("planned", "real"))
    off = [
        Cell(text=_per_cent(row.get("error")), value=read_number(row.get("error"))) for row in rows
    ]
    cells = zip(tell_words(rows, "figure"), planned, real, off, strict=True)
    return Table(columns=columns, lines=[Line(cells=line) for line in cells])


def _per_cent(value: Any) -> str:
    told = tell_points(value)
    return told if told == DASH else f"{told} %"
