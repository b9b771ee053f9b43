"""The recruiting policies: pure functions of a `Call`, arrays in, arrays out.

Experts stand in alphabetical order and win a tie against those that come later in it; what is drawn
depends on the seed and the question's id. So no order of files, questions or arrivals can change who is
recruited (the published code depends on a directory listing, symbolic-moe.md §2, point 7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError
from .beliefs import Beliefs
from .originals import (
    count_tags,
    draw_uniforms,
    draw_with_replacement,
    local_scores,
    net_scores,
    normalise,
    trim_rare,
    weigh_paper,
    weigh_reference,
)
from .outcomes import OutcomeTable, SkillWeights

__all__ = [
    "DIVERSITY",
    "NEAREST",
    "POLICIES",
    "Call",
    "Chosen",
    "Cost",
    "Policy",
    "fill_costs",
    "log_relative",
    "recruit_as_coded",
    "recruit_as_published",
    "recruit_at_random",
    "recruit_by_neighbours",
    "recruit_by_skill",
    "recruit_many",
    "recruit_strongest",
]

Policy = Literal["skill", "top_k", "knn", "random", "paper", "paper-trimmed", "reference"]
"""`skill` (default): the experts with the best shrunk estimates for the question's skills whose errors are
unlike those of the experts chosen before. `top_k`: the strongest overall, whatever the question. `knn`:
those that were right on the nearest reference questions. `random`: different ones, drawn per question.
`paper`, `paper-trimmed` and `reference`: what Symbolic-MoE describes, without and with its trimming of rare
experts, and what its published code does; these three may draw an expert more than once."""
POLICIES: tuple[Policy, ...] = (
    "skill",
    "top_k",
    "knn",
    "random",
    "paper",
    "paper-trimmed",
    "reference",
)
DIVERSITY = 2.0
"""Log-odds that an expert loses for errors wholly correlated with those of the panel so far. Chosen among
0, 0.5, 1, 2 and 4 by the log-score of three-expert panels in cross-validation on the profile questions."""
NEAREST = 20
NEAREST_PRIOR = 2.0
"""Answers that an expert's overall share is worth to the `knn` policy."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a call is worth avoiding; understood by the `skill` policy and by adaptive panels.

    Raises:
        InputError: a weight below 0, a budget not above 0, or NaN.
    """

    unit: Literal["tokens", "seconds"] = "tokens"
    weight: float = 0.0
    """Log-odds that an expert loses for costing e times as much as the mean of the pool."""
    budget: float | None = None
    """Most that a question may cost: experts that do not fit into what is left are not recruited. If none
    fits, the cheapest is recruited alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < np.inf:
            raise InputError(f"the weight of costs is {self.weight}; choose a number of at least 0")
        if self.budget is not None and not self.budget > 0:
            raise InputError(f"the budget of a question is {self.budget}; choose one above 0")

    @property
    def counts(self) -> bool:
        """Whether costs matter at all."""
        return self.weight > 0 or self.budget is not None


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a policy knows: Q questions, E experts, and a profile of N reference questions."""

    ids: Sequence[str]
    """Of the questions."""
    skills: Sequence[SkillWeights]
    table: OutcomeTable
    beliefs: Beliefs
    k: int
    seed: int = 0
    near_QN: Ints | None = None
    """Rows of the table that resemble each question, for `knn`; -1 where there are fewer."""
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Who is asked, the most promising first."""

    experts_Qk: Ints
    """Places in `table.experts`; -1 where nobody is asked."""
    chance_QE: Floats
    """Estimated chance of every expert to be right."""
    note: str = ""
    """What a recruit's reason says beside its estimates; `{chance}` is replaced by the expert's chance."""


def recruit_many(call: Call, policy: Policy) -> Chosen:
    """The policy by name, on arrays; what `recruit` does without writing reasons.

    Raises:
        InputError: `knn` without neighbours, nobody left after trimming, shares of skills that
            `weigh_skills` refuses, or costs that the table does not hold.
    """
    by_name: dict[Policy, Callable[[Call], Chosen]] = {
        "skill": recruit_by_skill,
        "top_k": recruit_strongest,
        "knn": recruit_by_neighbours,
        "random": recruit_at_random,
        "paper": recruit_as_published,
        "paper-trimmed": lambda c: recruit_as_published(c, trim=True),
        "reference": recruit_as_coded,
    }
    return by_name[policy](call)


