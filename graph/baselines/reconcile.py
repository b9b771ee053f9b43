"""Different experts discuss with stated confidence, and vote by it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from ...agents import Verdict, strip_thinking
from ...agents.drafts import quote_drafts
from ...agents.engines import Request
from ...agents.prompt import fill_prompt
from ...retrieval import Question
from ..state import Resources
from .speech import ask_again, ask_first, chooses
from .talk import Cast, Skills, Talk, cast_strongest, conclude, seat_all
from .turns import Seat, Turn, answers_of, last_answers

__all__ = ["ReConcile", "read_confidence", "recalibrate"]

_CONFIDENCE = re.compile(
    r"confidence(?:[ _]level)?[^\w.]{0,6}(?:is[^\w.]{0,3})?(\d+(?:\.\d+)?|\.\d+)\s*(%)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ReConcile(Talk):
    """Round table of different models (Chen et al. 2023, arXiv 2309.13007, §3).

    Every expert answers, explains itself and states its confidence. While they differ, and for two further
    rounds at most, each sees all answers, grouped, with explanations and confidences, and answers again. The
    final vote weighs recalibrated confidences; a tie goes to more votes, then to the stronger expert. The paper's
    "convincing samples" (explanations by people that corrected the other models) are left out: no such
    samples exist for a user's own questions. An expert that scores options states the chosen one's probability.
    """

    agents: int = 3
    discussions: int = 2

    name = "reconcile"
    title = "different experts discuss, confidence-weighted vote"
    source = "ReConcile, arXiv 2309.13007 (3 models, at most 2 discussion rounds)"
    speaks = True

    @property
    def calls(self) -> int:
        """One per expert and round."""
        return self.agents * (1 + self.discussions)

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """Three experts if they can discuss once, which takes six calls; else two."""
        agents = min(3 if calls >= 6 else 2, experts)
        if agents < 2 or calls < 2 * agents:
            return None
        return cls(agents=agents, discussions=min(calls // agents - 1, 2))

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile, one per agent."""
        return cast_strongest(context, questions, self.agents)

    def seat(self, question: Question, cast: Sequence[str], turns: Sequence[Turn]) -> list[Seat]:
        """Everybody, until they agree or have talked enough."""
        if not turns:
            return seat_all(cast)
        voted = conclude(question, turns)
        agree = len(voted.votes) == 1 and not voted.unread
        return [] if agree or turns[-1].round >= self.discussions else seat_all(cast)

    def pose(
        self,
        context: Resources,
        question: Question,
        seat: Seat,
        cast: Sequence[str],
        turns: Sequence[Turn],
    ) -> Request:
        """The question with a request for a confidence; later with everybody's answers before it.

        Whoever scores options is asked for no confidence: its scores hold it.
        """
        asking = "" if chooses(context, question, seat) else fill_prompt("talk-confidence")
        if not turns and not asking:
            return ask_first(context, question, seat, cast)
        if not turns:
            return ask_again(context, question, seat, cast, round_=0, words=asking)
        table = _lay_out(context, question, last_answers(turns))
        words = "\n\n".join(filter(None, (table, asking)))
        if not words:
            return ask_first(context, question, seat, cast)
        return ask_again(context, question, seat, cast, round_=turns[-1].round + 1, words=words)

    def decide(self, question: Question, turns: Sequence[Turn]) -> Verdict:
        """The answer with the largest sum of recalibrated confidences; its share of them all."""
        voted = conclude(question, turns)
        if not voted.votes:
            return voted
        weights = {turn.expert: recalibrate(read_confidence(turn)) for turn in last_answers(turns)}
        sums = {
            answer: sum(weights[who] for who in agents) for answer, agents in voted.votes.items()
        }
        best = max(sums, key=lambda answer: round(sums[answer], 9))  # ties: as voted
        return replace(voted, answer=best, confidence=sums[best] / sum(sums.values()))


def read_confidence(turn: Turn) -> float | None:
    """The confidence that a turn states, in [0, 1]; None if it states none.

    For scored options it is the probability of the chosen one among them.
    """
    if turn.chance is not None:
        return turn.chance
    found = _CONFIDENCE.findall(strip_thinking(turn.text))
    if not found:
        return None
    number, percent = found[-1]
    value = float(number)
    if percent or 1 < value <= 100:
        value /= 100
    return value if value <= 1 else None


def recalibrate(confidence: float | None) -> float:
    """The weight of a stated confidence: models are too sure of themselves (§3.3 of the paper).

    What states none weighs as little as what doubts itself most.
    """
    if confidence is None or confidence <= 0.6:
        return 0.1
    if confidence < 0.8:
        return 0.3
    if confidence < 0.9:
        return 0.5
    return 0.8 if confidence < 1 else 1.0


def _lay_out(context: Resources, question: Question, turns: Sequence[Turn]) -> str:
    """Everybody's answers, one group per answer, the largest first."""
    voted = conclude(question, turns)
    groups: list[str] = []
    for answer, who in voted.votes.items():
        members = [turn for turn in turns if turn.expert in who]
        fence, quoted = quote_drafts(question, answers_of(members), context.seed)
        stated = [read_confidence(turn) for turn in members]
        told = ", ".join(
            "not stated" if s is None else f"{s:.2f}" for s in sorted(stated, key=_order)
        )
        groups.append(
            fill_prompt(
                "talk-group",
                number=str(len(who)),
                answer=answer,
                told=told,
                fence=fence,
                drafts=quoted,
            )
        )
    return "\n\n".join(groups)


def _order(confidence: float | None) -> float:
    return 2.0 if confidence is None else -confidence
