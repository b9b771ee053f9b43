"""A comparison as a report's content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..agents import Profile, Timeline
from ..graph import Solution
from ..graph.comparison import Comparison
from ..retrieval import Question, is_confidential
from .report import ReportContent

__all__ = ["report_comparison"]


def report_comparison(
    comparison: Comparison,
    questions: Sequence[Question],
    *,
    profile: Profile | None = None,
    timeline: Timeline | None = None,
    ledger: Mapping[str, Any] | None = None,
) -> ReportContent:
    """Everything that a report shows of a comparison; single answers are those of the first seed.

    Questions of confidential sets are shown without any text.
    """
    main = comparison.main
    first = {entry.label: entry.by_seed[min(entry.by_seed)] for entry in comparison.entries}
    data = comparison.facts.get("questions", f"{len(questions)} questions")
    return ReportContent(
        title=f"Ways to answer {data}",
        findings=comparison.findings,
        facts=comparison.facts,
        rows=comparison.rows,
        matched=[pair.to_json() for pair in comparison.matched],
        skipped=comparison.skipped,
        main="" if main is None else main.label,
        solutions=[] if main is None else first[main.label],
        others={
            label: {s.question.id: _mark(s) for s in solutions}
            for label, solutions in first.items()
            if main is None or label != main.label
        },
        profile=profile,
        timeline=timeline,
        ledger=ledger or {},
        hidden=[question.id for question in questions if is_confidential(question)],
    )


def _mark(solution: Solution) -> tuple[str | None, bool | None]:
    return solution.answer, solution.correct
