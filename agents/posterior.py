"""Which answer is right, given what a panel said; and what asking one more expert would tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .beliefs import OPEN_OPTIONS, Beliefs
from .outcomes import MISSING, UNREADABLE

__all__ = ["Evidence", "Gains", "chances_of", "gains_of"]

CHUNK = 1024
"""Questions worked on at once; the memory of a step is proportional to it."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known about Q questions when E experts could be asked."""

    ability_QE: Floats
    """From `Beliefs.foresee`."""
    options_Q: npt.NDArray[np.integer]
    """Number of options; 0 for open questions."""
    labels_QE: npt.NDArray[np.integer]
    """Answers as in `OutcomeTable`, `MISSING` where not asked."""

    def __len__(self) -> int:
        return len(self.options_Q)

    def rows(self, at: npt.NDArray[np.intp] | slice) -> Evidence:
        """Some of the questions."""
        return Evidence(
            ability_QE=self.ability_QE[at],
            options_Q=self.options_Q[at],
            labels_QE=self.labels_QE[at],
        )


@dataclass(frozen=True, kw_only=True)
class Gains:
    """What one more answer would bring; minus infinity for experts that were asked."""

    flip_QE: Floats
    """Expected rise of the largest chance: by how much the verdict would get more often right. Gains are those
    of the fitted model, before its temperature flattens what is stated."""
    news_QE: Floats
    """Expected fall of the entropy over answers, in nats."""


def chances_of(beliefs: Beliefs, evidence: Evidence) -> Floats:
    """Chance [Q, M] of each answer label to be right.

    For an open question the last column is the chance that nobody named the right answer. A column
    that is no answer to a question holds 0.
    """
    width = _count_columns(evidence)
    found_QM = np.zeros((len(evidence), width))
    for start in range(0, len(evidence), CHUNK):
        part = evidence.rows(slice(start, start + CHUNK))
        logs_QM = _State(beliefs, part, width).weigh()
        logs_QM = logs_QM / beliefs.temperature
        chance_QM = np.exp(logs_QM - logs_QM.max(1, keepdims=True))
        found_QM[start : start + CHUNK] = chance_QM / chance_QM.sum(1, keepdims=True)
    return found_QM


def gains_of(beliefs: Beliefs, evidence: Evidence) -> Gains:
    """What each expert's answer would bring to each question."""
    width = _count_columns(evidence)
    shape = evidence.labels_QE.shape
    flip_QE, news_QE = np.zeros(shape), np.zeros(shape)
    for start in range(0, len(evidence), CHUNK):
        part = evidence.rows(slice(start, start + CHUNK))
        flips, news = _State(beliefs, part, width).foresee()
        flip_QE[start : start + CHUNK], news_QE[start : start + CHUNK] = flips, news
    known_QE = evidence.labels_QE != MISSING
    flip_QE[known_QE] = news_QE[known_QE] = -np.inf
    return Gains(flip_QE=flip_QE, news_QE=news_QE)


