"""Vectors that no text encoder made, such as a model's own hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = ["GivenVectors"]


class GivenVectors:
    """Stands where an encoder would, and says what made the vectors.

    A set built with it is searched with `ReferenceSet.neighbours_of_vectors`.

    Args:
        name: What made the vectors.
        revision: Changes whenever the vectors would.
    """

    def __init__(self, name: str, revision: str) -> None:
        self.name = name
        self.revision = revision

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Not possible.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.name} gives no vectors for {len(texts)} texts; give the vectors as well "
            "(build with vectors_ND, search with neighbours_of_vectors)"
        )
