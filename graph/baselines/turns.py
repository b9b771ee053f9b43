"""What is said while a question is worked on: who speaks, in which round, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...agents import Answer
from ...agents.engines import Usage

__all__ = ["Seat", "Turn", "answers_of", "last_answers", "last_round"]

TurnKind = Literal["answer", "feedback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Who speaks next about a question."""

    agent: int
    """Place at the table. Several agents may be one expert, asked with different seeds."""
    expert: str
    kind: TurnKind = "answer"
    merges: bool = False
    """Whether this turn reads the others' drafts and decides."""

    def to_json(self) -> dict[str, Any]:
        """The seat as plain JSON values."""
        told = {"agent": self.agent, "expert": self.expert}
        return {**told, "kind": self.kind, "merges": self.merges}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one agent said in one round."""

    question_id: str
    expert: str
    agent: int
    round: int
    """0 is the first."""
    kind: TurnKind = "answer"
    merges: bool = False
    answer: str | None = None
    """Canonical; None for feedback, and where none could be read or the expert failed."""
    text: str = ""
    """The whole reply: untrusted."""
    chance: float | None = None
    """Probability of the option among all options, where options were scored instead of written."""
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    """As `Answer.details`."""

    @property
    def key(self) -> str:
        """Under which an expert's turn is kept."""
        return f"{self.question_id}#{self.round}.{self.agent}"

    def to_json(self) -> dict[str, Any]:
        """The turn as plain JSON values; like `Answer.to_json`, and who spoke when."""
        told = {"details": dict(self.details)} if self.details else {}
        return {
            "question_id": self.question_id,
            "expert": self.expert,
            "sample": self.agent,
            "round": self.round,
            "agent": self.agent,
            "kind": self.kind,
            "merges": self.merges,
            "answer": self.answer,
            "text": self.text,
            "chance": self.chance,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "error": self.error,
            **told,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Turn:
        """Read what `to_json` gave."""
        usage = Usage(
            prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]
        )
        names = ("question_id", "expert", "agent", "round", "kind", "merges")
        said = ("answer", "text", "chance", "error")
        details = row.get("details", {})
        return cls(usage=usage, details=details, **{name: row[name] for name in (*names, *said)})


def answers_of(turns: Iterable[Turn]) -> list[Answer]:
    """Turns as answers, for whatever merges answers; feedback is none."""
    return [
        Answer(
            question_id=turn.question_id,
            expert=turn.expert,
            sample=turn.agent,
            answer=turn.answer,
            text=turn.text,
            usage=turn.usage,
            error=turn.error,
        )
        for turn in turns
        if turn.kind == "answer"
    ]


def last_round(turns: Sequence[Turn]) -> list[Turn]:
    """The answers of the latest round in which any was given, by agent."""
    given = [turn for turn in turns if turn.kind == "answer"]
    latest = max((turn.round for turn in given), default=0)
    return [turn for turn in given if turn.round == latest]


def last_answers(turns: Sequence[Turn]) -> list[Turn]:
    """Each agent's latest turn that holds an answer, by agent; its latest one at all if none does.

    An agent whose update failed or cannot be read keeps the answer that it had.
    """
    latest: dict[int, Turn] = {}
    for turn in turns:
        if turn.kind == "answer" and not turn.merges:
            before = latest.get(turn.agent)
            if before is None or before.answer is None or turn.answer is not None:
                latest[turn.agent] = turn
    return [latest[agent] for agent in sorted(latest)]
