"""Experts drawn at random, and an aggregator: what recruiting by skill has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...agents import Recruit
from ...retrieval import Question
from ..state import Resources
from .talk import Cast, Skills, Talk, cast_strongest, recruit_for
from .turns import Seat, Turn

__all__ = ["RandomPanel", "SymbolicMoE"]


@dataclass(frozen=True)
class RandomPanel(Talk):
    """K different experts drawn for each question, then the strongest expert merges their answers.

    A control of Symbolic-MoE's tables ("random experts", symbolic-moe.md §3.4).
    """

    k: int = 3

    name = "random_panel"
    title = "experts at random, then an aggregator"
    source = "control of Symbolic-MoE, arXiv 2503.05641"
    speaks = True

    @property
    def calls(self) -> int:
        """One per expert and one of the aggregator."""
        return self.k + 1

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """From two experts and the aggregator on."""
        k = min(calls - 1, experts)
        return cls(k=k) if k >= 2 else None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The panel, and the strongest expert after it."""
        panel = self.recruit(context, questions, skills)
        best = cast_strongest(context, questions, 1)
        return {qid: [*recruits, *best[qid]] for qid, recruits in panel.items()}

    def recruit(
        self, context: Resources, questions: Sequence[Question], skills: Skills
    ) -> dict[str, list[Recruit]]:
        """Who answers, before anything is merged."""
        return recruit_for(context, questions, skills, k=self.k, policy="random")

    def seat(self, question: Question, cast: Sequence[str], turns: Sequence[Turn]) -> list[Seat]:
        """The panel, then the aggregator."""
        if not turns:
            return [Seat(agent=at, expert=expert) for at, expert in enumerate(cast[:-1])]
        if turns[-1].merges:
            return []
        return [Seat(agent=len(cast) - 1, expert=cast[-1], merges=True)]


@dataclass(frozen=True)
class SymbolicMoE(RandomPanel):
    """Symbolic-MoE as its published code recruits, with a model that always merges (symbolic-moe.md §1.5–1.8).

    Three experts are drawn with replacement by the policy `reference`; repeated draws are further samples. The
    aggregator is the strongest expert: who merges best is found out by `expertmix aggregators`, at a cost
    that no other method here is charged.
    """

    name = "symbolic_moe"
    title = "Symbolic-MoE as published: drawn by skill, then an aggregator"
    source = "Symbolic-MoE, arXiv 2503.05641, and its code (3 + 1 calls)"
    needs_skills = True

    def recruit(
        self, context: Resources, questions: Sequence[Question], skills: Skills
    ) -> dict[str, list[Recruit]]:
        """As the published code draws."""
        return recruit_for(context, questions, skills, k=self.k, policy="reference")
