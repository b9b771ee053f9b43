"""What FAISS searches: every vector, or the few lists of them that lie nearest to the query.

A structure gives candidates; `VectorIndex` ranks them by their exact similarities. Both give a query the same
candidates whatever else is asked with it.

Shapes: N rows, Q queries, D dimensions, C candidates, L lists.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Flat", "Inverted", "Structure", "steps"]

SPARE = 8  # candidates more than wanted, because FAISS rounds
NEAR_TIE = 1e-6  # FAISS's own similarities are this exact
AT_ONCE = 2**21  # candidates held at once
QUERIES_AT_ONCE = 4096
SCALE = 2000.0  # unit vectors of 8192 numbers, rounded, still have squared distances below 2²⁴
PIECES = 128
SPARE_PIECES = 24  # as SPARE, where candidates are compared by their pieces
PROBES = 40  # lists that are read for each PROBED candidates
PROBED = 64
SAMPLE = 40  # vectors a list that its centre is learnt from
SAMPLE_PIECES = 5000  # vectors that the pieces are learnt from
ROUNDS = 8

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Structure(Protocol):
    """Something that knows which rows may be the nearest."""

    def candidates(self, queries_QD: Vectors, k: int) -> Iterator[tuple[Rows, Rows]]:
        """In groups: places of some queries, and rows [places, C] among which their `k` nearest are.

        Where there are fewer than C rows, −1 stands. Every query is in exactly one group.
        """
        ...


class Flat:
    """Exact: compares every vector. Rows as good as the last one wanted are all candidates."""

    def __init__(self, vectors_ND: Vectors, rows_N: Rows | None = None) -> None:
        import faiss

        self._faiss: Any = faiss.IndexFlatIP(vectors_ND.shape[1])
        self._faiss.add(vectors_ND)
        self._rows_N = rows_N
        self.nbytes = 4 * vectors_ND.size

    def candidates(self, queries_QD: Vectors, k: int) -> Iterator[tuple[Rows, Rows]]:
        """See `Structure`."""
        n = int(self._faiss.ntotal)
        pending_Q, wanted = np.arange(len(queries_QD)), min(n, k + SPARE)
        while len(pending_Q):
            tied: list[Rows] = []
            for part_Q in steps(pending_Q, AT_ONCE // wanted):
                found_QC, rows_QC = self._faiss.search(queries_QD[part_Q], wanted)
                # Rows as good as the k-th may lie behind the last candidate: look further.
                tied_Q = found_QC[:, -1] > found_QC[:, k - 1] - NEAR_TIE if wanted < n else None
                if tied_Q is not None and tied_Q.any():
                    tied.append(part_Q[tied_Q])
                    part_Q, rows_QC = part_Q[~tied_Q], rows_QC[~tied_Q]
                yield part_Q, rows_QC if self._rows_N is None else self._rows_N[rows_QC]
            pending_Q = np.concatenate(tied) if tied else pending_Q[:0]
            wanted = min(n, 4 * wanted)


class Inverted:
    """Approximate: 4 bits a piece of a vector, in lists by the nearest of 1.6·√N centres; few lists are read.

    A vector is cut into `PIECES`, each kept as the nearest of 16 learnt ones, which FAISS compares 32 at a
    time in the processor's registers. The best of that are candidates, to be compared exactly.

    Distances, not products: of unit vectors they say the same, but learnt pieces lose less of a distance where all
    vectors point the same way, as hidden states do (recall of such 0.985 instead of 0.867).

    Vectors are rounded to whole numbers first. Their squared distances stay below 2²⁴, where float32 is
    exact, so FAISS picks the same lists for a query by whichever of its ways it adds.
    """

    def __init__(self, vectors_ND: Vectors) -> None:
        import faiss

        n, dimension = vectors_ND.shape
        self._lists = min(n, int(1.6 * math.sqrt(n)))
        self._pieces = min(PIECES, dimension)
        scaled_ND = self._scale(vectors_ND)
        centres_LD = _learn_centres(scaled_ND, self._lists)
        self._centres: Any = faiss.IndexFlatL2(scaled_ND.shape[1])
        self._centres.add(centres_LD)
        self._faiss: Any = faiss.IndexIVFPQFastScan(
            self._centres,
            scaled_ND.shape[1],
            self._lists,
            self._pieces,
            4,
            faiss.METRIC_L2,
        )
        self._faiss.by_residual = False
        self._faiss.implem = 10  # one query at a time: its candidates do not depend on the others
        with _one_thread():
            self._faiss.train(scaled_ND[:: max(1, n // SAMPLE_PIECES)])
            self._faiss.add(scaled_ND)
        self.nbytes = n * (int(self._faiss.code_size) + 8) + centres_LD.nbytes

    def candidates(
        self, queries_QD: Vectors, k: int, among_N: Mask | None = None
    ) -> Iterator[tuple[Rows, Rows]]:
        """See `Structure`; the more are wanted, the more lists are read, in the end all.

        Args:
            queries_QD: Unit vectors.
            k: How many nearest the candidates should hold.
            among_N: Only these rows.
        """
        n = int(self._faiss.ntotal)
        rows_M = np.arange(n) if among_N is None else np.flatnonzero(among_N)
        wanted = min(len(rows_M), SPARE_PIECES + 2 * k)
        for part_Q in steps(np.arange(len(queries_QD)), AT_ONCE // wanted):
            if wanted == len(rows_M):
                yield part_Q, np.broadcast_to(rows_M, (len(part_Q), wanted))
                continue
            settings = _settings(self._probes(wanted, len(rows_M) / n), among_N)
            scaled_QD = self._scale(queries_QD[part_Q])
            yield part_Q, self._faiss.search(scaled_QD, wanted, params=settings)[1]

    def _probes(self, wanted: int, share: float) -> int:
        """How many lists are read: more for more candidates, and where fewer of their rows count."""
        return min(self._lists, math.ceil(PROBES * math.ceil(wanted / PROBED) / share))

    def _scale(self, units_ND: Vectors) -> Vectors:
        """Whole numbers, with zeros at the end so that the pieces are of one length."""
        dimension = units_ND.shape[1]
        missing = -dimension % self._pieces
        whole_ND = np.rint(units_ND * np.float32(SCALE))
        return np.pad(whole_ND, ((0, 0), (0, missing))) if missing else whole_ND


def steps(places_Q: Rows, size: int) -> Iterator[Rows]:
    """The places in parts of at most `size`, and never more than FAISS and the cache take well."""
    size = max(1, min(size, QUERIES_AT_ONCE))
    for start in range(0, len(places_Q), size):
        yield places_Q[start : start + size]


def _learn_centres(scaled_ND: Vectors, lists: int) -> Vectors:
    """Centres by k-means on a sample, rounded."""
    import faiss

    kmeans: Any = faiss.Kmeans(
        scaled_ND.shape[1],
        lists,
        niter=ROUNDS,
        seed=0,
        max_points_per_centroid=SAMPLE,
        min_points_per_centroid=1,
    )
    with _one_thread():
        kmeans.train(scaled_ND)
    return np.rint(kmeans.centroids)


def _settings(probes: int, among_N: Mask | None) -> Any:
    import faiss

    parameters: Any = faiss.SearchParametersIVF
    if among_N is None:
        return parameters(nprobe=probes)
    bitmap: Any = faiss.IDSelectorBitmap
    return parameters(nprobe=probes, sel=bitmap(np.packbits(among_N, bitorder="little")))


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Several threads add in the order they happen to run in, and the sums come out different."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
