"""The strongest expert answers several times, and its most common answer wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...retrieval import Question
from ..state import Resources
from .talk import Cast, Skills, Talk, cast_strongest

__all__ = ["SelfConsistency"]


@dataclass(frozen=True)
class SelfConsistency(Talk):
    """Samples of one expert at temperature 0.7, and their vote (Wang et al. 2022, arXiv 2203.11171, §3.1).

    The paper's 0.7 is for GPT-3, without top-k. An expert that scores options instead of writing says
    the same each time; its samples are as many calls and one vote.
    """

    samples: int = 5

    name = "self_consistency"
    title = "the strongest expert several times, vote"
    source = "Self-Consistency, arXiv 2203.11171 (temperature 0.7)"

    @property
    def calls(self) -> int:
        """One per sample."""
        return self.samples

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """From two samples on."""
        return cls(samples=calls) if calls >= 2 else None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile, as every agent."""
        return cast_strongest(context, questions, 1, times=self.samples)
