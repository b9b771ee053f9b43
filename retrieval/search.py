"""One search among references: candidates, guarded and chosen from, further and further until all are content.

Shapes: N references, Q questions, D dimensions, C candidates, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .choosing import choose_balanced, choose_nearest
from .errors import InputError
from .index import VectorIndex
from .leakage import ABSENT, LeakageGuard, Marks
from .neighbours import Neighbours, collect
from .questions import Question
from .structures import steps

__all__ = ["Search"]

SPARE = 5  # candidates more than wanted, as the guard may drop some
POOL = 8  # candidates a neighbour, where letters are balanced
AT_ONCE = 2**21  # candidates held at once

Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is wanted; see `ReferenceSet.neighbours_of_many`."""

    k: int
    cut_off: float
    within: float | None = None
    balanced: bool = False
    among_N: Mask | None = None

    def __post_init__(self) -> None:
        """Refuse what can find nothing.

        Raises:
            InputError: `k` is below 1, or `within` above `cut_off`.
        """
        if self.k < 1:
            raise InputError(f"{self.k} neighbours were asked for; ask for 1 or more")
        if self.within is not None and not self.within <= self.cut_off:
            raise InputError(
                f"nothing is both within {self.within} and below the cut-off {self.cut_off}; "
                "give a smaller within"
            )

    def run(
        self,
        references: Sequence[Question],
        letters_N: npt.NDArray[np.int64],
        index: VectorIndex,
        guard: LeakageGuard,
        marks: Marks,
        vectors_QD: Vectors,
    ) -> list[Neighbours]:
        """The neighbours of each question.

        Args:
            references: By row.
            letters_N: Their gold letters as numbers, −1 where they have none.
            index: Their vectors.
            guard: Theirs.
            marks: The questions', see `LeakageGuard.mark`.
            vectors_QD: The questions'.

        Raises:
            InputError: as `VectorIndex.search`.
        """
        found: dict[int, Neighbours] = {}
        available = len(references) if self.among_N is None else int(self.among_N.sum())
        pending_Q, wanted = np.arange(len(vectors_QD)), min(available, self._pool + SPARE)
        while len(pending_Q):
            waiting: list[npt.NDArray[np.int64]] = []
            for part_Q in steps(pending_Q, AT_ONCE // wanted):
                rows_QC, near_QC = index.nearest(vectors_QD[part_Q], wanted, among_N=self.among_N)
                similarities_QC = near_QC.astype(np.float64)
                reasons_QC = guard.reasons(marks[part_Q], rows_QC, similarities_QC, self.cut_off)
                places_QK, is_done_Q = self._choose(
                    reasons_QC, similarities_QC, rows_QC, letters_N[rows_QC]
                )
                is_done_Q |= wanted >= available
                done = collect(
                    references,
                    self.k,
                    places_QK[is_done_Q],
                    rows_QC[is_done_Q],
                    similarities_QC[is_done_Q],
                    reasons_QC[is_done_Q],
                )
                found.update(zip(part_Q[is_done_Q].tolist(), done, strict=True))
                waiting.append(part_Q[~is_done_Q])
            pending_Q, wanted = np.concatenate(waiting), min(available, 4 * wanted)
        return [found[at] for at in range(len(vectors_QD))]

    @property
    def _pool(self) -> int:
        return POOL * self.k if self.balanced else self.k

    def _choose(
        self,
        reasons_QC: npt.NDArray[np.int8],
        similarities_QC: npt.NDArray[np.float64],
        rows_QC: npt.NDArray[np.int64],
        letters_QC: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int64], Mask]:
        """Places [Q, K] of the chosen, and which questions need no more candidates.

        What lies outside the ball becomes `ABSENT`.
        """
        is_done_Q = np.zeros(len(rows_QC), dtype=np.bool_)
        if self.within is not None:
            outside_QC = similarities_QC < self.within
            is_done_Q |= (outside_QC & (rows_QC >= 0)).any(axis=1)
            reasons_QC[outside_QC] = ABSENT
        free_QC = reasons_QC == 0
        if self.balanced:
            free_QC &= letters_QC >= 0
            places_QK = choose_balanced(free_QC, letters_QC, self.k, self._pool)
        else:
            places_QK = choose_nearest(free_QC, self.k)
        return places_QK, is_done_Q | (free_QC.sum(axis=1) >= self._pool)
