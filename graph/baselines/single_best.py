"""The strongest expert alone: what every mixture has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...retrieval import Question
from ..state import Resources
from .talk import Cast, Skills, Talk, cast_strongest

__all__ = ["SingleBest"]


@dataclass(frozen=True)
class SingleBest(Talk):
    """One call to the expert with the best profile ("Task-Best" in Symbolic-MoE's table)."""

    name = "single_best"
    title = "the strongest expert alone"
    source = "Symbolic-MoE, arXiv 2503.05641, table 1: Task-Best"

    @property
    def calls(self) -> int:
        """One."""
        return 1

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """Always."""
        return cls()

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile."""
        return cast_strongest(context, questions, 1)
