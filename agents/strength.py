"""How good is each expert at each skill, and how sure are we? Beta-binomial shrinkage over the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError
from .outcomes import OutcomeTable, SkillWeights

__all__ = ["Strengths", "beta_interval", "fit_prior", "weigh_skills"]

PRIOR_GRID = (2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 35.0, 60.0, 100.0)
"""Answers that the estimate from neighbouring skills may be worth; see `fit_prior`."""
NEIGHBOUR_PRIOR = 5.0
"""Answers that an expert's overall share is worth to the neighbourhood of a skill."""

SHARE_SLACK = 1e-4
"""Shares are rounded when they are written down, so their sum may pass 1 by so much."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Shrunk shares right of E experts at S skills.

    Three levels (symbolic-moe.md §4, point 8): the answers to questions of a skill; those of its
    neighbours, skills that come with the same questions; and the expert's answers to everything.
    """

    experts: tuple[str, ...]
    skills: tuple[str, ...]
    """Sorted."""
    right_ES: Floats
    """Right answers, each question counted with the skill's share of it."""
    total_ES: Floats
    """Answers, counted likewise."""
    prior_ES: Floats
    """What a skill's neighbours and the expert's overall share let expect."""
    prior: float
    """Answers that `prior_ES` is worth."""
    asked_E: Floats
    """Answers of each expert, whatever the skill."""
    overall_E: Floats
    """Mean of Beta(right + 1, wrong + 1) over all answers; 0.5 for an expert without any."""

    @classmethod
    def fit(cls, table: OutcomeTable) -> Strengths:
        """Count and shrink. Questions an expert was not asked do not count for it."""
        skills = tuple(sorted({name for weights in table.skills for name in weights}))
        weights_NS = weigh_skills(table.skills or [{}] * len(table), skills)
        asked_NE = table.asked_NE.astype(np.float64)
        right_NE = (table.right_NE & table.asked_NE).astype(np.float64)
        right_ES, total_ES = right_NE.T @ weights_NS, asked_NE.T @ weights_NS
        overall_E = (right_NE.sum(0) + 1) / (asked_NE.sum(0) + 2)
        near_SS = _neighbourhood(weights_NS)
        prior_ES = (right_ES @ near_SS + NEIGHBOUR_PRIOR * overall_E[:, None]) / (
            total_ES @ near_SS + NEIGHBOUR_PRIOR
        )
        return cls(
            experts=table.experts,
            skills=skills,
            right_ES=right_ES,
            total_ES=total_ES,
            prior_ES=prior_ES,
            prior=fit_prior(right_ES, total_ES, prior_ES),
            asked_E=asked_NE.sum(0),
            overall_E=overall_E,
        )

    @cached_property
    def place(self) -> Mapping[str, int]:
        """The column of each skill."""
        return {name: at for at, name in enumerate(self.skills)}

    @cached_property
    def skill_ES(self) -> Floats:
        """Posterior means: the estimated chance to answer a question of a skill right."""
        return (self.right_ES + self.prior * self.prior_ES) / (self.total_ES + self.prior)

    def estimate(self, skills: Sequence[SkillWeights]) -> Floats:
        """Estimated chance [Q, E] of each expert to answer each question right.

        The mean over a question's skills by their shares; unknown skills, and the part of a question
        that no skill explains, count as the expert's overall share.
        """
        return self.mix(weigh_skills(skills, self.skills))

    def mix(self, weights_QS: Floats) -> Floats:
        """As `estimate`, for shares that are already a matrix [Q, S]."""
        return self.overall_E + weights_QS @ (self.skill_ES - self.overall_E[:, None]).T

    def interval(self, expert: str, skill: str | None = None) -> tuple[float, float]:
        """95 % credible interval for an expert at a skill; over everything for skills never seen.

        Raises:
            InputError: an expert that is not in the table.
        """
        if expert not in self.experts:
            raise InputError(f'no expert "{expert}"; there are {", ".join(self.experts)}')
        row = self.experts.index(expert)
        if skill is not None and skill in self.place:
            at = self.place[skill]
            mean, total = self.skill_ES[row, at], self.total_ES[row, at] + self.prior
        else:
            mean, total = self.overall_E[row], self.asked_E[row] + 2
        key = (float(mean), float(total))
        if key not in self._intervals:  # many questions ask for the same few
            self._intervals[key] = beta_interval(mean * total, (1 - mean) * total)
        return self._intervals[key]

    @cached_property
    def _intervals(self) -> dict[tuple[float, float], tuple[float, float]]:
        return {}


