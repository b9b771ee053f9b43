"""What a profile is made of: outcomes, references and experts; and how they are summed up for people."""

from __future__ import annotations

import hashlib
import json
import math
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

from ..retrieval import AnswerKind, InputError
from .outcomes import SkillWeights

__all__ = [
    "ExpertProfile",
    "ExpertRecord",
    "Outcome",
    "Reference",
    "Tally",
    "hash_references",
    "sum_up",
]

EXCESS = 1e-4
"""How far rounding may take the sum of shares above 1."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One reply to one reference. A failed request has none: it says nothing about skill."""

    question_id: str
    expert: str
    sample: int
    answer: str | None
    """Canonical, as `read_answer` gives it; None if the reply holds no answer."""
    right: bool
    tokens: int
    """Generated tokens."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Which request of whom: question, expert, sample."""
        return self.question_id, self.expert, self.sample


@dataclass(frozen=True, slots=True)
class Reference:
    """What outcomes need to know of a labelled question. Its text stays out of profiles.

    Raises:
        InputError: the gold of a choice is none of its letters, or shares of skills are out of range.
    """

    id: str
    gold: str
    options: int
    """How many; 0 for open questions."""
    kind: AnswerKind
    skills: SkillWeights = field(default_factory=dict[str, float])
    content: str = ""
    """Hash of the whole question, so that a changed text is noticed; empty if unknown."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(AnswerKind):
            raise InputError(f'the reference "{self.id}" is of the unknown kind {self.kind!r}')
        if (self.kind == "choice") != bool(self.options):
            raise InputError(
                f'the reference "{self.id}" is a {self.kind} with {self.options} options; '
                "choices have options and nothing else has"
            )
        letters = string.ascii_uppercase[: self.options]
        if self.options and (len(self.gold) != 1 or self.gold not in letters):
            raise InputError(
                f'the reference "{self.id}" has the gold {self.gold!r}, but its options are '
                f"{letters[0]} to {letters[-1]}"
            )
        shares = self.skills.values()
        if not all(0 < share <= 1 for share in shares) or math.fsum(shares) > 1 + EXCESS:
            raise InputError(
                f'the skills of the reference "{self.id}" have the shares {[*shares]}; shares lie '
                "above 0 and sum to at most 1"
            )

    @property
    def asked(self) -> Reference:
        """The reference without its skills: what answers and their grades depend on."""
        return replace(self, skills={})


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """Which expert the outcomes are of."""

    identity: str
    """Revisions, adapter, persona, style and sampling that the answers came from (`Pool.identity`)."""
    seconds_per_call: float = 0.0
    """Mean wall seconds in the batches of the profiling runs; 0 where nothing was measured."""
    failed: int = 0
    """Requests that were made and still have no reply."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Right and wrong answers. A question counts by its skill's share of it, and once however often
    it was asked, so counts may be fractions.
    """

    right: float = 0.0
    wrong: float = 0.0

    @property
    def total(self) -> float:
        """Answers that count."""
        return self.right + self.wrong

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.wrong + other.wrong)

    def to_json(self) -> list[float]:
        """Right and wrong, without the noise of adding fractions."""
        return [round(self.right, 6), round(self.wrong, 6)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertProfile:
    """One expert's outcomes, summed up for people; policies read `Profile.table`."""

    identity: str
    skills: Mapping[str, Tally]
    """Sorted by name. Skills of which it answered no question are not there."""
    overall: Tally
    failed: int = 0
    tokens_per_call: float = 0.0
    """Mean generated tokens."""
    seconds_per_call: float = 0.0
    """Mean wall seconds."""

    @property
    def strength(self) -> float:
        """Estimated chance to answer any question right: the mean of Beta(right + 1, wrong + 1)."""
        return (self.overall.right + 1) / (self.overall.total + 2)


def sum_up(
    record: ExpertRecord, outcomes: Iterable[Outcome], references: Mapping[str, Reference]
) -> ExpertProfile:
    """Add one expert's outcomes up. An unreadable answer is wrong."""
    grades: dict[str, list[bool]] = {}
    tokens: list[int] = []
    for outcome in outcomes:
        grades.setdefault(outcome.question_id, []).append(outcome.right)
        tokens.append(outcome.tokens)
    overall, tallies = Tally(), dict[str, Tally]()
    for qid, given in grades.items():
        right = sum(given) / len(given)
        overall += Tally(right, 1 - right)
        for skill, share in references[qid].skills.items():
            point = Tally(share * right, share * (1 - right))
            tallies[skill] = tallies.get(skill, Tally()) + point
    return ExpertProfile(
        identity=record.identity,
        skills=dict(sorted(tallies.items())),
        overall=overall,
        failed=record.failed,
        tokens_per_call=sum(tokens) / max(1, len(tokens)),
        seconds_per_call=record.seconds_per_call,
    )


def hash_references(references: Iterable[Reference]) -> str:
    """A sha256 over what was asked and the gold answers, the same in any order; skills are left out."""
    rows = sorted([r.id, r.gold, str(r.options), r.kind, r.content] for r in references)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
