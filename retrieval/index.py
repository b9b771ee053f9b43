"""Cosine search over unit vectors.

Up to `FLAT_ROWS` rows the search is exact. Past that it walks an HNSW graph, which finds about 98 of
the 100 nearest and is built on one thread so that it comes out the same every time. Similarities are
always recomputed from the vectors, so equal rows score exactly equal and stand in row order.

Shapes: N rows, Q queries, D dimensions, K candidates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .index_files import check_size, read_index, write_index

__all__ = ["Hit", "VectorIndex"]

FLAT_ROWS = 25_000  # above, exact search takes more than 0.25 ms a query on one core
QUERIES_AT_ONCE = 256
TIES = 4096  # how far an HNSW graph is searched for rows as good as the last one wanted
NEAR_TIE = 1e-6  # FAISS's own similarities are this exact

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found and its cosine similarity to the query, −1 to 1."""

    row: int
    similarity: float


class VectorIndex:
    """Unit vectors with a row of plain JSON each. Build it with `build` or `load`."""

    def __init__(
        self,
        vectors_ND: Vectors,
        rows: tuple[dict[str, Any], ...],
        encoder_name: str,
        encoder_revision: str,
    ) -> None:
        self.vectors_ND = vectors_ND
        self.rows = rows
        self.encoder_name = encoder_name
        self.encoder_revision = encoder_revision
        self._faiss: Any = None

    @classmethod
    def build(
        cls,
        vectors_ND: npt.ArrayLike,
        rows: Sequence[Mapping[str, Any]],
        encoder_name: str,
        encoder_revision: str,
    ) -> VectorIndex:
        """Index vectors [N, D], scaled to length 1, with one JSON-plain row each.

        Raises:
            InputError: numbers of vectors and rows differ, a vector is zero or not finite, or the
                whole is larger than an index may be.
        """
        vectors = np.array(vectors_ND, dtype=np.float32, ndmin=2)
        if vectors.size == 0:
            vectors = vectors.reshape(0, vectors.shape[-1] if vectors.ndim == 2 else 0)
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise InputError(f"{len(rows)} rows need as many vectors, got an array {vectors.shape}")
        check_size(*vectors.shape)
        norms_N1 = np.linalg.norm(vectors, axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(norms_N1[:, 0]) | (norms_N1[:, 0] == 0))
        if len(bad):
            raise InputError(f"vector {int(bad[0])} is zero or not finite and points nowhere")
        return cls(vectors / norms_N1, tuple(dict(r) for r in rows), encoder_name, encoder_revision)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.vectors_ND.shape[1])

    def search(self, queries_QD: npt.ArrayLike, k: int) -> list[list[Hit]]:
        """The `k` most similar rows of each query, the best first, equal ones by row number.

        Args:
            queries_QD: Vectors [Q, D] of any length above zero.
            k: Rows wanted; fewer come back if the index has fewer.

        Raises:
            InputError: the queries have another dimension than the index, or are not finite.
        """
        queries = np.array(queries_QD, dtype=np.float32, ndmin=2)
        if not len(self) or k < 1 or not queries.size:
            return [[] for _ in range(len(queries) if queries.size or len(queries) > 1 else 0)]
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise InputError(
                f"queries of shape {queries.shape} do not fit an index of dimension {self.dimension}"
            )
        norms_Q1 = np.linalg.norm(queries, axis=1, keepdims=True)
        if not np.isfinite(norms_Q1).all():
            raise InputError("a query vector is not finite")
        queries = queries / np.maximum(norms_Q1, 1e-12)
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            hits += self._search_batch(queries[start : start + QUERIES_AT_ONCE], min(k, len(self)))
        return hits

    def save(self, folder: str | Path) -> Path:
        """Write the index to `folder`, whole or not at all; an older index there is replaced.

        Raises:
            InputError: `folder` holds something else than an index.
        """
        return write_index(
            Path(folder), self.vectors_ND, self.rows, self.encoder_name, self.encoder_revision
        )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        encoder_name: str | None = None,
        encoder_revision: str | None = None,
    ) -> VectorIndex:
        """Read an index, checking every file against the manifest before it is used.

        Args:
            folder: What `save` wrote.
            encoder_name: If given, the index must have been made with this encoder.
            encoder_revision: If given, and with this revision of it.

        Raises:
            InputError: a file is missing, larger or other than the manifest says, or the encoder
                differs.
        """
        return cls(*read_index(Path(folder), encoder_name, encoder_revision))

    def _search_batch(self, queries_QD: Vectors, k: int) -> list[list[Hit]]:
        wanted = min(len(self), k + 8)
        while True:
            found_QK, candidates_QK = self._structure(wanted).search(queries_QD, wanted)
            # Rows as good as the k-th may lie behind the last candidate: look further.
            is_tied = (found_QK[:, -1] > found_QK[:, k - 1] - NEAR_TIE).any()
            most = len(self) if len(self) <= FLAT_ROWS else max(k, TIES)
            if wanted >= min(len(self), most) or not is_tied:
                break
            wanted = min(len(self), 4 * wanted)
        pairs = zip(queries_QD, candidates_QK, strict=True)
        return [self._rank(query_D, candidates_K, k) for query_D, candidates_K in pairs]

    def _rank(self, query_D: Vectors, candidates_K: npt.NDArray[np.int64], k: int) -> list[Hit]:
        rows_K = np.sort(candidates_K[candidates_K >= 0])
        # Not a matrix product: that rounds equal rows differently by where they stand.
        similarities_K = (self.vectors_ND[rows_K] * query_D).sum(axis=1)
        best_K = np.argsort(-similarities_K, kind="stable")[:k]
        return [
            Hit(int(rows_K[at]), max(-1.0, min(1.0, float(similarities_K[at])))) for at in best_K
        ]

    def _structure(self, wanted: int) -> Any:
        """The FAISS index, built on first use."""
        import faiss

        if self._faiss is None:
            if len(self) <= FLAT_ROWS:
                self._faiss = faiss.IndexFlatIP(self.dimension)
                self._faiss.add(self.vectors_ND)
            else:
                self._faiss = faiss.IndexHNSWFlat(self.dimension, 16, faiss.METRIC_INNER_PRODUCT)
                self._faiss.hnsw.efConstruction = 64
                with _one_thread(faiss):
                    self._faiss.add(self.vectors_ND)
        if len(self) > FLAT_ROWS:
            self._faiss.hnsw.efSearch = max(64, 2 * wanted)
        return self._faiss


@contextlib.contextmanager
def _one_thread(faiss: Any) -> Generator[None]:
    """Several threads insert in the order they happen to run in, and the graph comes out different."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
