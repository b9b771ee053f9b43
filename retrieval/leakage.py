"""The leakage guard: which references are the question itself, in disguise.

Texts and option sets are numbered once, so that many questions are compared with many references as arrays.

Shapes: N references, Q questions, C candidates.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .questions import Question

__all__ = ["ABSENT", "CUT_OFF", "REASONS", "LeakageGuard", "Marks", "normal_text"]

CUT_OFF = 0.95
COMMON_OPTIONS = 4
"""Options that at least so many references share (`yes`, `no`) do not betray the question."""

REASONS = ("same id", "same text", "same options", "too similar")
ABSENT = -1

SEPARATORS = re.compile(r"[^\w+\-*/=<>^%]+")
ASCII = SEPARATORS.sub(lambda found: " " * len(found[0]), "".join(map(chr, range(128)))).lower()

Ints = npt.NDArray[np.int64]
Thing = TypeVar("Thing", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Marks:
    """What to recognise questions by: a reference's row, and the numbers of a text and an option set.

    −1 where no reference has the like.
    """

    row_Q: Ints
    text_Q: Ints
    options_Q: Ints

    def __getitem__(self, places_Q: Ints) -> Marks:
        return Marks(self.row_Q[places_Q], self.text_Q[places_Q], self.options_Q[places_Q])


class LeakageGuard:
    """Tells of candidates why they must not stand beside a question."""

    def __init__(self, references: Sequence[Question]) -> None:
        self._row = {question.id: row for row, question in enumerate(references)}
        self._text, self._text_N = _number(normal_text(question.text) for question in references)
        options = [_option_set(question) for question in references]
        counts = Counter(options)
        self._options, self._options_N = _number(options)
        for shared in options:
            if not shared or counts[shared] >= COMMON_OPTIONS:
                self._options.pop(shared, None)

    def mark(self, questions: Sequence[Question]) -> Marks:
        """Look the questions up, once for all of their candidates."""
        return Marks(
            _look_up(self._row, (question.id for question in questions)),
            _look_up(self._text, (normal_text(question.text) for question in questions)),
            _look_up(self._options, map(_option_set, questions))
            if self._options
            else np.full(len(questions), -1),
        )

    def reasons(
        self,
        marks: Marks,
        rows_QC: Ints,
        similarities_QC: npt.NDArray[np.float64],
        cut_off: float,
    ) -> npt.NDArray[np.int8]:
        """0 for candidates that are let through, else 1 + the place in `REASONS`; `ABSENT` for row −1.

        The first reason that applies counts.
        """
        reasons_QC = np.where(similarities_QC > cut_off, 4, 0).astype(np.int8)
        reasons_QC[self._options_N[rows_QC] == marks.options_Q[:, np.newaxis]] = 3
        reasons_QC[self._text_N[rows_QC] == marks.text_Q[:, np.newaxis]] = 2
        reasons_QC[rows_QC == marks.row_Q[:, np.newaxis]] = 1
        reasons_QC[rows_QC < 0] = ABSENT
        return reasons_QC


def normal_text(text: str) -> str:
    """A text without case, punctuation and extra spaces; operators and digits stay."""
    if text.isascii():  # the same, several times faster
        return " ".join(text.translate(ASCII).split())
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(SEPARATORS.sub(" ", text).split())


def _option_set(question: Question) -> frozenset[str]:
    return frozenset(normal_text(option) for option in question.options)


def _number(things: Iterable[Thing]) -> tuple[dict[Thing, int], Ints]:
    """Equal things get equal numbers, from 0."""
    numbers: dict[Thing, int] = {}
    numbers_N = [numbers.setdefault(thing, len(numbers)) for thing in things]
    return numbers, np.array(numbers_N, dtype=np.int64)


def _look_up(numbers: dict[Thing, int], things: Iterable[Thing]) -> Ints:
    return np.array([numbers.get(thing, -1) for thing in things], dtype=np.int64)
