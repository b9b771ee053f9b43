"""How fast the neighbours of a question are found among 100,000 references, and how often they are the right ones.

    python benchmarks/references.py [--json] [--quick] [--texts FOLDER]

Three neighbours, leakage guard on, vectors of 384 numbers that are given (encoding is the encoder's business), 4,000
questions at once, of which one in fifty is a reference in disguise. The figures are CPU time of the whole process on
one core, the best of some passes, so that a busy machine changes them little. Keys:

- `queries_per_second_100k`: promised are 10,000. `_balanced`: with evenly spread letters; `_among`: only among a random
  tenth, or a little less (exact); `_exact`: the same through exact search; `queries_per_second_10k`: among the 10,000 up to which search
  is exact anyway.
- `recall_at_3`: of the three nearest by exact search, how many are found.
- `bytes_per_reference`: vectors and structure; `build_seconds`: of the structure, which is built after loading.

The vectors are drawn: topics in bunches in fields, as spread out as MiniLM's of real questions and about as hard to
search. `--texts FOLDER` takes real ones instead: MiniLM of all questions in the folder's parquet files (kept in
.cache, as encoding takes many minutes), and between neighbouring ones as many more as are needed. `--quick` takes
fewer passes and leaves exact search out.
"""

from __future__ import annotations

import os

# One core: the figures are per core. Must be said before numpy is loaded.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from expertmix.retrieval import (
    GivenVectors,
    MiniLM,
    Question,
    ReferenceSet,
    VectorIndex,
)
from expertmix.retrieval import index as index_module
from expertmix.retrieval.encoded import EncodedTexts

REFERENCES, ASKED, DIMENSION, NEIGHBOURS = 100_000, 4_000, 384, 3
CACHE = Path(".cache/references-benchmark.safetensors")

Vectors = npt.NDArray[np.float32]


def unit(vectors_ND: npt.NDArray[Any]) -> Vectors:
    """Each of length 1."""
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)


def draw_vectors(rng: np.random.Generator) -> tuple[Vectors, Vectors]:
    """References and questions of 8,000 topics in 3,600 bunches in 60 fields."""
    # Variance falls with the number of the direction, as it does in real embeddings.
    scale_D = ((1 + np.arange(DIMENSION)) ** -0.25).astype(np.float32)

    def scatter(n: int) -> Vectors:
        return rng.standard_normal((n, DIMENSION), dtype=np.float32) * scale_D

    fields, bunches = scatter(60), scatter(3_600)
    bunch = rng.integers(0, len(bunches), 8_000)
    topics_TD = 0.55 * fields[bunch % 60] + 0.75 * bunches[bunch] + scatter(len(bunch))

    def about(n: int) -> Vectors:
        spread_N1 = rng.uniform(0.4, 2.2, (n, 1)).astype(np.float32)
        return unit(topics_TD[rng.integers(0, len(topics_TD), n)] + spread_N1 * scatter(n))

    return about(REFERENCES), about(ASKED)


