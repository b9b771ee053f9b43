"""What no method can beat: right wherever any expert is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from ...agents import Verdict, is_correct
from ...retrieval import Question
from ..state import Resources
from .talk import Cast, Skills, Talk, cast_strongest, conclude
from .turns import Turn

__all__ = ["Oracle"]


@dataclass(frozen=True)
class Oracle(Talk):
    """Everybody answers, and whoever knows the gold answer picks. A bound, not a method."""

    experts: int

    name = "oracle"
    title = "right wherever any expert is"
    source = "an upper bound; it reads the gold answers"

    @property
    def calls(self) -> int:
        """One per expert."""
        return self.experts

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """It asks everybody, whatever the calls."""
        return cls(experts=experts)

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """Everybody."""
        return cast_strongest(context, questions, self.experts)

    def decide(self, question: Question, turns: Sequence[Turn]) -> Verdict:
        """The right answer if anybody gave it, else the vote. It states no confidence."""
        voted = conclude(question, turns)
        if question.gold is None:
            return voted
        right = next((answer for answer in voted.votes if is_correct(answer, question)), None)
        return replace(voted, answer=right or voted.answer)
