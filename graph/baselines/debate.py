"""Agents answer, read each other's answers, and answer again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from ...agents.drafts import quote_drafts
from ...agents.engines import Request
from ...agents.prompt import fill_prompt
from ...retrieval import Question
from ..state import Resources
from .speech import ask_again, ask_first
from .talk import Cast, Skills, Talk, cast_strongest, seat_all
from .turns import Seat, Turn, answers_of

__all__ = ["Debate", "MixedDebate"]


@dataclass(frozen=True)
class Debate(Talk):
    """Multi-agent debate of one expert with itself (Du et al. 2023, arXiv 2305.14325, §2).

    Three agents and two rounds, as in the paper's main results. After the first round each agent sees the
    others' latest answers in full beside its own. The last answers are put to the vote, a tie goes to the
    lower agent. Written from the paper; where nothing can be read, nothing counts (the published scorer counts
    it as right). Agents of one expert draw at temperature 0.7.
    """

    agents: int = 3
    rounds: int = 2

    name = "debate"
    title = "the strongest expert debates with itself"
    source = "Multiagent Debate, arXiv 2305.14325 (3 agents, 2 rounds)"
    speaks = True
    experts: ClassVar[int | None] = 1

    @property
    def calls(self) -> int:
        """One per agent and round."""
        return self.agents * self.rounds

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """Three agents if they can answer twice, which takes six calls; else two."""
        agents = 3 if calls >= 6 else 2
        agents = agents if cls.experts == 1 else min(agents, experts)
        rounds = min(calls // agents, 4)
        return cls(agents=agents, rounds=rounds) if agents > 1 and rounds > 1 else None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile, as every agent."""
        return cast_strongest(context, questions, 1, times=self.agents)

    def seat(self, question: Question, cast: Sequence[str], turns: Sequence[Turn]) -> list[Seat]:
        """Every agent, in each round."""
        return seat_all(cast) if not turns or turns[-1].round < self.rounds - 1 else []

    def pose(
        self,
        context: Resources,
        question: Question,
        seat: Seat,
        cast: Sequence[str],
        turns: Sequence[Turn],
    ) -> Request:
        """The plain question; later with the others' latest answers, after the agent's own ones."""
        if not turns:
            return ask_first(context, question, seat, cast)
        number = turns[-1].round + 1
        history = [
            (own.text, _tell(context, question, seat.agent, own.round, turns))
            for own in turns
            if own.agent == seat.agent and own.error is None
        ]
        words = _tell(context, question, seat.agent, number - 1, turns)
        if history:
            history[-1] = history[-1][0], words
        return ask_again(context, question, seat, cast, round_=number, words=words, history=history)


@dataclass(frozen=True)
class MixedDebate(Debate):
    """The same debate between different experts, the strongest ones (§3.4 of the paper mixes two models)."""

    name = "debate_mixed"
    title = "different experts debate"
    source = "Multiagent Debate, arXiv 2305.14325, with different models"
    experts: ClassVar[int | None] = None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile, one per agent."""
        return cast_strongest(context, questions, self.agents)


def _tell(
    context: Resources, question: Question, agent: int, round_: int, turns: Sequence[Turn]
) -> str:
    """What an agent is told of the others' answers of a round."""
    others = [turn for turn in turns if turn.round == round_ and turn.agent != agent]
    fence, quoted = quote_drafts(question, answers_of(others), context.seed)
    if not quoted:
        return fill_prompt("talk-alone")
    return fill_prompt("talk-debate", fence=fence, drafts=quoted)
