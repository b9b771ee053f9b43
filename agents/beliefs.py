"""What a panel's answers are worth together: one model that weighs, calibrates and decides whom to ask next.

A question has a difficulty that all experts share, so their errors are correlated. Expert i answers
question q right with chance sigmoid(ability_i,q + slope_i * ease_q), ease_q ~ N(0, 1) (the
two-parameter logistic model of item response theory, Birnbaum 1968). Wrong answers crowd on the same
distractors: their counts follow a Dirichlet-multinomial over the other options. Both papers vote
instead, which takes every expert for equally good and every error for independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError
from .outcomes import MISSING, UNREADABLE, OutcomeTable, SkillWeights
from .strength import Strengths

__all__ = [
    "NODES",
    "OPEN_OPTIONS",
    "Beliefs",
    "correlate_errors",
    "count_options",
    "fit_abilities",
    "fit_concentration",
]

NODES = 9
"""Gauss-Hermite nodes of the integral over ease."""
OPEN_OPTIONS = 50
"""Open questions have no options; wrong answers to them meet as if there were so many."""
SHARED = 0.5
"""Share of a question's expected ease, common to all experts, that its skills are trusted for: the
answers themselves tell the ease better. The experts' differences are trusted in full."""
ABILITY_SPREAD, SLOPE_SPREAD, TYPICAL_SLOPE = 2.0, 0.5, 1.5
"""Priors: ability ~ N(0, 2²), slope ~ N(common slope, 0.5²), common slope ~ N(1.5, 1)."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """Fitted on a profile's table by `fit`: a few numbers per expert, per pair of experts and per skill."""

    strengths: Strengths
    """Of all replies: what an expert is known for."""
    skilled: Strengths
    """Of readable replies only: how likely an answer is to be right once it was given."""
    legible: Strengths
    """How likely a reply is to hold an answer, which differs by skill as well."""
    ability_E: Floats
    slope_E: Floats
    concentration: float
    """Of the Dirichlet over distractors: the smaller, the more do wrong answers agree."""
    readable_E: Floats
    """Share of replies that hold an answer; abilities are those of such replies."""
    alike_EE: Floats
    """Correlation of the experts' errors over the table, 0 on the diagonal."""
    temperature: float = 1.0
    """Flattens log-chances so that the stated confidence is right on held-out profile questions."""

    @property
    def experts(self) -> tuple[str, ...]:
        """Aliases, sorted; the order of every axis E."""
        return self.strengths.experts

    @cached_property
    def ease(self) -> tuple[Floats, Floats]:
        """Nodes and weights of the integral over N(0, 1)."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        return nodes, weights / weights.sum()

    @classmethod
    def fit(cls, table: OutcomeTable) -> Beliefs:
        """Fit by maximum a posteriori; the same table gives the same beliefs.

        Raises:
            InputError: the table holds no answer at all.
        """
        if not table.asked_NE.any():
            raise InputError("the profile holds no answers; run `expertmix profile` again")
        ability_E, slope_E = fit_abilities(table)
        asked_E = table.asked_NE.sum(0)
        readable_E = ((table.labels_NE > UNREADABLE).sum(0) + 1) / (asked_E + 1)
        return cls(
            strengths=Strengths.fit(table),
            skilled=Strengths.fit(_leave_unreadable(table)),
            legible=Strengths.fit(_mark_readable(table)),
            ability_E=ability_E,
            slope_E=slope_E,
            concentration=fit_concentration(table),
            readable_E=readable_E,
            alike_EE=correlate_errors(table),
        )

    def foresee(self, skills: Sequence[SkillWeights]) -> Floats:
        """Ability [Q, E] of each expert at each question, on the logit scale, at ease 0."""
        return self.shift(self.skilled.estimate(skills))

    def shift(self, estimates_QE: Floats) -> Floats:
        """As `foresee`, for estimates of `skilled` that are already a matrix."""
        estimated_QE = np.clip(estimates_QE, 0.01, 0.99)
        overall_E = np.clip(self.skilled.overall_E, 0.01, 0.99)
        moved_QE = _logit(estimated_QE) - _logit(overall_E)
        shared_Q1 = moved_QE.mean(1, keepdims=True)
        # A marginal log-odds belongs to a steeper conditional one (probit approximation).
        steep_E = np.sqrt(1 + math.pi / 8 * self.slope_E**2)
        return self.ability_E + (moved_QE - (1 - SHARED) * shared_Q1) * steep_E

    def expect(self, skills: Sequence[SkillWeights]) -> Floats:
        """Chance [Q, E] to give a readable answer and to be right, over all degrees of ease."""
        steep_E = np.sqrt(1 + math.pi / 8 * self.slope_E**2)
        right_QE = 1 / (1 + np.exp(-self.foresee(skills) / steep_E))
        return np.clip(self.legible.estimate(skills), 0.0, 1.0) * right_QE

    def soften(self, temperature: float) -> Beliefs:
        """The same beliefs, stated with less (above 1) or more confidence."""
        return replace(self, temperature=temperature)


def _mark_readable(table: OutcomeTable) -> OutcomeTable:
    """The table with every reply right that holds an answer, whether or not anybody gave the gold."""
    labels_NE = np.where(table.labels_NE > UNREADABLE, 0, table.labels_NE).astype(np.int16)
    return replace(table, labels_NE=labels_NE, gold_N=np.zeros_like(table.gold_N))


def _leave_unreadable(table: OutcomeTable) -> OutcomeTable:
    """The table as if those that gave no answer had not been asked."""
    labels_NE = np.where(table.labels_NE == UNREADABLE, MISSING, table.labels_NE)
    return replace(table, labels_NE=labels_NE.astype(np.int16))


def count_options(options: npt.NDArray[np.integer]) -> Ints:
    """How many answers a question could have: its options, or `OPEN_OPTIONS`."""
    return np.where(options > 1, options, OPEN_OPTIONS).astype(np.intp)


def fit_abilities(table: OutcomeTable, *, rounds: int = 60) -> tuple[Floats, Floats]:
    """Ability and slope [E] by expectation-maximisation (Bock and Aitkin 1981) with Newton steps.

    Only readable answers count: one that cannot be read is no vote, whoever gives it. A slope is at
    least 0: an expert that does worse where the others do better is taken to be indifferent to ease.
    """
    nodes_K, mass_K = np.polynomial.hermite_e.hermegauss(NODES)
    mass_K = mass_K / mass_K.sum()
    asked_NE = (table.labels_NE > UNREADABLE).astype(np.float64)
    right_NE = table.right_NE.astype(np.float64)
    share_E = (right_NE.sum(0) + 1) / (asked_NE.sum(0) + 2)
    ability_E = _logit(share_E) * 1.2
    slope_E = np.full(len(table.experts), TYPICAL_SLOPE)
    common = TYPICAL_SLOPE
    for _ in range(rounds):
        z_EK = ability_E[:, None] + slope_E[:, None] * nodes_K
        hit_EK, miss_EK = -np.logaddexp(0, -z_EK), -np.logaddexp(0, z_EK)
        logs_NK = right_NE @ hit_EK + (asked_NE - right_NE) @ miss_EK + np.log(mass_K)
        logs_NK -= logs_NK.max(1, keepdims=True)
        post_NK = np.exp(logs_NK)
        post_NK /= post_NK.sum(1, keepdims=True)
        total_EK, hits_EK = asked_NE.T @ post_NK, right_NE.T @ post_NK
        for _ in range(3):
            chance_EK = 1 / (1 + np.exp(-(ability_E[:, None] + slope_E[:, None] * nodes_K)))
            error_EK = hits_EK - total_EK * chance_EK
            spread_EK = total_EK * chance_EK * (1 - chance_EK)
            by_ability_E = error_EK.sum(1) - ability_E / ABILITY_SPREAD**2
            by_slope_E = error_EK @ nodes_K - (slope_E - common) / SLOPE_SPREAD**2
            h_aa_E = spread_EK.sum(1) + 1 / ABILITY_SPREAD**2
            h_as_E = spread_EK @ nodes_K
            h_ss_E = spread_EK @ nodes_K**2 + 1 / SLOPE_SPREAD**2
            # A slope that is held at 0 leaves a step in ability alone.
            held_E = (slope_E <= 0) & (by_slope_E <= 0)
            by_slope_E, h_as_E = np.where(held_E, 0.0, by_slope_E), np.where(held_E, 0.0, h_as_E)
            scale_E = h_aa_E * h_ss_E - h_as_E**2
            ability_E = ability_E + (h_ss_E * by_ability_E - h_as_E * by_slope_E) / scale_E
            slope_E = slope_E + (h_aa_E * by_slope_E - h_as_E * by_ability_E) / scale_E
            slope_E = np.maximum(slope_E, 0.0)
        pull = 1 / SLOPE_SPREAD**2
        common = (slope_E.sum() * pull + TYPICAL_SLOPE) / (len(slope_E) * pull + 1)
    return ability_E, slope_E


def fit_concentration(table: OutcomeTable) -> float:
    """Concentration of wrong answers by maximum a posteriori on a grid, log c ~ N(0, 1)."""
    wrong_NE = (table.labels_NE > UNREADABLE) & ~table.right_NE
    counts_NM = _count_labels(np.where(wrong_NE, table.labels_NE, UNREADABLE))
    others_N = count_options(table.options_N) - 1.0
    wrong_N = counts_NM.sum(1)
    best, found = -math.inf, 1.0
    for c in np.geomspace(0.05, 20, 31):
        rise_M = np.cumsum(np.log(c + np.arange(counts_NM.max(initial=0) + 1)))
        rise_M = np.concatenate([[0.0], rise_M])  # log of c (c + 1) … (c + n − 1)
        fall_N = _log_rising(c * others_N, wrong_N)
        value = float(rise_M[counts_NM].sum() - fall_N.sum()) - math.log(c) ** 2 / 2
        if value > best:
            best, found = value, float(c)
    return found


def correlate_errors(table: OutcomeTable, *, shrink: float = 10.0) -> Floats:
    """Correlation [E, E] of being right, over the questions both answered; 0 on the diagonal.

    Args:
        table: The answers.
        shrink: Questions that count for no correlation, so that few common ones say little.
    """
    asked_NE = table.asked_NE.astype(np.float64)
    right_NE = (table.right_NE & table.asked_NE).astype(np.float64)
    both_EE = asked_NE.T @ asked_NE
    counted_EE = np.maximum(both_EE, 1.0)
    mean_EE = (right_NE.T @ asked_NE) / counted_EE
    joint_EE = (right_NE.T @ right_NE) / counted_EE
    spread_EE = np.sqrt(mean_EE * (1 - mean_EE))
    scale_EE = spread_EE * spread_EE.T
    alike_EE = np.where(scale_EE > 0, joint_EE - mean_EE * mean_EE.T, 0.0)
    alike_EE = alike_EE / np.where(scale_EE > 0, scale_EE, 1.0)
    alike_EE *= both_EE / (counted_EE + shrink)
    np.fill_diagonal(alike_EE, 0.0)
    return alike_EE


def _count_labels(labels_NE: npt.NDArray[np.integer]) -> Ints:
    counts_NM = np.zeros((len(labels_NE), max(int(labels_NE.max(initial=0)) + 1, 1)), np.intp)
    rows_N, columns_N = np.nonzero(labels_NE >= 0)
    np.add.at(counts_NM, (rows_N, labels_NE[rows_N, columns_N]), 1)
    return counts_NM


def _log_rising(x_N: Floats, n_N: Ints) -> Floats:
    """Log of x (x + 1) … (x + n − 1)."""
    steps_K = np.arange(n_N.max(initial=0))
    return np.where(steps_K < n_N[:, None], np.log(x_N[:, None] + steps_K), 0.0).sum(1)


def _logit(p: Floats) -> Floats:
    return np.log(p) - np.log1p(-p)
