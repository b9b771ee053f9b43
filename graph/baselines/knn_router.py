"""One expert per question: the one that was right on the most similar labelled questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...retrieval import Question
from ..state import Resources
from .talk import Cast, Skills, Talk, recruit_for

__all__ = ["KnnRouter"]


@dataclass(frozen=True)
class KnnRouter(Talk):
    """Nearest neighbours among the references, by sentence embeddings.

    The router that LLMRouterBench (arXiv 2601.07206) finds hard to beat. It asks one expert.
    """

    name = "knn_router"
    title = "the expert that was right on similar questions"
    source = "kNN routing, LLMRouterBench, arXiv 2601.07206"

    @property
    def calls(self) -> int:
        """One."""
        return 1

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """Always."""
        return cls()

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """By the policy `knn`."""
        return recruit_for(context, questions, skills, k=1, policy="knn")
