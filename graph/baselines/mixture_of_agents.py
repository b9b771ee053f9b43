"""Layers of proposers that read the layer before, and an aggregator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...agents.engines import Request
from ...retrieval import Question
from ..state import Resources
from .speech import ask_first, merge
from .talk import Cast, Skills, Talk, cast_strongest, seat_all
from .turns import Seat, Turn, last_round

__all__ = ["MixtureOfAgents", "SelfMoA"]


@dataclass(frozen=True)
class MixtureOfAgents(Talk):
    """Mixture-of-Agents (Wang et al. 2024, arXiv 2406.04692, §2.2): the strongest experts propose.

    Every layer after the first reads the answers of the one before; the last layer is one aggregator, the
    strongest expert. Two layers are the paper's MoA-Lite, three its MoA.
    """

    proposers: int = 3
    layers: int = 2
    """With the aggregator's."""

    name = "mixture_of_agents"
    title = "layers of different experts, then an aggregator"
    source = "Mixture-of-Agents, arXiv 2406.04692 (2 layers: MoA-Lite)"
    speaks = True

    @property
    def calls(self) -> int:
        """One per proposer and layer, and one of the aggregator."""
        return self.proposers * (self.layers - 1) + 1

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """Three proposers in as many layers as fit; below seven calls, one layer as wide as fits."""
        if calls >= 7 and min(experts, 3) == 3:
            return cls(proposers=3, layers=1 + min((calls - 1) // 3, 3))
        proposers = min(calls - 1, experts)
        return cls(proposers=proposers) if proposers >= 2 else None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile, one per agent."""
        return cast_strongest(context, questions, self.proposers)

    def seat(self, question: Question, cast: Sequence[str], turns: Sequence[Turn]) -> list[Seat]:
        """The proposers in each layer, the strongest alone in the last."""
        layer = turns[-1].round + 1 if turns else 0
        if layer == self.layers - 1:
            return [Seat(agent=len(cast), expert=cast[0], merges=True)]
        if layer >= self.layers:
            return []
        return seat_all(cast)

    def pose(
        self,
        context: Resources,
        question: Question,
        seat: Seat,
        cast: Sequence[str],
        turns: Sequence[Turn],
    ) -> Request:
        """The plain question in the first layer, the last layer's drafts in the others."""
        if not turns:
            return ask_first(context, question, seat, cast)
        read = last_round(turns)
        agents = cast if seat.agent < len(cast) else ()
        return merge(context, question, seat, read, cast=agents, round_=turns[-1].round + 1)


@dataclass(frozen=True)
class SelfMoA(MixtureOfAgents):
    """The same with one expert: several of its answers, merged by itself (Li et al. 2025, arXiv 2502.00674).

    Proposals are drawn at temperature 0.7.
    """

    name = "self_moa"
    title = "the strongest expert several times, merged by itself"
    source = "Self-MoA, arXiv 2502.00674 (temperature 0.7)"

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """Always one layer: two proposals and the merging take three calls."""
        return cls(proposers=calls - 1) if calls >= 3 else None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile, as every proposer."""
        return cast_strongest(context, questions, 1, times=self.proposers)
