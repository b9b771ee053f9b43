"""Ask few experts first, and more only where that is likely to change the verdict."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError
from .beliefs import Beliefs
from .outcomes import MISSING
from .policies import DIVERSITY, Cost, fill_costs, log_relative
from .posterior import Evidence, gains_of

__all__ = ["Adaptive", "Next", "choose_next"]

NEWS = 0.1
"""What a nat of news is worth beside the expected rise in accuracy: no single answer may be able to turn a
verdict that two could turn. Chosen among 0.01, 0.1 and 0.3 in cross-validation on the profile questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """How far a panel may grow.

    Raises:
        InputError: numbers that contradict each other.
    """

    calls: float = 4.0
    """Mean number of experts asked per question over a batch, at most; each may be asked for several samples."""
    first: int = 2
    """Experts asked about every question."""
    most: int = 8
    """Experts asked about any one question, at most."""
    least: float = 0.005
    """Smallest gain (see `choose_next`) for which anybody is still asked."""
    rounds: int = 6
    """Times that the panel grows, at most; each may load models once more."""

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.calls <= self.most:
            raise InputError(
                f"an adaptive panel needs 1 <= first <= calls <= most, got first {self.first}, "
                f"calls {self.calls:g}, most {self.most}"
            )
        if self.rounds < 1 or not self.least >= 0:
            raise InputError(
                f"an adaptive panel needs at least one round and no negative least gain, "
                f"got rounds {self.rounds}, least {self.least:g}"
            )

    @classmethod
    def of_mean(cls, calls: float, experts: int) -> Adaptive:
        """Limits for a mean number of calls: two experts first, at most eight or twice the mean.

        Raises:
            InputError: the mean does not fit the number of experts.
        """
        most = min(experts, max(8, round(2 * calls)))
        return cls(calls=calls, first=min(2, math.floor(calls)), most=most)

    def count(self, questions: int) -> int:
        """Calls that a batch of so many questions may make."""
        return math.floor(self.calls * questions + 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """One more call: an expert for a question, and what it is expected to bring."""

    row: int
    expert: int
    gain: float


def choose_next(
    beliefs: Beliefs,
    evidence: Evidence,
    limits: Adaptive,
    *,
    ids: Sequence[str],
    left: int,
    round_: int,
    cost: Cost | None = None,
    spent_E: npt.NDArray[np.float64] | None = None,
    broken: Collection[str] = (),
) -> list[Next]:
    """The calls of one more round: at most one for a question, the largest gains first.

    An expert's gain is the expected rise of the largest chance plus `NEWS` times the expected news,
    less for errors like those of the panel so far, less for its cost. What is left of the budget is
    spread over the rounds that remain, so that a later round can react to an earlier one. Equal gains
    go to the smaller id and to the expert that comes first in the alphabet.

    Args:
        beliefs: Fitted on the profile.
        evidence: Answers so far; who was asked and failed has the label `UNREADABLE`.
        limits: See `Adaptive`.
        ids: Of the questions.
        left: Calls that the batch may still make.
        round_: How many times the panel grew already.
        cost: Cost term and budget of a question; see `Cost`.
        spent_E: Cost of a call to each expert, in the unit of `cost`; 0 where unknown.
        broken: Experts that are not asked any more.

    Raises:
        InputError: a cost that matters without any known `spent_E`.
    """
    if left <= 0 or round_ >= limits.rounds or not len(evidence):
        return []
    gains = gains_of(beliefs, evidence)
    asked_QE = (evidence.labels_QE != MISSING).astype(np.float64)
    count_Q1 = asked_QE.sum(1, keepdims=True)
    alike_QE = asked_QE @ beliefs.alike_EE / np.maximum(count_Q1, 1)
    value_QE = (gains.flip_QE + NEWS * gains.news_QE) * np.exp(-DIVERSITY * alike_QE)
    may_QE = (count_Q1 < limits.most) & (asked_QE == 0)
    may_QE &= ~np.isin(beliefs.experts, list(broken))
    if cost is not None and cost.counts:
        costs_E = fill_costs(np.zeros(asked_QE.shape[1]) if spent_E is None else spent_E)
        value_QE = value_QE * np.exp(-cost.weight * log_relative(costs_E))
        if cost.budget is not None:
            may_QE &= (asked_QE @ costs_E)[:, None] + costs_E <= cost.budget
    # Rounded, so that gains that differ by an error of rounding tie.
    value_QE = np.where(may_QE, np.round(value_QE, 9), -np.inf)
    best_Q = value_QE.argmax(1)
    gain_Q = value_QE[np.arange(len(best_Q)), best_Q]
    rank = {name: at for at, name in enumerate(sorted(ids))}
    order = np.lexsort((np.array([rank[name] for name in ids]), -gain_Q))
    share = math.ceil(left / (limits.rounds - round_))
    wanted = [int(row) for row in order[:share] if gain_Q[row] >= limits.least]
    return [Next(row=row, expert=int(best_Q[row]), gain=float(gain_Q[row])) for row in wanted]