class _State:
    """The joint distribution of the right answer (M labels) and the ease (K nodes), given answers."""

    def __init__(self, beliefs: Beliefs, evidence: Evidence, width: int) -> None:
        nodes_K, self.mass_K = beliefs.ease
        self.c = beliefs.concentration
        self.readable_E = beliefs.readable_E
        z_QEK = evidence.ability_QE[:, :, None] + beliefs.slope_E[:, None] * nodes_K
        self.hit_QEK, self.miss_QEK = -np.logaddexp(0, -z_QEK), -np.logaddexp(0, z_QEK)
        self.named_QEM = evidence.labels_QE[:, :, None] == np.arange(width)
        self.readable_QE = evidence.labels_QE > UNREADABLE
        self.count_QM = self.named_QEM.sum(1).astype(np.float64)
        """How many experts named a column's answer."""
        is_open_Q1 = (evidence.options_Q <= 1)[:, None]
        of_open_QM = (self.count_QM > 0).astype(np.float64)
        # All that nobody named, which no label stands for: at least one answer, or all were wrong.
        of_open_QM[:, -1] = np.maximum(OPEN_OPTIONS - of_open_QM.sum(1), 1.0)
        of_choice_QM = (np.arange(width) < evidence.options_Q[:, None]).astype(np.float64)
        self.times_QM = np.where(is_open_Q1, of_open_QM, of_choice_QM)
        """How many possible answers a column stands for."""

    def weigh(self) -> Floats:
        """Log-chance [Q, M] of each column, up to a constant of the question."""
        logs_QMK = self._join()
        top_QM1 = logs_QMK.max(2, keepdims=True)
        return np.log(np.exp(logs_QMK - top_QM1).sum(2)) + top_QM1[:, :, 0]

    def _join(self) -> Floats:
        told_QE = self.readable_QE.astype(np.float64)
        base_QK = np.einsum("qe,qek->qk", told_QE, self.miss_QEK)
        gain_QMK = np.einsum(
            "qem,qek->qmk", self.named_QEM.astype(np.float64), self.hit_QEK - self.miss_QEK
        )
        with np.errstate(divide="ignore"):
            prior_QM = np.log(self.times_QM)
        crowd_QM = self._crowd()
        logs_QMK = base_QK[:, None, :] + gain_QMK + np.log(self.mass_K)
        logs_QMK += np.where(self.times_QM > 0, crowd_QM + prior_QM, -np.inf)[:, :, None]
        # Never all minus infinity: every question has at least one possible answer.
        return np.where(np.isneginf(logs_QMK), -1e9, logs_QMK)

    def _crowd(self) -> Floats:
        """Log-likelihood [Q, M] of the wrong answers' crowding, if a column were right."""
        most = int(self.count_QM.max(initial=0)) + 1
        rise = np.concatenate([[0.0], np.cumsum(np.log(self.c + np.arange(most)))])
        each_QM = rise[self.count_QM.astype(np.intp)]
        others_Q1 = self.c * (self._possible()[:, None] - 1)
        wrong_QM = self.count_QM.sum(1, keepdims=True) - self.count_QM
        total = int(wrong_QM.max(initial=0))
        steps_QS = np.log(np.maximum(others_Q1 + np.arange(max(total, 1)), 1e-12))
        fall_QS = np.concatenate([np.zeros((len(steps_QS), 1)), np.cumsum(steps_QS, 1)], 1)
        fallen_QM = np.take_along_axis(fall_QS, wrong_QM.astype(np.intp), 1)
        return each_QM.sum(1, keepdims=True) - each_QM - fallen_QM

    def _possible(self) -> Floats:
        return np.maximum(self.times_QM.sum(1), 2.0)

    def foresee(self) -> tuple[Floats, Floats]:
        """Expected rise of the largest chance and expected fall of the entropy, both [Q, E]."""
        logs_QMK = self._join()
        joint_QMK = np.exp(logs_QMK - logs_QMK.max((1, 2), keepdims=True))
        joint_QMK /= joint_QMK.sum((1, 2), keepdims=True)
        chance_QM = joint_QMK.sum(2)
        each_QM = chance_QM / np.maximum(self.times_QM, 1.0)  # of one answer in a column
        # The expert is right and so names the right answer, or is wrong and names x instead.
        hit_QEM = joint_QMK @ np.exp(self.hit_QEK).transpose(0, 2, 1)
        hit_QEM = hit_QEM.transpose(0, 2, 1)
        wrong_QM = self.count_QM.sum(1, keepdims=True) - self.count_QM
        others_QM = self.c * (self._possible()[:, None] - 1) + wrong_QM
        miss_QEM = np.maximum(chance_QM[:, None, :] - hit_QEM, 0.0) / others_QM[:, None, :]
        pull_QM = np.where(self.times_QM > 0, self.c + self.count_QM, 0.0)
        flips, news = self._compare(hit_QEM, miss_QEM, pull_QM, chance_QM, each_QM)
        return flips * self.readable_E, news * self.readable_E

    def _compare(
        self, hit_QEM: Floats, miss_QEM: Floats, pull_QM: Floats, chance_QM: Floats, each_QM: Floats
    ) -> tuple[Floats, Floats]:
        times_QM = np.maximum(self.times_QM, 1.0)
        per_hit_QEM = hit_QEM / times_QM[:, None, :]
        per_miss_QEM = miss_QEM / times_QM[:, None, :]
        # The largest miss of any answer but x: the largest of all, or the second where x holds it.
        order = np.argsort(per_miss_QEM, axis=2)
        first_QE1, second_QE1 = order[:, :, -1:], order[:, :, -2:-1]
        most_QE1 = np.take_along_axis(per_miss_QEM, first_QE1, 2)
        next_QE1 = np.take_along_axis(per_miss_QEM, second_QE1, 2)
        is_first_QEM = np.arange(per_miss_QEM.shape[2]) == first_QE1
        alone_QM = (self.times_QM <= 1.0)[:, None, :]  # a pooled column also holds other answers
        rival_QEM = np.where(is_first_QEM & alone_QM, next_QE1, most_QE1)
        best_QEM = np.maximum(per_hit_QEM, pull_QM[:, None, :] * rival_QEM)
        counted_QEM = best_QEM * self.times_QM[:, None, :]
        flips_QE = counted_QEM.sum(2) - each_QM.max(1)[:, None]
        # Entropy of the right answer after the expert named x, summed over x.
        sum_QE1 = miss_QEM.sum(2, keepdims=True)
        rest_QEM = sum_QE1 - per_miss_QEM
        named_QEM = per_hit_QEM + pull_QM[:, None, :] * rest_QEM
        logged_QE1 = (_xlogx(per_miss_QEM) * times_QM[:, None, :]).sum(2, keepdims=True)
        pulled_QEM = pull_QM[:, None, :]
        # Σ over other answers g of (pull · miss_g) log(pull · miss_g)
        inner_QEM = pulled_QEM * (logged_QE1 - _xlogx(per_miss_QEM)) + _xlogx(pulled_QEM) * rest_QEM
        after_QEM = _xlogx(named_QEM) - _xlogx(per_hit_QEM) - inner_QEM
        before_Q = -(_xlogx(each_QM) * times_QM).sum(1)
        news_QE = before_Q[:, None] - (after_QEM * self.times_QM[:, None, :]).sum(2)
        return np.maximum(flips_QE, 0.0), np.maximum(news_QE, 0.0)


def _count_columns(evidence: Evidence) -> int:
    """Columns for all options of choices; for open questions all labels and one for the rest."""
    options = int(evidence.options_Q.max(initial=0))
    return max(options, int(evidence.labels_QE.max(initial=-1)) + 2, 2)


def _xlogx(x: Floats) -> Floats:
    return np.where(x > 0, x * np.log(np.where(x > 0, x, 1.0)), 0.0)