def fit_prior(right_ES: Floats, total_ES: Floats, prior_ES: Floats) -> float:
    """How many answers the prior is worth, by the likelihood of the counts (empirical Bayes).

    Where experts differ little from skill to skill, much is borrowed; where they are specialists, their own
    answers count. Of equally likely strengths the larger is taken. Counts are Beta-binomial around
    `prior_ES`; counts by shares are fractions and count as such.
    """
    seen = total_ES > 0
    right, wrong = right_ES[seen], (total_ES - right_ES)[seen]
    mean = np.clip(prior_ES[seen], 1e-6, 1 - 1e-6)
    if not len(right):
        return PRIOR_GRID[-1]

    def likelihood(prior: float) -> float:
        a, b = prior * mean, prior * (1 - mean)
        return float((_log_beta(a + right, b + wrong) - _log_beta(a, b)).sum())

    return max(reversed(PRIOR_GRID), key=lambda prior: round(likelihood(prior), 6))


def _log_beta(a: Floats, b: Floats) -> Floats:
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return np.array([math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y) for x, y in pairs])


def weigh_skills(skills: Sequence[SkillWeights], names: Sequence[str]) -> Floats:
    """Shares as a matrix [Q, S]; skills that are not among `names` are left out.

    Raises:
        InputError: shares that are negative, not numbers, or sum to more than 1.
    """
    place = {name: at for at, name in enumerate(names)}
    count_Q = np.fromiter(map(len, skills), np.intp, len(skills))
    total = int(count_Q.sum())
    rows_T = np.repeat(np.arange(len(skills)), count_Q)
    columns_T = np.fromiter((place.get(name, -1) for row in skills for name in row), np.intp, total)
    shares_T = np.fromiter(chain.from_iterable(row.values() for row in skills), np.float64, total)
    sum_Q = np.bincount(rows_T, shares_T, minlength=len(skills))
    # Written so that NaN fails too.
    wrong_Q = np.bincount(rows_T, ~(shares_T >= 0), minlength=len(skills)) > 0
    wrong_Q |= ~(sum_Q <= 1 + SHARE_SLACK)
    if wrong_Q.any():
        got = dict(skills[int(wrong_Q.argmax())])
        raise InputError(f"shares of skills must be at least 0 and sum to at most 1, got {got}")
    weights_QS = np.zeros((len(skills), len(names)))
    known_T = columns_T >= 0
    weights_QS[rows_T[known_T], columns_T[known_T]] = shares_T[known_T]
    return weights_QS


def beta_interval(a: float, b: float, *, mass: float = 0.95) -> tuple[float, float]:
    """Central interval of Beta(a, b), by integration over log-odds; exact to 0.0005.

    On the scale of log-odds the density has no poles at 0 and 1, which a few answers of a very weak
    or very strong expert bring about.
    """
    centre, reach = math.log(a / b), 10 * math.sqrt(1 / a + 1 / b)
    odds_G = np.linspace(centre - reach - 10 / a, centre + reach + 10 / b, 4001)
    logs_G = a * odds_G - (a + b) * np.logaddexp(0, odds_G)
    mass_G = np.exp(logs_G - logs_G.max())
    below_G = (np.cumsum(mass_G) - mass_G / 2) / mass_G.sum()
    low, high = np.interp([(1 - mass) / 2, (1 + mass) / 2], below_G, odds_G)
    return (1 + math.tanh(low / 2)) / 2, (1 + math.tanh(high / 2)) / 2


def _neighbourhood(weights_NS: Floats) -> Floats:
    """Cosine of the questions that two skills come with, 0 if they never meet.

    0 on the diagonal, too: a skill's own answers are evidence, and must not be their own prior as well.
    """
    length_S = np.sqrt((weights_NS**2).sum(0))
    scaled_NS = weights_NS / np.where(length_S > 0, length_S, 1.0)
    near_SS = scaled_NS.T @ scaled_NS
    np.fill_diagonal(near_SS, 0.0)
    return near_SS
