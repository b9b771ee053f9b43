"""Whether two methods differ on the same questions: paired bootstrap, McNemar's test, Holm's correction.

Q questions, M pairs of methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .intervals import resample

__all__ = ["LEVEL", "SAME", "Difference", "adjust_by_holm", "compare_pairs", "mcnemar_p"]

LEVEL = 0.05
"""Chance of taking noise for a difference, over all pairs of a family together."""

SAME = "no significant difference"
"""What is said of a pair then, and no more: it does not mean that they are equal."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much more often the first of two methods is right."""

    mean: float
    low: float
    high: float
    """95 % paired bootstrap interval over questions, seeds averaged."""
    p: float
    """McNemar's exact test on the first seed."""
    p_holm: float
    """The same, corrected for all pairs of the family."""
    wins: int
    """Questions of the first seed that only the first method has right."""
    losses: int

    @property
    def verdict(self) -> str:
        """`better` or `worse`, if the test and the mean point the same way; else `SAME`."""
        lead = self.wins - self.losses
        if self.p_holm >= LEVEL or lead * self.mean <= 0:
            return SAME
        return "better" if lead > 0 else "worse"

    def to_json(self) -> dict[str, Any]:
        """The difference as plain JSON values."""
        names = ("mean", "low", "high", "p", "p_holm")
        told = {name: round(float(getattr(self, name)), 5) for name in names}
        return {**told, "wins": self.wins, "losses": self.losses, "verdict": self.verdict}


def compare_pairs(
    pairs: Sequence[tuple[Sequence[Bools], Sequence[Bools]]], *, seed: int = 0
) -> list[Difference]:
    """Compare pairs of methods that form one family.

    Args:
        pairs: Of each pair and method, per seed which questions are right [Q]. The methods of a pair share
            questions and seeds.
        seed: Of the bootstrap.
    """
    if not pairs:
        return []
    firsts = [(first[0], second[0]) for first, second in pairs]
    counts = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in firsts]
    exact = [mcnemar_p(wins, losses) for wins, losses in counts]
    gain_QM = np.stack(
        [np.mean(first, axis=0) - np.mean(second, axis=0) for first, second in pairs], axis=1
    )
    lows, highs = np.percentile(resample(gain_QM, seed=seed), (2.5, 97.5), axis=0)
    return [
        Difference(
            mean=float(gain_QM[:, at].mean()),
            low=float(lows[at]),
            high=float(highs[at]),
            p=exact[at],
            p_holm=p_holm,
            wins=wins,
            losses=losses,
        )
        for at, ((wins, losses), p_holm) in enumerate(
            zip(counts, adjust_by_holm(exact), strict=True)
        )
    ]


def mcnemar_p(wins: int, losses: int) -> float:
    """Exact two-sided McNemar test: a binomial test of the questions on which the methods differ.

    Args:
        wins: Questions that only the first has right.
        losses: Questions that only the second has right.

    Returns:
        The chance of a split at least as uneven if both were equally good; 1 without any.
    """
    number, fewer = wins + losses, min(wins, losses)
    if number == 0 or wins == losses:
        return 1.0
    # Summed in logarithms: 2 ** number is no float beyond a thousand questions.
    logs = [_log_choose(number, k) - number * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def adjust_by_holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for being several (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [1.0] * len(p_values)
    worst = 0.0
    for rank, at in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = worst
    return adjusted


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
