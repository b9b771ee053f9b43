"""What of a hidden question may be seen: its id, letters, marks and figures, and nobody's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...graph import Solution
from ...retrieval import Question
from .content import ReportContent

__all__ = ["HIDDEN", "Curtain"]

HIDDEN = "hidden"
"""Stands for an answer that is more than a letter."""


@dataclass(frozen=True, slots=True)
class Curtain:
    """Draws a line between what is confidential and what is not."""

    hidden: frozenset[str] = frozenset()
    """Ids of questions."""
    known: frozenset[str] = field(default_factory=frozenset[str])
    """Skills of the profile's references: a closed list, so that naming one gives no question away."""

    @classmethod
    def of(cls, content: ReportContent) -> Curtain:
        """The curtain that a report asks for."""
        references = content.profile.questions.values() if content.profile else ()
        known = frozenset(skill for reference in references for skill in reference.skills)
        return cls(frozenset(content.hidden), known)

    def covers(self, question: Question) -> bool:
        """Whether the question is hidden."""
        return question.id in self.hidden

    def skills(self, solution: Solution) -> dict[str, Any]:
        """Its skills with their shares; of a hidden one those that a closed list holds."""
        skills: Mapping[str, Any] = solution.row.get("skills") or {}
        covered = self.covers(solution.question)
        return {s: share for s, share in skills.items() if not covered or s in self.known}

    def answer(self, answer: str | None, question: Question) -> str | None:
        """An answer as it may be shown: a letter of a choice always, everything else unless hidden."""
        if answer is None or not self.covers(question):
            return answer
        return answer if len(answer) == 1 and answer in question.letters else HIDDEN

    def words(self, text: Any, question: Question) -> str:
        """What somebody wrote, or nothing."""
        return "" if self.covers(question) else str(text or "")

    def remix(self, remix: Mapping[str, Any], question: Question) -> Mapping[str, Any]:
        """What became of its routing; the reason, which may quote an error, only unless hidden."""
        if not self.covers(question):
            return remix
        verdict = str(remix.get("verdict") or "").partition(":")[0]
        return {**remix, "verdict": verdict}
