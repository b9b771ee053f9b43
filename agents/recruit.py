"""Which experts answer a question: named policies behind one signature.

Every policy is a pure function of its arguments. Experts are considered in alphabetical order, and
an expert wins a tie against one that comes later in it, so neither the order of files nor of questions
can change who is recruited.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..retrieval import InputError
from .profile import ExpertProfile, Profile, Tally
from .reason import derive_seed

__all__ = ["Policy", "Recruit", "recruit"]

Policy = Literal["skill", "top_k", "random"]
"""`skill`: the k experts with the best shrunk estimate for the question's skills. `top_k`: the k
strongest overall, whatever the question. `random`: k different ones, drawn per question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recruit:
    """An expert chosen for a question, and why."""

    expert: str
    weight: float
    """Estimated chance to be right, in [0, 1]; 0.5 where nothing is known."""
    reason: str
    """In words and numbers, for people."""

    def to_json(self) -> dict[str, Any]:
        """The recruit as plain JSON values."""
        return {"expert": self.expert, "weight": self.weight, "reason": self.reason}


def recruit(
    skills: Mapping[str, Sequence[str]],
    experts: Sequence[str],
    *,
    k: int,
    profile: Profile | None = None,
    policy: Policy = "skill",
    seed: int = 0,
) -> dict[str, list[Recruit]]:
    """Choose k different experts for each question, the most promising first.

    Args:
        skills: Question id to its skills; may be empty for a question.
        experts: Aliases to choose from, in any order.
        k: How many.
        profile: Who is good at what; without it every policy draws at random and says so.
        policy: See `Policy`.
        seed: Of the random policy.

    Raises:
        InputError: k is not between 1 and the number of experts, an unknown policy, or an expert
            that the profile does not know.
    """
    aliases = sorted(experts)
    if not 1 <= k <= len(aliases):
        raise InputError(
            f"k is {k}, but the pool has {len(aliases)} experts ({', '.join(aliases)}); "
            f"choose k between 1 and {len(aliases)}"
        )
    if policy not in ("skill", "top_k", "random"):
        raise InputError(f'unknown policy "{policy}"; policies are skill, top_k, random')
    if profile is None or policy == "random":
        return {qid: _draw(aliases, k, qid, profile, seed) for qid in skills}
    known = {alias: profile[alias] for alias in aliases}
    ranked: dict[tuple[str, ...], list[Recruit]] = {}
    choose: Callable[[tuple[str, ...]], list[Recruit]] = (
        (lambda _: _rank(known, (), k)) if policy == "top_k" else (lambda s: _rank(known, s, k))
    )
    for names in {tuple(names) for names in skills.values()}:
        ranked[names] = choose(names)
    return {qid: ranked[tuple(names)] for qid, names in skills.items()}


def _rank(experts: Mapping[str, ExpertProfile], skills: tuple[str, ...], k: int) -> list[Recruit]:
    names = tuple(dict.fromkeys(skills))
    estimates = {
        alias: sum(map(expert.estimate, names)) / len(names) if names else expert.strength
        for alias, expert in experts.items()
    }
    best = sorted(estimates, key=lambda alias: -estimates[alias])[:k]  # stable: ties keep the order
    return [
        Recruit(expert=a, weight=estimates[a], reason=_explain(experts[a], names)) for a in best
    ]


def _explain(expert: ExpertProfile, skills: tuple[str, ...]) -> str:
    """For instance `arithmetic 0.71 (9 of 12), overall 0.44 (53 of 120)`."""
    parts = [
        f"{skill} {expert.estimate(skill):.2f} ({_share(expert.skills.get(skill, Tally()))})"
        for skill in skills
    ]
    return ", ".join([*parts, f"overall {expert.strength:.2f} ({_share(expert.overall)})"])


def _share(tally: Tally) -> str:
    return f"{tally.right} of {tally.total}" if tally.total else "never seen"


def _draw(
    aliases: Sequence[str], k: int, question_id: str, profile: Profile | None, seed: int
) -> list[Recruit]:
    chance = random.Random(derive_seed(seed, "recruit", question_id))
    why = "no profile: drawn at random" if profile is None else "drawn at random"
    return [
        Recruit(
            expert=alias,
            weight=0.5 if profile is None else profile[alias].strength,
            reason=f"{why} (seed {seed})",
        )
        for alias in chance.sample(aliases, k)
    ]
