"""Labelled questions, found by what they resemble, without ever leaking the question itself.

Shapes: N references, Q questions, D dimensions, C candidates, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from .choosing import choose_nearest, mask_of
from .drawing import draw_rows
from .embed import Encoder, as_encoder
from .errors import InputError
from .index import VectorIndex
from .leakage import CUT_OFF, LeakageGuard, normal_text
from .neighbours import Neighbour, Neighbours, collect
from .questions import Question
from .search import SPARE, Search

__all__ = [
    "CUT_OFF",
    "Neighbour",
    "Neighbours",
    "ReferenceSet",
    "embedding_text",
    "normal_text",
]

Rows = npt.NDArray[np.int64]


class ReferenceSet:
    """Labelled questions with a vector each. Build it with `build` or `load`."""

    def __init__(self, questions: Sequence[Question], index: VectorIndex, encoder: Encoder) -> None:
        self.questions = tuple(questions)
        self.index = index
        self.encoder = encoder
        self._guard = LeakageGuard(self.questions)
        self._letters_N = np.array(
            [ord(q.gold) if q.gold and q.kind == "choice" else -1 for q in self.questions]
        )

    @classmethod
    def build(
        cls,
        questions: Iterable[Question],
        encoder: Encoder | Embeddings,
        *,
        vectors_ND: npt.ArrayLike | None = None,
    ) -> ReferenceSet:
        """Embed and index questions.

        Args:
            questions: With gold answers.
            encoder: Makes the vectors; `GivenVectors` says what made those that are given.
            vectors_ND: The vectors [N, D], if there are any already.

        Raises:
            InputError: a question has no gold answer, an id comes twice, there are none, or there is not
                one usable vector for each.
        """
        references = list(questions)
        if not references:
            raise InputError("there are no references; give questions with gold answers")
        _check_labels(references)
        used = as_encoder(encoder)
        if vectors_ND is None:
            vectors_ND = used.encode([embedding_text(question) for question in references])
        rows = [question.to_json() for question in references]
        return cls(references, VectorIndex.build(vectors_ND, rows, used.name, used.revision), used)

    def __len__(self) -> int:
        return len(self.questions)

    def neighbours(
        self,
        question: Question,
        k: int,
        *,
        cut_off: float = CUT_OFF,
        within: float | None = None,
        balanced: bool = False,
        among: npt.ArrayLike | None = None,
    ) -> Neighbours:
        """The `k` references most similar to `question`; see `neighbours_of_many`."""
        return self.neighbours_of_many(
            [question], k, cut_off=cut_off, within=within, balanced=balanced, among=among
        )[0]

    def neighbours_of_many(
        self,
        questions: Sequence[Question],
        k: int,
        *,
        cut_off: float = CUT_OFF,
        within: float | None = None,
        balanced: bool = False,
        among: npt.ArrayLike | None = None,
    ) -> list[Neighbours]:
        """For each question the `k` most similar references that are not the question in disguise.

        A reference is dropped, and counted, if it has the question's id, its text but for case,
        punctuation and spaces, its set of options in any order, or a similarity above `cut_off`. Equal
        ones come by row. A question's neighbours do not depend on what else is asked with it.

        Args:
            questions: The questions, embedded together.
            k: References wanted; fewer come back if too few are left.
            cut_off: Largest similarity that is let through.
            within: Smallest similarity that still counts as near (a ball); `k` is then the most that
                come back.
            balanced: Spread the neighbours' gold letters evenly: of the 8·`k` nearest choices, each letter
                gives its nearest, then each its second nearest, and so on until there are `k`. They still
                come by similarity. References that are no choices do not take part.
            among: Only these references: one truth value each, or rows.

        Raises:
            InputError: `k` is below 1, `within` is above `cut_off`, or `among` names none or unknown ones.
        """
        if not questions:
            return []
        vectors_QD = self.encoder.encode([embedding_text(question) for question in questions])
        return self.neighbours_of_vectors(
            questions, vectors_QD, k, cut_off=cut_off, within=within, balanced=balanced, among=among
        )

    def neighbours_of_vectors(
        self,
        questions: Sequence[Question],
        vectors_QD: npt.ArrayLike,
        k: int,
        *,
        cut_off: float = CUT_OFF,
        within: float | None = None,
        balanced: bool = False,
        among: npt.ArrayLike | None = None,
    ) -> list[Neighbours]:
        """As `neighbours_of_many`, by vectors [Q, D] of the questions that whatever made the set's gave.

        Raises:
            InputError: as `neighbours_of_many`, or there is not one finite vector of the set's dimension
                for each question.
        """
        search = Search(
            k=k,
            cut_off=cut_off,
            within=within,
            balanced=balanced,
            among_N=mask_of(among, len(self)),
        )
        vectors_QD = _one_each(questions, vectors_QD)
        marks = self._guard.mark(questions)
        return search.run(
            self.questions, self._letters_N, self.index, self._guard, marks, vectors_QD
        )

    def random_neighbours(
        self,
        questions: Sequence[Question],
        k: int,
        seed: int,
        *,
        vectors_QD: npt.ArrayLike | None = None,
        cut_off: float = CUT_OFF,
        among: npt.ArrayLike | None = None,
    ) -> list[Neighbours]:
        """For each question `k` references drawn at random, under the same guard: a control.

        What is drawn depends on the seed, the question's id and text, and on `among`.

        Args:
            questions: The questions.
            k: References wanted; fewer come back if too few are left.
            seed: Another one draws others.
            vectors_QD: The questions' vectors; by default they are embedded.
            cut_off: Largest similarity that is let through.
            among: Only these references: one truth value each, or rows.

        Raises:
            InputError: as `neighbours_of_vectors`.
        """
        search = Search(k=k, cut_off=cut_off, among_N=mask_of(among, len(self)))
        if not questions:
            return []
        if vectors_QD is None:
            vectors_QD = self.encoder.encode([embedding_text(question) for question in questions])
        vectors_QD = _one_each(questions, vectors_QD)
        among_N = search.among_N
        rows_M = np.arange(len(self)) if among_N is None else np.flatnonzero(among_N)
        return [
            self._draw(question, vector_D, k, seed, rows_M, cut_off)
            for question, vector_D in zip(questions, vectors_QD, strict=True)
        ]

    def save(self, folder: str | Path) -> Path:
        """Write the set to `folder`; see `VectorIndex.save`."""
        return self.index.save(folder)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | Embeddings) -> ReferenceSet:
        """Read a set that was built with this very encoder.

        Raises:
            InputError: as `VectorIndex.load`, or a row is no labelled question.
        """
        used = as_encoder(encoder)
        index = VectorIndex.load(folder, encoder_name=used.name, encoder_revision=used.revision)
        questions = [Question.from_json(row) for row in index.rows]
        _check_labels(questions)
        return cls(questions, index, used)

    def _draw(
        self,
        question: Question,
        vector_D: npt.NDArray[np.float32],
        k: int,
        seed: int,
        rows_M: Rows,
        cut_off: float,
    ) -> Neighbours:
        marks, number = self._guard.mark([question]), min(len(rows_M), k + SPARE)
        while True:
            rows_1C = draw_rows(question, seed, rows_M, number)[np.newaxis]
            similarities_1C = self.index.similarities(vector_D, rows_1C).astype(np.float64)
            reasons_1C = self._guard.reasons(marks, rows_1C, similarities_1C, cut_off)
            places_1K = choose_nearest(reasons_1C == 0, k)
            one = collect(self.questions, k, places_1K, rows_1C, similarities_1C, reasons_1C)[0]
            if len(one.found) == k or number == len(rows_M):
                nearest = sorted(
                    one.found, key=lambda neighbour: (-neighbour.similarity, neighbour.row)
                )
                return replace(one, found=tuple(nearest))
            number = len(rows_M)


def embedding_text(question: Question) -> str:
    """What encoders see of a question: its text and its options, a line each."""
    return "\n".join((question.text, *question.options))


def _one_each(questions: Sequence[Question], vectors_QD: npt.ArrayLike) -> npt.NDArray[np.float32]:
    vectors = np.asarray(vectors_QD, dtype=np.float32)
    vectors = vectors[np.newaxis] if vectors.ndim == 1 and vectors.size else vectors
    if (vectors.ndim != 2 and vectors.size) or len(vectors) != len(questions):
        raise InputError(
            f"{len(questions)} questions need a vector each, got an array of shape {vectors.shape}"
        )
    return vectors


def _check_labels(questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.gold is None:
            raise InputError(f'reference "{question.id}" has no gold answer; references need one')
        if question.id in seen:
            raise InputError(f'two references have the id "{question.id}"; ids must differ')
        seen.add(question.id)
