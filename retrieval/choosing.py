"""Which references may become neighbours, and which do: the nearest, or those with evenly spread letters.

Shapes: N references, Q questions, C candidates (the most similar first), K chosen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = ["choose_balanced", "choose_nearest", "mask_of"]

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


def choose_nearest(free_QC: Mask, k: int) -> Places:
    """Places [Q, K] of the first `k` free candidates of each question, in order; then −1."""
    order_QK = np.argsort(~free_QC, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(free_QC, order_QK, 1), order_QK, -1)


def choose_balanced(free_QC: Mask, letters_QC: npt.NDArray[np.int64], k: int, pool: int) -> Places:
    """Places [Q, K], in order, of `k` of the first `pool` free candidates, letters taken in turn; then −1.

    In the first round each letter gives its nearest candidate, the nearest of those first; in the second
    its second nearest; and so on until there are `k`. So the numbers of two letters differ by one at most,
    unless one of them runs out of candidates.

    Args:
        free_QC: Which candidates may be chosen.
        letters_QC: Any numbers for their letters.
        k: How many to choose.
        pool: How many candidates take part.
    """
    free_QC = free_QC & (np.cumsum(free_QC, axis=1) <= pool)
    candidates = free_QC.shape[1]
    rounds_QC = np.zeros(free_QC.shape, dtype=np.int64)
    for letter in np.unique(letters_QC[free_QC]):
        with_it_QC = free_QC & (letters_QC == letter)
        rounds_QC += np.where(with_it_QC, np.cumsum(with_it_QC, axis=1) - 1, 0)
    turn_QC = np.where(free_QC, rounds_QC, candidates)
    order_QK = np.argsort(turn_QC, axis=1, kind="stable")[:, :k]
    chosen_QC = np.zeros_like(free_QC)
    np.put_along_axis(chosen_QC, order_QK, True, axis=1)
    return choose_nearest(chosen_QC & free_QC, k)


def mask_of(among: npt.ArrayLike | None, n: int) -> Mask | None:
    """One truth value for each of `n` references, from such values or rows; None if all are meant.

    Raises:
        InputError: it names rows that are not there, or none, or is something else.
    """
    if among is None:
        return None
    given = np.asarray(among)
    mask_N = np.zeros(n, dtype=np.bool_)
    if given.dtype == np.bool_ and given.shape == mask_N.shape:
        mask_N = given
    elif given.size and (given.ndim != 1 or not np.issubdtype(given.dtype, np.integer)):
        raise InputError(
            f"among must be {n} truth values or a list of rows, got {given.dtype} of shape {given.shape}"
        )
    elif given.size:
        unknown = given[(given < 0) | (given >= n)]
        if len(unknown):
            raise InputError(f"among names row {unknown[0]}; there are rows 0 to {n - 1}")
        mask_N[given] = True
    if not mask_N.any():
        raise InputError("among leaves no reference to search; name at least one")
    return None if mask_N.all() else mask_N
