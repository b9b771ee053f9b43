"""What a search among references gives: the neighbours of a question, and what was held back.

Shapes: Q questions, C candidates, K neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .leakage import REASONS
from .questions import Question

__all__ = ["Neighbour", "Neighbours", "collect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A reference that resembles a question."""

    question: Question
    similarity: float
    """Cosine of the two embeddings."""
    row: int
    """Its place in the reference set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What was found, the most similar first, and what the leakage guard held back."""

    found: tuple[Neighbour, ...]
    dropped: Mapping[str, int]
    """Reason → number of references dropped among those nearer than the last one found (of a random
    choice: drawn before it). Reasons: `same id`, `same text`, `same options`, `too similar`; the first that
    applies counts."""


def collect(
    references: Sequence[Question],
    k: int,
    places_QK: npt.NDArray[np.int64],
    rows_QC: npt.NDArray[np.int64],
    similarities_QC: npt.NDArray[np.float64],
    reasons_QC: npt.NDArray[np.int8],
) -> list[Neighbours]:
    """The neighbours of each question, from arrays.

    Args:
        references: By row.
        k: How many were wanted: where there are fewer, all candidates were looked at.
        places_QK: Which candidates were chosen, in order; then −1.
        rows_QC: The candidates, in the order in which they were looked at.
        similarities_QC: Theirs.
        reasons_QC: See `LeakageGuard.reasons`.
    """
    candidates = rows_QC.shape[1]
    number_Q = (places_QK >= 0).sum(axis=1)
    is_full_Q = number_Q == k
    last_Q = np.where(is_full_Q, places_QK.max(axis=1, initial=-1), candidates)
    is_dropped_QC = (reasons_QC > 0) & (np.arange(candidates) < last_Q[:, np.newaxis])
    dropped = {
        int(at): dict(Counter(REASONS[reason - 1] for reason in reasons_QC[at, is_dropped_QC[at]]))
        for at in np.flatnonzero(is_dropped_QC.any(axis=1))
    }
    rows: list[list[int]] = np.take_along_axis(rows_QC, places_QK, 1).tolist()
    similarities: list[list[float]] = np.take_along_axis(similarities_QC, places_QK, 1).tolist()
    numbers: list[int] = number_Q.tolist()
    return [
        Neighbours(
            found=tuple(
                Neighbour(question=references[row], similarity=similarity, row=row)
                for row, similarity in zip(rows[at][:number], similarities[at], strict=False)
            ),
            dropped=dropped.get(at, {}),
        )
        for at, number in enumerate(numbers)
    ]
