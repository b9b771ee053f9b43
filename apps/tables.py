"""Results as tables for people. Everything a model wrote is escaped before it is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from ..graph import Result, Solution

__all__ = [
    "clean_text",
    "tabulate_answers",
    "tabulate_costs",
    "tabulate_experts",
    "tell_answer",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean_text(text: str, width: int = 200) -> str:
    """Untrusted text for a terminal: no control or direction characters, no markup, one line."""
    flat = " ".join(_CONTROL.sub("", text).split())
    return escape(flat if len(flat) <= width else flat[: width - 1] + "…")


def tabulate_answers(result: Result) -> Table:
    """One row per question: what was asked, the verdict, who was recruited, how sure they are."""
    table = Table(title="Answers", title_justify="left", expand=True)
    table.add_column("question", ratio=4, overflow="fold")
    table.add_column("answer", ratio=2, overflow="fold")
    table.add_column("gold", ratio=1, overflow="fold")
    table.add_column("experts", ratio=4, overflow="fold")
    table.add_column("sure", justify="right")
    for solution in result:
        table.add_row(
            clean_text(solution.question.text, 90),
            _show_answer(solution),
            clean_text(solution.question.gold or "—", 30),
            ", ".join(_show_expert(row) for row in solution.experts) or "nobody",
            f"{solution.confidence:.0%}",
        )
    return table


def tell_answer(solution: Solution) -> RenderableType:
    """Everything about one question: skills, who was recruited and why, each answer, the verdict."""
    table = Table(expand=True)
    table.add_column("expert")
    table.add_column("recruited because", ratio=2, overflow="fold")
    table.add_column("answer", ratio=1, overflow="fold")
    table.add_column("its words", ratio=3, overflow="fold")
    for row in solution.experts:
        said = row["error"] or row["text"]
        table.add_row(
            row["expert"],
            clean_text(row["reason"]),
            clean_text(str(row["answer"] or ("failed" if row["error"] else "unreadable")), 60),
            clean_text(said, 400),
        )
    skills = ", ".join(map(clean_text, solution.skills)) or "none recognised"
    return Group(
        Panel(_show_answer(solution), title="answer", title_align="left"),
        f"skills: {skills}   confidence: {solution.confidence:.0%}   "
        f"method: {solution.row['method']}   {clean_text(solution.row['note'])}",
        table,
    )


def tabulate_experts(result: Result) -> Table:
    """Right answers of each expert where it was asked, and of the panel, next to chance."""
    table = Table(title="Right answers, with 95 % intervals", title_justify="left")
    for column in ("who", "right", "of", "share", "95 % interval"):
        table.add_column(column, justify="left" if column == "who" else "right")
    rows = dict(result.score_experts())
    for name, score in rows.items():
        low, high = score.interval
        table.add_row(
            name, str(score.right), str(score.total), f"{score.share:.3f}", f"{low:.3f}–{high:.3f}"
        )
    if result.score is not None:
        table.add_section()
        low, high = result.score.interval
        table.add_row(
            "[bold]the panel",
            str(result.score.right),
            str(result.score.total),
            f"{result.score.share:.3f}",
            f"{low:.3f}–{high:.3f}",
        )
        table.add_row("chance", "", "", f"{result.chance or 0:.3f}", "")
    return table


def tabulate_costs(ledger: Mapping[str, Any]) -> Table:
    """Calls, tokens and seconds per expert and stage; loads below."""
    table = Table(title="What it cost", title_justify="left")
    columns = ("expert", "stage", "calls", "reused", "failed", "tokens in", "tokens out", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for row in ledger["experts"]:
        table.add_row(
            row["expert"],
            row["stage"],
            str(row["calls"]),
            str(row["reused"]),
            str(row["failures"]),
            f"{row['prompt_tokens']:,}",
            f"{row['completion_tokens']:,}",
            f"{row['seconds']:.1f}",
        )
    table.caption = (
        f"{ledger['loads']} loads of {ledger['distinct_weights']} distinct weights in "
        f"{ledger['load_seconds']:.1f} s"
    )
    table.caption_justify = "left"
    return table


def _show_answer(solution: Solution) -> str:
    if solution.answer is None:
        return "[yellow]abstained" if solution.abstained else "[red]none"
    text = clean_text(solution.answer, 60)
    letters = solution.question.letters
    if solution.answer in letters and letters:
        option = solution.question.options[letters.index(solution.answer)]
        text = f"{text} {clean_text(option, 60)}"
    colour = {True: "green", False: "red", None: "default"}[solution.correct]
    mark = {True: "✓ ", False: "✗ ", None: ""}[solution.correct]
    return f"[{colour}]{mark}{text}[/{colour}]"


def _show_expert(row: Mapping[str, Any]) -> str:
    said = "failed" if row["error"] else clean_text(str(row["answer"] or "?"), 16)
    return f"{row['expert']} {row['weight']:.2f} → {said}"