def read_vectors(folder: Path, rng: np.random.Generator) -> tuple[Vectors, Vectors]:
    """Of the folder's questions some are asked; the others, and points between them, are references."""
    import pyarrow.parquet as pq

    texts: set[str] = set()
    for path in sorted(folder.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row.get("question"):
                texts.add("\n".join((row["question"], *(row.get("options") or ()))))
    CACHE.parent.mkdir(exist_ok=True)
    encoded = EncodedTexts.compute(
        MiniLM(), sorted(texts), path=CACHE, on_progress=lambda at, of: print(at, "of", of)
    )
    vectors_ND = rng.permutation(encoded.encode(sorted(texts)))
    asked_QD, real_ND = vectors_ND[:ASKED], vectors_ND[ASKED:][:REFERENCES]
    pick_M = rng.integers(0, len(real_ND), REFERENCES - len(real_ND))
    near_MK, _ = VectorIndex.build(real_ND, [{}] * len(real_ND), "x", "1").nearest(
        real_ND[pick_M], 16
    )
    other_M = near_MK[np.arange(len(pick_M)), rng.integers(1, 16, len(pick_M))]
    share_M1 = rng.uniform(0.3, 0.7, (len(pick_M), 1)).astype(np.float32)
    between_MD = share_M1 * real_ND[pick_M] + (1 - share_M1) * real_ND[other_M]
    between_MD += 0.02 * rng.standard_normal(between_MD.shape, dtype=np.float32)
    return rng.permutation(np.concatenate([real_ND, unit(between_MD)])), asked_QD


def make_questions(number: int, name: str, rng: np.random.Generator) -> list[Question]:
    """Choices of 25 words and four options of five words, as long as real ones."""
    places_QW = rng.integers(0, 5_000, (number, 45)).tolist()
    made: list[Question] = []
    for at, places in enumerate(places_QW):
        words = [f"word{place}" for place in places]
        options = tuple(" ".join(words[start : start + 5]) for start in range(25, 45, 5))
        text, gold = " ".join(words[:25]), "ABCD"[places[0] % 4]
        made.append(
            Question(id=f"{name}{at}", text=text, options=options, gold=gold, kind="choice")
        )
    return made


def seconds(work: Callable[[], object], passes: int) -> float:
    """CPU time, the least of some passes."""
    taken: list[float] = []
    for _ in range(passes):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def exact(vectors_ND: Vectors, vectors_QD: Vectors) -> npt.NDArray[np.int64]:
    """The three nearest rows of each, by comparing all."""
    rows: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(vectors_QD), 250):
        alike_QN = vectors_QD[start : start + 250] @ vectors_ND.T
        rows.append(np.argpartition(-alike_QN, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    return np.concatenate(rows)


def measure(vectors_ND: Vectors, vectors_QD: Vectors, *, quick: bool) -> dict[str, float]:
    """All figures."""
    rng, passes = np.random.default_rng(1), 3 if quick else 8
    references, asked = make_questions(REFERENCES, "r", rng), make_questions(ASKED, "q", rng)
    for at in range(0, ASKED, 50):
        vectors_QD[at] = vectors_ND[at]
        asked[at] = replace(asked[at], text=references[at].text.upper() + "?")
    given = GivenVectors("drawn", "1")
    whole = ReferenceSet.build(references, given, vectors_ND=vectors_ND)

    def rate(of: ReferenceSet, passes: int = passes, **options: object) -> int:
        def ask() -> object:
            return of.neighbours_of_vectors(asked, vectors_QD, NEIGHBOURS, **options)  # pyright: ignore[reportArgumentType]

        return round(ASKED / seconds(ask, passes))

    build_seconds = seconds(lambda: whole.index.nbytes, 1)
    found_QK, _ = whole.index.nearest(vectors_QD, NEIGHBOURS + 5)
    pairs = zip(
        exact(vectors_ND, vectors_QD).tolist(), found_QK[:, :NEIGHBOURS].tolist(), strict=True
    )
    right = sum(len(set(best) & set(found)) for best, found in pairs)
    few = ReferenceSet.build(references[:10_000], given, vectors_ND=vectors_ND[:10_000])
    figures: dict[str, float] = {
        "queries_per_second_100k": rate(whole),
        "queries_per_second_100k_balanced": rate(whole, balanced=True),
        "queries_per_second_100k_among": rate(whole, among=rng.random(REFERENCES) < 0.09),
        "queries_per_second_10k": rate(few),
    }
    if not quick:
        index_module.FLAT_ROWS = REFERENCES
        flat = ReferenceSet.build(references, given, vectors_ND=vectors_ND)
        figures["queries_per_second_100k_exact"] = rate(flat, 2)
    return figures | {
        "recall_at_3": round(right / (NEIGHBOURS * ASKED), 4),
        "bytes_per_reference": round(whole.index.nbytes / REFERENCES),
        "build_seconds": round(build_seconds, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="fewer passes, no exact search")
    parser.add_argument("--texts", type=Path, help="real questions: a folder of parquet files")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    texts: Path | None = arguments.texts
    vectors_ND, vectors_QD = draw_vectors(rng) if texts is None else read_vectors(texts, rng)
    figures = measure(vectors_ND, vectors_QD, quick=arguments.quick)
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:<40} {value:>12,}")


if __name__ == "__main__":
    main()
