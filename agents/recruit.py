"""Who is recruited for each question, with the reason in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from ..retrieval import InputError
from .beliefs import Beliefs
from .originals import draw_uniforms
from .outcomes import OutcomeTable, SkillWeights
from .policies import Call, Chosen, Cost, Policy, recruit_many

__all__ = ["Recruit", "explain_recruit", "recruit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recruit:
    """An expert chosen for a question, and why."""

    expert: str
    weight: float
    """Estimated chance to be right, in [0, 1]; 0.5 where nothing is known."""
    reason: str
    """In words and numbers, for people."""
    samples: int = 1
    """How often it was drawn: policies with replacement ask it for as many answers."""

    def to_json(self) -> dict[str, Any]:
        """The recruit as plain JSON values."""
        told = {"expert": self.expert, "weight": self.weight, "reason": self.reason}
        return told | ({"draws": self.samples} if self.samples > 1 else {})


def recruit(
    skills: Mapping[str, SkillWeights],
    experts: Sequence[str],
    *,
    k: int,
    table: OutcomeTable | None = None,
    beliefs: Beliefs | None = None,
    policy: Policy = "skill",
    seed: int = 0,
    near: Mapping[str, Sequence[int]] | None = None,
    cost: Cost | None = None,
) -> dict[str, list[Recruit]]:
    """Choose k experts for each question, the most promising first, with reasons.

    Args:
        skills: Question id to its skills; may be empty for a question.
        experts: Aliases to choose from, in any order.
        k: How many.
        table: The profile's answers; without it every policy draws at random and says so.
        beliefs: Fitted on that table; fitted here if absent.
        policy: See `Policy`.
        seed: Of whatever the policy draws.
        near: Question id to rows of the table that resemble it, for `knn`.
        cost: Cost term and budget of `skill`.

    Raises:
        InputError: k does not fit the experts, an unknown policy, an expert that the table does not
            know, beliefs about other experts than the table's, shares of skills that are no shares, or a
            policy that lacks what it needs.
    """
    aliases = tuple(sorted(set(experts)))
    _check(k, aliases, policy)
    ids = list(skills)
    if table is None:
        return _draw_blindly(ids, aliases, k, seed)
    if beliefs is not None and beliefs.experts != table.experts:
        raise InputError(
            f"the beliefs are about {', '.join(beliefs.experts)}, but the table about "
            f"{', '.join(table.experts)}; fit them on the same table"
        )
    if table.experts != aliases:
        table, beliefs = table.select(np.arange(len(table)), aliases), None
    if beliefs is None:
        beliefs = Beliefs.fit(table)
    if policy == "knn" and near is None:
        raise InputError(
            "the policy knn needs the profile's reference questions; give a profile folder"
        )
    call = Call(
        ids=ids,
        skills=[skills[qid] for qid in ids],
        table=table,
        beliefs=beliefs,
        k=k,
        seed=seed,
        near_QN=None if near is None else _stack([near.get(qid, ()) for qid in ids]),
        cost=cost or Cost(),
    )
    chosen = recruit_many(call, policy)
    return {qid: _tell(call, chosen, row) for row, qid in enumerate(ids)}


def explain_recruit(beliefs: Beliefs, expert: str, skills: SkillWeights) -> str:
    """For instance `arithmetic 0.71 [0.55, 0.84], overall 0.44 (120 answers)`.

    Each share is the shrunk estimate with its 95 % credible interval.

    Raises:
        InputError: nothing is believed about the expert.
    """
    strengths = beliefs.strengths
    if expert not in strengths.experts:
        raise InputError(f'no expert "{expert}"; there are {", ".join(strengths.experts)}')
    row = strengths.experts.index(expert)
    parts: list[str] = []
    for skill in skills:
        if skill in strengths.place:
            low, high = strengths.interval(expert, skill)
            share = float(strengths.skill_ES[row, strengths.place[skill]])
            parts.append(f"{skill} {share:.2f} [{low:.2f}, {high:.2f}]")
        else:
            parts.append(f"{skill} never seen")
    seen = f"{strengths.asked_E[row]:.0f} answers" if strengths.asked_E[row] else "no answers"
    return ", ".join([*parts, f"overall {strengths.overall_E[row]:.2f} ({seen})"])


def _tell(call: Call, chosen: Chosen, row: int) -> list[Recruit]:
    """Recruits of one question; an expert that was drawn several times stands once."""
    places = [int(place) for place in chosen.experts_Qk[row] if place >= 0]
    told: list[Recruit] = []
    for at, place in enumerate(dict.fromkeys(places)):
        expert = call.table.experts[place]
        parts = [explain_recruit(call.beliefs, expert, call.skills[row])]
        if at and not chosen.note:
            before = list(dict.fromkeys(places))[:at]
            alike = call.beliefs.alike_EE[place, before].mean()
            parts.append(f"errors alike the panel's so far {alike:.2f}")
        if call.cost.counts:
            spent = getattr(call.table, f"{call.cost.unit}_E")[place]
            parts.append(f"{f'{spent:.0f}' if spent else 'unknown'} {call.cost.unit} a call")
        chance = float(chosen.chance_QE[row, place])
        parts += [chosen.note.format(chance=chance)] if chosen.note else []
        told.append(
            Recruit(
                expert=expert,
                weight=chance,
                reason="; ".join(parts),
                samples=places.count(place),
            )
        )
    return told


def _check(k: int, aliases: Sequence[str], policy: str) -> None:
    if not 1 <= k <= len(aliases):
        raise InputError(
            f"k is {k}, but the pool has {len(aliases)} experts ({', '.join(aliases)}); "
            f"choose k between 1 and {len(aliases)}"
        )
    if policy not in get_args(Policy):
        raise InputError(f'unknown policy "{policy}"; policies are {", ".join(get_args(Policy))}')


def _draw_blindly(
    ids: Sequence[str], aliases: Sequence[str], k: int, seed: int
) -> dict[str, list[Recruit]]:
    reason = f"no profile: drawn at random (seed {seed})"
    order_QE = np.argsort(draw_uniforms(ids, len(aliases), seed), axis=1)[:, :k]
    return {
        qid: [Recruit(expert=aliases[int(at)], weight=0.5, reason=reason) for at in row]
        for qid, row in zip(ids, order_QE.tolist(), strict=True)
    }


def _stack(rows: Sequence[Sequence[int]]) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Rows of unequal length as one matrix, filled up with -1."""
    width = max((len(row) for row in rows), default=0)
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], dtype=np.intp).reshape(
        len(rows), width
    )
