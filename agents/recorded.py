"""Recorded answers of real models, read from a folder into numbers.

A folder holds `questions.parquet` (`question_id`, `question`, `gold` and where known `split`,
`category`, `options`) and `outcomes.parquet` (`question_id`, `model`, `predicted` or `correct`, and
where known `answered`, `output_chars`). No order of rows in either file can change what is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError, Question
from ..retrieval.references import normal_text
from .engines.wording import name_some, one_line
from .outcomes import MISSING, UNREADABLE, OutcomeTable
from .reason import derive_seed
from .recorded_answers import Labeller, read_question
from .recorded_files import read_rows

__all__ = ["Division", "Recorded", "read_recorded"]

CHARS_PER_TOKEN = 4

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Division:
    """Rows to learn from and rows to test on; no question stands in both."""

    profile: Rows
    test: Rows
    notes: tuple[str, ...] = ()
    """What was dropped, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A folder of recorded answers: N questions in the order of their ids, E models."""

    questions: tuple[Question, ...]
    splits: tuple[str, ...]
    """Of each question; empty where the folder has none."""
    categories: tuple[str, ...]
    """Likewise."""
    table: OutcomeTable
    """Without skills and costs: these depend on which questions may be learnt from."""
    tokens_NE: Floats
    """Estimated length of each reply, a token per four characters; 0 where unknown."""
    mergeable: bool = True
    """Whether answers were kept. If only right and wrong are known, 0 is right and each model's wrong
    answers have a label of their own: nothing can be voted on."""
    notes: tuple[str, ...] = ()
    """What was odd and how it was read, a sentence each."""

    def __len__(self) -> int:
        return len(self.questions)

    def halve(self, seed: int) -> Recorded:
        """The same answers with splits `profile` and `test`, drawn by a hash of seed and id."""
        halves = [derive_seed(seed, "half", question.id) % 2 for question in self.questions]
        return replace(self, splits=tuple("test" if half else "profile" for half in halves))

    def divide(self, profile: str, test: str) -> Division:
        """Rows of two splits. A question of the profile that is also tested on, or that stands in the
        profile twice, is left out there (the same text and options but for case, punctuation and order
        of options). The test is left whole; a note counts what it holds twice.

        Raises:
            InputError: the splits are one and the same, unknown, or nothing is left of one.
        """
        if profile == test:
            raise InputError(
                f'profile and test are both the split "{test}": what is tested must not be learnt '
                "from; name two splits, or divide one at random with --split-half 0"
            )
        for name in (profile, test):
            if name not in self.splits:
                known = name_some({split for split in self.splits if split})
                raise InputError(
                    f'no questions with split "{name}"; there are {known} (--split-half 0 divides '
                    "all questions at random)"
                )
        keys = [_identify(question) for question in self.questions]
        test_rows = [row for row, split in enumerate(self.splits) if split == test]
        tested = {keys[row] for row in test_rows}
        found = [row for row, split in enumerate(self.splits) if split == profile]
        first = {keys[row]: row for row in reversed(found)}
        rows = sorted(row for key, row in first.items() if key not in tested)
        if not rows:
            raise InputError(f'every question of split "{profile}" is also tested on; none is left')
        untested = sum(keys[row] not in tested for row in found)
        counted = (
            (len(found) - untested, f'of split "{profile}" left out: tested on'),
            (untested - len(rows), f'of split "{profile}" left out: they stand there twice'),
            (len(test_rows) - len(tested), f'of split "{test}" stand there twice; each counts'),
        )
        return Division(
            profile=np.array(rows, np.intp),
            test=np.array(test_rows, np.intp),
            notes=tuple(f"{number} questions {what}" for number, what in counted if number),
        )


def read_recorded(folder: str | Path, models: Sequence[str] | None = None) -> Recorded:
    """Read a folder.

    A label is the place of the option for choices. Answers to open questions are numbered in the
    order of their normal forms; equal ones (but for case and spaces, numbers by value) share a label.
    Where `correct` contradicts `predicted` and `gold`, these decide, and a note counts it; where
    nothing is predicted, `correct` decides.

    Args:
        folder: See the module.
        models: Those to read, as the folder spells them; all by default.

    Raises:
        InputError: a file or column is missing, there are no rows, a model is unknown, or a question
            has a gold answer that it cannot have.
    """
    folder = Path(folder)
    asked = read_rows(
        folder / "questions.parquet",
        needed=("question_id", "question", "gold"),
        wanted=("split", "category", "options"),
    )
    given = read_rows(
        folder / "outcomes.parquet",
        needed=("question_id", "model"),
        wanted=("predicted", "correct", "answered", "output_chars"),
    )
    if not {"predicted", "correct"} & set(given[0]):
        raise InputError(f"{folder}/outcomes.parquet has neither the column predicted nor correct")
    known = {str(row["model"]) for row in given}
    experts = tuple(sorted(known if models is None else set(models)))
    unknown = [name for name in experts if name not in known]
    if unknown or not experts:
        what = f'no model "{one_line(unknown[0])}" in {folder}' if unknown else "no model is named"
        raise InputError(f"{what}; there are {len(known)}: {name_some(known, limit=60)}")
    rows, notes = _unite_questions(asked, folder)
    mergeable = any(row.get("predicted") is not None for row in given)
    questions = tuple(read_question(row, folder, strict=mergeable) for row in rows)
    filled = _Filled(questions, experts, mergeable)
    filled.fill(given)
    if late := filled.labeller.late_golds:
        notes.append(
            f"{late} questions have a gold letter beyond their options, which reach up to it"
        )
    return Recorded(
        questions=questions,
        splits=tuple(str(row.get("split") or "") for row in rows),
        categories=tuple(str(row.get("category") or "") for row in rows),
        table=OutcomeTable(
            experts=experts,
            questions=tuple(question.id for question in questions),
            labels_NE=filled.labels_NE,
            gold_N=filled.labeller.gold_N,
            options_N=filled.labeller.options_N,
        ),
        tokens_NE=filled.tokens_NE,
        mergeable=mergeable,
        notes=(*notes, *filled.tell()),
    )


class _Filled:
    """Arrays that outcomes are written into, with counts of what was odd."""

    def __init__(
        self, questions: Sequence[Question], experts: Sequence[str], mergeable: bool
    ) -> None:
        self.place = {name: at for at, name in enumerate(experts)}
        self.row = {question.id: at for at, question in enumerate(questions)}
        self.mergeable = mergeable
        self.labeller = Labeller(questions, mergeable=mergeable)
        shape = (len(questions), len(experts))
        self.labels_NE = np.full(shape, MISSING, np.int16)
        self.tokens_NE = np.zeros(shape)
        self.odd: Counter[str] = Counter()

    def fill(self, given: Iterable[Mapping[str, Any]]) -> None:
        first: dict[tuple[int, int], Mapping[str, Any]] = {}
        for row in given:
            at, column = self.row.get(str(row["question_id"])), self.place.get(str(row["model"]))
            if column is None:
                continue
            if at is None:
                self.odd["outcomes of unknown questions left out"] += 1
                continue
            other = first.get((at, column))
            if other is not None:
                self.odd["repeated outcomes of one model on one question: the first in order"] += 1
            if other is None or _rank(row) < _rank(other):
                first[at, column] = row
        # Open answers are numbered once all of a question's are known: in order of content, not of rows.
        self.labeller.number((at, _said(row)) for (at, _), row in first.items())
        for (at, column), row in first.items():
            self.labels_NE[at, column] = self._label(row, at, column)
            chars = row.get("output_chars")
            if isinstance(chars, int | float) and math.isfinite(chars) and chars > 0:
                self.tokens_NE[at, column] = chars / CHARS_PER_TOKEN
        missing = int((self.labels_NE == MISSING).sum())
        self.odd["answers are missing; they teach nothing, and are wrong when tested"] += missing

    def _label(self, row: Mapping[str, Any], at: int, column: int) -> int:
        correct = row.get("correct")
        if not self.mergeable:
            if correct is None:
                return MISSING
            return 0 if correct else UNREADABLE if row.get("answered") is False else 1 + column
        said = _said(row)
        if said is None and correct:
            self.odd["answers were not kept but marked right; they count as the gold answer"] += 1
            return int(self.labeller.gold_N[at])
        label = UNREADABLE if said is None else self.labeller.label(at, said)
        if said is not None and label == UNREADABLE:
            self.odd["answers name no option of their question; they count as unreadable"] += 1
        if correct is not None and bool(correct) != (label == self.labeller.gold_N[at]):
            self.odd[
                "outcomes where `correct` contradicts `predicted` and `gold`, which decide"
            ] += 1
        return label

    def tell(self) -> list[str]:
        told = [f"{number} {what}" for what, number in sorted(self.odd.items()) if number]
        if not self.mergeable:
            told.append(
                "only right and wrong are recorded, not the answers: nothing can be merged, so the "
                "first recruit of every panel answers alone"
            )
        return told


def _unite_questions(
    rows: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Rows in the order of their ids, each id once."""
    by_id: dict[str, Mapping[str, Any]] = {}
    repeated = 0
    for row in rows:
        qid = str(row["question_id"])
        if qid in by_id and by_id[qid] != row:
            raise InputError(
                f'{folder}/questions.parquet has two different questions with the id "{one_line(qid)}"'
            )
        repeated += qid in by_id
        by_id[qid] = row
    notes = [f"{repeated} rows repeat a question and count once"] if repeated else []
    return [by_id[qid] for qid in sorted(by_id)], notes


def _identify(question: Question) -> tuple[str, ...]:
    """What two copies of one question have in common."""
    options = sorted(normal_text(option) or option for option in question.options)
    return normal_text(question.text) or question.text, *options


def _said(row: Mapping[str, Any]) -> str | None:
    said = row.get("predicted")
    return None if said is None or row.get("answered") is False else str(said)


def _rank(row: Mapping[str, Any]) -> tuple[bool, str, str, str]:
    said = _said(row)
    return said is None, said or "", str(row.get("correct")), str(row.get("output_chars"))
