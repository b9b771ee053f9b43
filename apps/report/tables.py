"""The tables of methods and of matched pairs: which columns there are, and what stands in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from markupsafe import Markup

from ...graph.significance import LEVEL
from .drawing import draw_difference, draw_share
from .wording import (
    DASH,
    choose_digits,
    clean,
    keep_start,
    read_number,
    tell_chance,
    tell_figure,
    tell_interval,
    tell_points,
    tell_share,
)

__all__ = [
    "Cell",
    "Column",
    "Line",
    "Table",
    "tabulate_methods",
    "tabulate_pairs",
    "tell_figures",
    "tell_words",
]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What stands in one place."""

    text: str = DASH
    value: float | str | None = None
    """To sort by; None goes last."""
    under: str = ""
    """In small letters below."""
    picture: Markup | None = None
    look: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's head."""

    title: str
    hint: str = ""
    """What the figure means, in a sentence."""
    under: str = ""
    """In small letters below."""
    extra: bool = False
    """Shown only on demand."""
    words: bool = False
    """Whether it holds words, which stand at the left, and not figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of a table."""

    cells: Sequence[Cell]
    look: str = ""
    name: str = ""
    """Of a method, in words."""
    label: str = ""
    source: str = ""
    note: str = ""
    is_ours: bool = False
    is_bound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and lines; in a table of methods the method itself stands before the first column."""

    columns: Sequence[Column]
    lines: Sequence[Line]


Make = Callable[[Sequence[Row]], list[Cell]]
"""A column's cells for all rows at once: figures below each other have the same decimals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    column: Column
    make: Make


def tell_figures(key: str) -> Make:
    """Cells of the figures that rows have under a key."""

    def make(rows: Sequence[Row]) -> list[Cell]:
        values = [row.get(key) for row in rows]
        digits = choose_digits(values)
        return [Cell(text=tell_figure(v, digits), value=read_number(v)) for v in values]

    return make


def _each(tell: Callable[[Row], Cell]) -> Make:
    return lambda rows: [tell(row) for row in rows]


def _chance(key: str) -> Make:
    return _each(lambda row: Cell(text=tell_chance(row.get(key)), value=read_number(row.get(key))))


def _plain(title: str, hint: str, key: str, *, extra: bool = False) -> _Figure:
    return _Figure(column=Column(title=title, hint=hint, extra=extra), make=tell_figures(key))


def _right(row: Row) -> Cell:
    share = read_number(row.get("accuracy"))
    if share is None:
        return Cell()
    low, high = read_number(row.get("low")), read_number(row.get("high"))
    return Cell(
        text=tell_share(share),
        value=share,
        under=tell_interval(low, high),
        picture=draw_share(share, low, high),
    )


