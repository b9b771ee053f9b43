"""From a panel's answers to one verdict: by vote, or by a model that reads the drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..retrieval import Question
from .answers import same_answer
from .drafts import build_aggregation, read_aggregate
from .engines import Reply, Usage
from .reason import Answer

__all__ = ["Verdict", "build_aggregation", "read_aggregation", "vote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The panel's answer to one question, with all that speaks for and against it."""

    question_id: str
    answer: str | None
    """None only if no expert gave a readable answer."""
    confidence: float
    """With a profile the chance that the answer is right, calibrated on the profile's questions; without
    one the share of the readable answers that agree with it, which is a description and no chance."""
    method: Literal["posterior", "vote", "model", "none"]
    votes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Each answer given, with the experts that gave it, the most supported first."""
    unread: tuple[str, ...] = ()
    """Experts whose reply holds no answer that could be read."""
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    """Experts that failed, with the reason."""
    usage: Usage = field(default_factory=Usage)
    """Tokens of the aggregating model."""
    text: str = ""
    """The aggregating model's reply, if one was asked: untrusted text."""
    chances: Mapping[str, float] = field(default_factory=dict[str, float])
    """Each answer's chance to be right, the likeliest first; empty without a profile. What is missing to 1
    belongs to answers that nobody gave."""
    abstained: bool = False
    """There is no answer because the confidence was too small."""
    note: str = ""
    """What the reader should know, for instance that the model's answer could not be read."""

    @property
    def dissent(self) -> dict[str, tuple[str, ...]]:
        """Answers other than the verdict, with the experts that gave them."""
        return {answer: who for answer, who in self.votes.items() if answer != self.answer}

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        return {
            "id": self.question_id,
            "answer": self.answer,
            "confidence": self.confidence,
            "method": self.method,
            "votes": {answer: list(who) for answer, who in self.votes.items()},
            "dissent": {answer: list(who) for answer, who in self.dissent.items()},
            "unread": list(self.unread),
            "missing": dict(self.missing),
            "chances": {answer: round(chance, 6) for answer, chance in self.chances.items()},
            "abstained": self.abstained,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "text": self.text,
            "note": self.note,
        }


def vote(
    question: Question, answers: Sequence[Answer], weights: Mapping[str, float] | None = None
) -> Verdict:
    """The most common answer.

    A tie goes to the answer whose experts have the larger sum of `weights`, then to the answer that
    was given first in the order of `answers`. Equal numbers written differently are one answer.
    """
    groups: list[tuple[str, list[Answer]]] = []
    for answer in answers:
        if answer.answer is None:
            continue
        for shown, members in groups:
            if same_answer(shown, answer.answer, question):
                members.append(answer)
                break
        else:
            groups.append((answer.answer, [answer]))

    def support(group: tuple[str, list[Answer]]) -> tuple[int, float]:
        return len(group[1]), sum((weights or {}).get(member.expert, 0.0) for member in group[1])

    groups.sort(key=support, reverse=True)  # stable: the first given stays first
    given = sum(len(members) for _, members in groups)
    return Verdict(
        question_id=question.id,
        answer=groups[0][0] if groups else None,
        confidence=len(groups[0][1]) / given if groups else 0.0,
        method="vote" if groups else "none",
        votes={shown: tuple(m.expert for m in members) for shown, members in groups},
        unread=tuple(a.expert for a in answers if a.answer is None and a.error is None),
        missing={a.expert: a.error for a in answers if a.error is not None},
    )


def read_aggregation(
    reply: Reply, question: Question, voted: Verdict, aggregator: str = "the aggregator"
) -> Verdict:
    """The verdict of a model that read the drafts; the vote where it failed or cannot be read.

    A failure is reported among the missing, so that a resumed run asks the model again.
    """
    answer = read_aggregate(reply, question)
    voted = replace(voted, usage=reply.usage)
    if reply.failure is not None:
        voted = replace(voted, missing={**voted.missing, aggregator: reply.failure.message})
    if answer is None:
        why = "its reply holds no answer" if reply.failure is None else reply.failure.message
        return replace(
            voted, text=reply.text, note=f"the aggregator could not decide ({why}): vote kept"
        )
    shown = next((v for v in voted.votes if same_answer(v, answer, question)), answer)
    agreeing = len(voted.votes.get(shown, ()))
    given = sum(map(len, voted.votes.values()))
    unanimous = len(voted.votes) == 1 and shown not in voted.votes
    return replace(
        voted,
        answer=shown,
        confidence=_rate(voted, shown, agreeing / given if given else 0.0),
        method="model",
        text=reply.text,
        note="the aggregator contradicts a unanimous panel" if unanimous else "",
    )


def _rate(voted: Verdict, answer: str, agreement: float) -> float:
    """The confidence in a model's choice: what the panel's answers say for it, on the scale of the verdict.

    An answer that nobody gave has what the given ones leave, which it shares with all others.
    """
    if not voted.chances:
        return agreement
    return voted.chances.get(answer, max(0.0, 1 - sum(voted.chances.values())))
