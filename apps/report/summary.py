"""The few figures at the top of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...graph import Score
from .content import ReportContent
from .wording import count, read_number, tell_figure, tell_interval, tell_share

__all__ = ["Headline", "tell_headlines"]


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure, what it is of, and what else there is to say."""

    figure: str
    name: str
    under: str = ""


def tell_headlines(content: ReportContent, marks: str) -> list[Headline]:
    """Right answers, calls, tokens and loads of the main method; what is not known is left out.

    Args:
        content: Of the report.
        marks: A letter per question, `r` where it was answered right, `u` where nobody can tell.
    """
    row = next((row for row in content.rows if row.get("label") == content.main), {})
    number = len(content.solutions)
    found = [_tell_right(row, marks)]
    calls = read_number(row.get("calls_mean"))
    tokens = read_number(row.get("tokens_mean"))
    if number and calls is None:
        calls = sum(len(s.row.get("experts") or ()) for s in content.solutions) / number
    if number and tokens is None:
        tokens = sum(map(_tokens, content.solutions)) / number
    if calls is not None:
        found.append(Headline(tell_figure(calls), "calls per question"))
    if tokens is not None:
        found.append(Headline(tell_figure(tokens), "tokens generated per question"))
    found.append(_tell_loads(row, content.ledger))
    return [headline for headline in found if headline is not None]


def _tell_right(row: Mapping[str, Any], marks: str) -> Headline | None:
    share = read_number(row.get("accuracy"))
    if share is not None:
        interval = tell_interval(row.get("low"), row.get("high"))
        graded = read_number(row.get("n"))
        of = count(round(graded), "question") if graded else ""
        under = ", ".join(filter(None, [interval and f"95 %: {interval}", of]))
        return Headline(f"{tell_share(share)} %", "right", under)
    graded = len(marks) - marks.count("u")
    if not graded or not marks.count("r") + marks.count("w"):
        return None  # without a gold answer nothing is right or wrong
    score = Score(right=marks.count("r"), total=graded)
    under = f"95 %: {tell_interval(*score.interval)}, {score.right:,} of {score.total:,}"
    return Headline(f"{tell_share(score.share)} %", "right", under)


def _tell_loads(row: Mapping[str, Any], ledger: Mapping[str, Any]) -> Headline | None:
    loads = read_number(row.get("loads"))
    weights = None
    if loads is None:
        loads, weights = (read_number(ledger.get(key)) for key in ("loads", "distinct_weights"))
    if not loads:
        return None
    under = "" if weights is None else f"of {count(round(weights), 'different model')}"
    return Headline(tell_figure(loads), "loads" if loads != 1 else "load", under)


def _tokens(solution: Any) -> float:
    usage: Mapping[str, Any] = solution.row.get("usage") or {}
    return read_number(usage.get("completion_tokens")) or 0.0