def _delta(row: Row) -> Cell:
    told = row.get("delta")
    delta = cast("Row", told) if isinstance(told, Mapping) else {}
    mean, low, high = (read_number(delta.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return Cell()
    p = read_number(row.get("p_holm"))
    # What the corrected test does not show must not look shown, whatever the interval says.
    clear = low is not None and high is not None and (low > 0 or high < 0)
    clear = clear and (p is None or p < LEVEL)
    under = tell_interval(low, high, signed=True)
    return Cell(
        text=tell_points(mean), value=mean, under=under, look="clear" if clear else "unclear"
    )


def _deltas(rows: Sequence[Row]) -> list[Cell]:
    """Names the other method in each cell, unless it is the same in all."""
    cells = [_delta(row) for row in rows]
    if _name_against(rows):
        return cells
    return [
        replace(cell, under=f"{cell.under} to {clean(row['against'])}".strip())
        if cell.value is not None and row.get("against")
        else cell
        for row, cell in zip(rows, cells, strict=True)
    ]


def _name_against(rows: Sequence[Row]) -> str:
    """With whom all rows are compared; empty where that differs."""
    names = {str(row["against"]) for row in rows if row.get("against")}
    return clean(names.pop()) if len(names) == 1 else ""


def _ece(row: Row) -> Cell:
    ece = read_number(row.get("ece"))
    return Cell() if ece is None else Cell(text=f"{ece:.3f}", value=ece)


_METHODS = (
    _Figure(column=Column(title="Right %", hint="Share of right answers; below, its 95 % interval."), make=_each(_right)),
    _Figure(column=Column(title="Difference", hint="Right answers minus those of the method named, on the same questions, in points, with its 95 % interval. Faint where the interval holds 0: not shown to differ."), make=_deltas),
    _Figure(column=Column(title="p", hint="Chance of such a difference by luck, corrected for the number of comparisons (Holm).", extra=True), make=_chance("p_holm")),
    _Figure(column=Column(title="p, raw", hint="The same without correction.", extra=True), make=_chance("p")),
    _plain("Calls", "Model calls per question, on average.", "calls_mean"),
    _plain("At most", "Most calls for one question.", "calls", extra=True),
    _plain("Tokens out", "Generated tokens per question, on average.", "tokens_mean"),
    _plain("Tokens in", "Prompt tokens per question, on average.", "prompt_tokens_mean", extra=True),
    _plain("Seconds", "Seconds of models at work per question, on average.", "seconds_mean"),
    _plain("Joules", "Energy per question, on average.", "energy_mean", extra=True),
    _plain("Loads", "How often a model's weights were loaded.", "loads"),
    _Figure(column=Column(title="ECE", hint="Expected calibration error: how far confidence is from the share right. 0 is perfect."), make=_each(_ece)),
    _plain("Unread", "Replies in which no answer could be found.", "unread", extra=True),
    _plain("Failed", "Calls without a reply.", "failed", extra=True),
    _plain("Questions", "How many were graded.", "n", extra=True),
    _plain("Seeds", "How many runs the figures are the mean of.", "seeds", extra=True),
)  # fmt: skip


def tabulate_methods(rows: Sequence[Row]) -> Table:
    """One line per method and budget; columns in which nothing stands are left out."""
    made = [figure.make(rows) for figure in _METHODS]
    kept = [at for at, cells in enumerate(made) if any(cell.value is not None for cell in cells)]
    lines = [
        Line(
            cells=[made[at][number] for at in kept],
            name=clean(row.get("title") or row.get("method") or row.get("label") or DASH),
            label=clean(row.get("label") or ""),
            source=clean(row.get("source") or ""),
            note=clean(row.get("note") or ""),
            is_ours=bool(row.get("is_ours")),
            is_bound=bool(row.get("is_bound")),
        )
        for number, row in enumerate(rows)
    ]
    columns = [_METHODS[at].column for at in kept]
    if against := _name_against(rows):
        under = f"to {keep_start(against, 30)}"
        columns = [replace(c, under=under) if c.title == "Difference" else c for c in columns]
    return Table(columns=columns, lines=lines)


def tabulate_pairs(matched: Sequence[Row]) -> Table:
    """One line per pair, on one scale."""
    ends = [read_number(row.get(key)) for row in matched for key in ("mean", "low", "high")]
    reach = max((abs(end) for end in ends if end is not None), default=0.0) or 0.01
    columns = (
        Column(title="Pair", words=True),
        Column(title="Matched at", hint="What both may spend per question.", words=True),
        Column(title="Difference", hint="Right answers of the first minus the second, in points, with its 95 % interval; the upright is 0."),
        Column(title="p (Holm)", hint="Chance of such a difference by luck, corrected for the number of comparisons."),
        Column(title="Tokens ×", hint="Generated tokens of the second ÷ those of the first."),
        Column(title="Verdict", words=True),
    )  # fmt: skip
    cells = (
        [_names(row) for row in matched],
        [_budget(row) for row in matched],
        [_pair(row, reach) for row in matched],
        [_pair_chance(row) for row in matched],
        tell_figures("tokens_ratio")(matched),
        tell_words(matched, "verdict"),
    )
    lines = [Line(cells=line, look=line[2].look or "unclear") for line in zip(*cells, strict=True)]
    return Table(columns=columns, lines=lines)


def _pair(row: Row, reach: float) -> Cell:
    mean, low, high = (read_number(row.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return Cell()
    picture = draw_difference(mean, low, high, reach)
    told = {"delta": row, "p_holm": row.get("p_holm")}
    return replace(_delta(told), picture=picture)


def _pair_chance(row: Row) -> Cell:
    chance = row.get("p") if row.get("p_holm") is None else row["p_holm"]
    return Cell(text=tell_chance(chance), value=read_number(chance))


def _names(row: Row) -> Cell:
    method, against = (keep_start(row.get(key) or DASH, 60) for key in ("method", "against"))
    return Cell(text=method, value=f"{method} {against}", under=f"against {against}")


def _budget(row: Row) -> Cell:
    told = f"{tell_figure(row.get('at'))} {clean(row.get('by') or '')}".strip()
    return Cell(text=told, value=read_number(row.get("at")))


def tell_words(rows: Sequence[Row], key: str) -> list[Cell]:
    """Cells of the words that rows have under a key."""
    texts = [keep_start(row.get(key) or DASH, 200) for row in rows]
    return [Cell(text=text, value=text) for text in texts]
