"""A result as a notebook shows it: per question the answer, how sure, who said what, and why they were asked.

Everything in it is escaped: questions and answers are untrusted text. No script, no file from elsewhere; light
and dark themes give the colours.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..retrieval import Question
    from .result import Solution

__all__ = ["write_table"]

MOST_ROWS = 200
LONGEST = 300
HEAD = ("question", "answer", "sure", "who said what", "")
STYLE = (
    "<style>.expertmix{border-collapse:collapse}"
    ".expertmix th,.expertmix td{text-align:left!important;vertical-align:top;padding:.35em .9em .35em 0}"
    ".expertmix tr+tr td{border-top:1px solid rgba(128,128,128,.35)}"
    ".expertmix .no{opacity:.65}.expertmix ol{margin:.2em 0 0;padding-left:1.6em;list-style:upper-alpha}"
    ".expertmix meter{width:4em}.expertmix summary{cursor:pointer;opacity:.65}"
    ".expertmix td{max-width:34em;overflow-wrap:anywhere}</style>"
)


def write_table(solutions: Sequence[Solution], headline: str) -> str:
    """The table as HTML, of the first 200 questions.

    Args:
        solutions: In their order.
        headline: Stands above it.
    """
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    body = "".join(_write_row(solution) for solution in solutions[:MOST_ROWS])
    more = len(solutions) - MOST_ROWS
    tail = f"<p>… and {more} more</p>" if more > 0 else ""
    return (
        f"{STYLE}<p>{_safe(headline)}</p>"
        f'<table class="expertmix"><tr>{head}</tr>{body}</table>{tail}'
    )


def _write_row(solution: Solution) -> str:
    question = solution.question
    cells = (
        _write_question(question),
        _write_answer(solution),
        _write_confidence(solution),
        "<br>".join(_write_sides(solution)),
        _write_reasons(solution.experts),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _write_question(question: Question) -> str:
    items = "".join(f"<li>{_safe(option)}</li>" for option in question.options)
    return _safe(question.text) + (f"<ol>{items}</ol>" if items else "")


def _write_answer(solution: Solution) -> str:
    if solution.answer is None:
        return "— (not sure enough)" if solution.row.get("abstained") else "—"
    mark = {True: " ✓", False: " ✗", None: ""}[solution.correct]
    gold = solution.question.gold
    right = f'<br><span class="no">right: {_safe(gold or "")}</span>' if mark == " ✗" else ""
    return f"<b>{_safe(solution.answer)}</b>{mark}{right}"


def _write_confidence(solution: Solution) -> str:
    sure = solution.confidence
    return f'<meter min="0" max="1" value="{sure:.2f}"></meter> {sure:.0%}'


def _write_sides(solution: Solution) -> list[str]:
    """Each answer with those who gave it, the panel's first; then who said nothing."""
    sides: dict[str, list[str]] = {}
    silent: list[str] = []
    for row in solution.experts:
        if row["error"] is not None:
            silent.append(f"{row['expert']} failed: {row['error']}")
        elif row["answer"] is None:
            silent.append(f"{row['expert']}: unreadable")
        else:
            sides.setdefault(str(row["answer"]), []).append(row["expert"])
    order = sorted(sides, key=lambda said: said != solution.answer)
    lines = [f"{_safe(said)}: {_safe(', '.join(dict.fromkeys(sides[said])))}" for said in order]
    dissent = [
        line if said == solution.answer else f'<span class="no">{line}</span>'
        for said, line in zip(order, lines, strict=True)
    ]
    return [*dissent, *(f'<span class="no">{_safe(line)}</span>' for line in silent)]


def _write_reasons(experts: Sequence[Mapping[str, Any]]) -> str:
    told = dict.fromkeys(f"{row['expert']}: {row['reason']}" for row in experts)
    if not told:
        return ""
    lines = "<br>".join(map(_safe, told))
    return f"<details><summary>why these</summary>{lines}</details>"


def _safe(text: str) -> str:
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return html.escape(cut.encode("utf-8", "replace").decode())  # half a surrogate pair is no JSON
