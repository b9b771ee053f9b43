"""Drawing references at random, each question by itself: the same in any batch and any order."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from .questions import Question

__all__ = ["draw_rows"]


def draw_rows(
    question: Question, seed: int, rows_M: npt.NDArray[np.int64], number: int
) -> npt.NDArray[np.int64]:
    """Some of the rows, each at most once, in random order.

    Args:
        question: Its id and text decide, with the seed.
        seed: Another one draws others.
        rows_M: To draw from.
        number: How many; no more than there are.
    """
    name = "\0".join((str(seed), question.id, question.text))
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    chance = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    return rows_M[chance.choice(len(rows_M), number, replace=False)]
