"""Labelled questions, found by what they resemble, without ever leaking the question itself."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from .embed import Encoder, as_encoder
from .errors import InputError
from .index import Hit, VectorIndex
from .questions import Question

__all__ = ["Neighbour", "Neighbours", "ReferenceSet", "embedding_text", "normal_text"]

CUT_OFF = 0.95
COMMON_OPTIONS = 4
"""Options that at least so many references share (`yes`, `no`) do not betray the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A reference that resembles a question."""

    question: Question
    similarity: float
    """Cosine of the two embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What was found, the most similar first, and what the leakage guard held back."""

    found: tuple[Neighbour, ...]
    dropped: Mapping[str, int]
    """Reason → number of references dropped among those nearer than the last one found. Reasons:
    `same id`, `same text`, `same options`, `too similar`; the first that applies counts."""


class ReferenceSet:
    """Labelled questions with a vector each. Build it with `build` or `load`."""

    def __init__(self, questions: Sequence[Question], index: VectorIndex, encoder: Encoder) -> None:
        self.questions = tuple(questions)
        self.index = index
        self.encoder = encoder
        self._texts = [normal_text(question.text) for question in self.questions]
        self._options = [_option_set(question) for question in self.questions]
        self._option_counts = Counter(self._options)

    @classmethod
    def build(cls, questions: Iterable[Question], encoder: Encoder | Embeddings) -> ReferenceSet:
        """Embed and index questions.

        Raises:
            InputError: a question has no gold answer, an id comes twice, or there are none.
        """
        references = list(questions)
        if not references:
            raise InputError("there are no references; give questions with gold answers")
        _check_labels(references)
        used = as_encoder(encoder)
        vectors_ND = used.encode([embedding_text(question) for question in references])
        rows = [question.to_json() for question in references]
        return cls(references, VectorIndex.build(vectors_ND, rows, used.name, used.revision), used)

    def __len__(self) -> int:
        return len(self.questions)

    def neighbours(self, question: Question, k: int, *, cut_off: float = CUT_OFF) -> Neighbours:
        """The `k` references most similar to `question`; see `neighbours_of_many`."""
        return self.neighbours_of_many([question], k, cut_off=cut_off)[0]

    def neighbours_of_many(
        self, questions: Sequence[Question], k: int, *, cut_off: float = CUT_OFF
    ) -> list[Neighbours]:
        """For each question the `k` most similar references that are not the question in disguise.

        A reference is dropped, and counted, if it has the question's id, its text but for case,
        punctuation and spaces, its set of options in any order, or a similarity above `cut_off`.

        Args:
            questions: The questions, embedded together.
            k: References wanted; fewer come back if too few are left.
            cut_off: Largest similarity that is let through.
        """
        if not questions:
            return []
        vectors_QD = self.encoder.encode([embedding_text(question) for question in questions])
        return [
            self._guarded(question, vector_D, k, cut_off)
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

    def _guarded(
        self, question: Question, vector_D: npt.NDArray[np.float32], k: int, cut_off: float
    ) -> Neighbours:
        text, options = normal_text(question.text), _option_set(question)
        wanted = k + 16
        while True:
            found: list[Neighbour] = []
            dropped: Counter[str] = Counter()
            hits = self.index.search(vector_D[np.newaxis], wanted)[0]
            for hit in hits:
                if len(found) == k:
                    break
                reason = self._reason_to_drop(hit, question.id, text, options, cut_off)
                if reason:
                    dropped[reason] += 1
                else:
                    reference = self.questions[hit.row]
                    found.append(Neighbour(question=reference, similarity=hit.similarity))
            if len(found) == k or wanted >= len(self):
                return Neighbours(found=tuple(found), dropped=dict(dropped))
            wanted *= 4

    def _reason_to_drop(
        self, hit: Hit, question_id: str, text: str, options: frozenset[str], cut_off: float
    ) -> str | None:
        if self.questions[hit.row].id == question_id:
            return "same id"
        if self._texts[hit.row] == text:
            return "same text"
        is_telling = bool(options) and self._option_counts[options] < COMMON_OPTIONS
        if is_telling and self._options[hit.row] == options:
            return "same options"
        return "too similar" if hit.similarity > cut_off else None


def embedding_text(question: Question) -> str:
    """What encoders see of a question: its text and its options, a line each."""
    return "\n".join((question.text, *question.options))


def normal_text(text: str) -> str:
    """A text without case, punctuation and extra spaces; operators and digits stay."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w+\-*/=<>^%]+", " ", text).split())


def _option_set(question: Question) -> frozenset[str]:
    return frozenset(normal_text(option) for option in question.options)


def _check_labels(questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.gold is None:
            raise InputError(f'reference "{question.id}" has no gold answer; references need one')
        if question.id in seen:
            raise InputError(f'two references have the id "{question.id}"; ids must differ')
        seen.add(question.id)