def recruit_by_skill(call: Call) -> Chosen:
    """Best log-odds first; each next expert also pays for errors like those of the chosen, and its cost."""
    chance_QE = call.beliefs.expect(call.skills)
    clipped_QE = np.clip(chance_QE, 1e-6, 1 - 1e-6)
    worth_QE = np.log(clipped_QE) - np.log1p(-clipped_QE)
    spent_E = getattr(call.table, f"{call.cost.unit}_E")
    if call.cost.counts:
        spent_E = fill_costs(spent_E)
        worth_QE -= call.cost.weight * log_relative(spent_E)
    rows_Q = np.arange(len(worth_QE))
    experts_Qk = np.full((len(worth_QE), call.k), -1, np.intp)
    alike_QE = np.zeros_like(worth_QE)
    left_Q = np.full(len(worth_QE), np.inf if call.cost.budget is None else call.cost.budget)
    if call.cost.budget is not None and spent_E.min(initial=np.inf) > call.cost.budget:
        left_Q[:] = spent_E.min()
    for place in range(call.k):
        # Rounded, so that experts that differ by an error of rounding tie.
        value_QE = np.round(worth_QE - DIVERSITY * alike_QE / max(1, place), 9)
        if call.cost.budget is not None:
            value_QE = np.where(spent_E <= left_Q[:, None], value_QE, -np.inf)
        best_Q = value_QE.argmax(1)
        fits_Q = value_QE[rows_Q, best_Q] > -np.inf
        experts_Qk[fits_Q, place] = best_Q[fits_Q]
        worth_QE[rows_Q[fits_Q], best_Q[fits_Q]] = -np.inf
        alike_QE += call.beliefs.alike_EE[best_Q]
        left_Q = left_Q - spent_E[best_Q]
    return Chosen(experts_Qk=experts_Qk, chance_QE=chance_QE)


def recruit_strongest(call: Call) -> Chosen:
    """The k strongest overall, the same for every question."""
    overall_E = call.beliefs.strengths.overall_E
    best_k = np.argsort(-overall_E, kind="stable")[: call.k]
    return Chosen(
        experts_Qk=np.tile(best_k, (len(call.ids), 1)), chance_QE=_repeat(overall_E, call)
    )


def recruit_at_random(call: Call) -> Chosen:
    """K different experts, drawn per question."""
    order_QE = np.argsort(draw_uniforms(call.ids, len(call.table.experts), call.seed), axis=1)
    return Chosen(
        experts_Qk=order_QE[:, : call.k],
        chance_QE=_repeat(call.beliefs.strengths.overall_E, call),
        note=f"drawn at random (seed {call.seed})",
    )


def recruit_by_neighbours(call: Call) -> Chosen:
    """Experts that were right on the nearest reference questions, shrunk towards their overall share."""
    if call.near_QN is None:
        raise InputError("the policy knn needs the nearest reference questions")
    near_QN = call.near_QN[:, :NEAREST]
    there_QN1 = (near_QN >= 0)[:, :, None]
    right_QNE = call.table.right_NE[near_QN] & call.table.asked_NE[near_QN] & there_QN1
    asked_QE = (call.table.asked_NE[near_QN] & there_QN1).sum(1)
    overall_E = call.beliefs.strengths.overall_E
    chance_QE = (right_QNE.sum(1) + NEAREST_PRIOR * overall_E) / (asked_QE + NEAREST_PRIOR)
    order_QE = np.argsort(-chance_QE, axis=1, kind="stable")
    return Chosen(
        experts_Qk=order_QE[:, : call.k],
        chance_QE=chance_QE,
        note="right on its nearest references {chance:.2f}",
    )


def recruit_as_published(call: Call, *, trim: bool = False) -> Chosen:
    """Draws with replacement from the paper's softmax (symbolic-moe.md §1.5), its flaws included."""
    scores_ES, counts_QS = _score(call)
    chance_QE = weigh_paper(local_scores(scores_ES, counts_QS), scores_ES.sum(1))
    return _draw(call, chance_QE, trim=trim)


def recruit_as_coded(call: Call) -> Chosen:
    """Draws with replacement from the published code's weights (symbolic-moe.md §1.5)."""
    scores_ES, counts_QS = _score(call)
    strength_E = normalise(scores_ES.sum(1))
    known_Q = counts_QS.sum(1) > 0
    return _draw(
        call, weigh_reference(local_scores(scores_ES, counts_QS), strength_E, known_Q), trim=False
    )


def fill_costs(spent_E: Floats) -> Floats:
    """Costs of a call, with the pool's mean where a cost is unknown (0).

    Raises:
        InputError: none is known.
    """
    known_E = spent_E > 0
    if not known_E.any():
        raise InputError("the profile holds no costs of calls; make it again, or set no cost")
    return np.where(known_E, spent_E, spent_E[known_E].mean())


def log_relative(spent_E: Floats) -> Floats:
    """Log of a cost over the pool's mean; 0 where it is unknown."""
    known_E = spent_E > 0
    mean = spent_E[known_E].mean() if known_E.any() else 1.0
    return np.where(known_E, np.log(np.where(known_E, spent_E, mean) / mean), 0.0)


def _score(call: Call) -> tuple[Floats, Floats]:
    """Net scores [E, S], and how often each question names each skill [Q, S]."""
    names = call.beliefs.strengths.skills
    return net_scores(call.table, names), count_tags([tuple(row) for row in call.skills], names)


def _draw(call: Call, weights_QE: Floats, *, trim: bool) -> Chosen:
    uniforms_Q2k = draw_uniforms(call.ids, 2 * call.k, call.seed)
    experts_Qk = draw_with_replacement(weights_QE, uniforms_Q2k[:, : call.k])
    if trim:
        experts_Qk = trim_rare(experts_Qk, uniforms_Q2k[:, call.k :])
    return Chosen(
        experts_Qk=experts_Qk,
        chance_QE=_repeat(call.beliefs.strengths.overall_E, call),
        note=f"drawn with replacement (seed {call.seed})",
    )


def _repeat(chance_E: Floats, call: Call) -> Floats:
    return np.broadcast_to(chance_E, (len(call.ids), len(chance_E)))
