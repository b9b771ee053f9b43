"""The strongest experts answer once each, and the most common answer wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...retrieval import Question
from ..state import Resources
from .talk import Cast, Skills, Talk, cast_strongest

__all__ = ["Majority"]


@dataclass(frozen=True)
class Majority(Talk):
    """Plain vote of the k strongest experts; a tie goes to the stronger expert's answer."""

    k: int = 3

    name = "majority"
    title = "vote of the strongest experts"
    source = "plurality voting; More Agents Is All You Need, arXiv 2402.05120"

    @property
    def calls(self) -> int:
        """One per expert."""
        return self.k

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """From two experts on."""
        k = min(calls, experts)
        return cls(k=k) if k >= 2 else None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The k strongest on the profile."""
        return cast_strongest(context, questions, self.k)
