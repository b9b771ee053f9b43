"""Recorded answers as labels: the place of an option, or a number that equal answers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..retrieval import AnswerKind, InputError, Question
from .engines.wording import one_line
from .number_answers import read_number
from .outcomes import UNREADABLE

__all__ = ["Labeller", "normalise_answer", "read_question"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Labels = npt.NDArray[np.int16]


class Labeller:
    """Labels of the answers to N questions, with the gold's.

    Args:
        questions: As from `read_question`.
        mergeable: False where answers were not kept: then 0 is right, and no question has options.
    """

    def __init__(self, questions: Sequence[Question], *, mergeable: bool = True) -> None:
        self.questions = questions
        self.gold_N: Labels = np.zeros(len(questions), np.int16)
        self.options_N: Labels = np.zeros(len(questions), np.int16)
        self.late_golds = 0
        """Questions whose gold letter lies beyond their options."""
        self._names: list[dict[str, int]] = [{} for _ in questions]
        for row, question in enumerate(questions if mergeable else ()):
            if question.options:
                gold = LETTERS.index(question.gold or "A")
                self.gold_N[row] = gold
                self.options_N[row] = max(len(question.options), gold + 1)
                self.late_golds += gold >= len(question.options)

    def number(self, said: Iterable[tuple[int, str | None]]) -> None:
        """Number the answers to open questions, given all of them with their rows."""
        found: dict[int, set[str]] = {}
        for row, answer in said:
            if answer is not None and not self.questions[row].options:
                found.setdefault(row, set()).add(self._form(row, answer))
        for row, question in enumerate(self.questions):
            if question.options or question.gold is None:
                continue
            golds = [self._form(row, gold) for gold in question.gold.split("||") if gold.strip()]
            # By content, gold among the others: no place in the order may tell which one is right.
            forms = sorted(found.get(row, set()) - set(golds[1:]) | set(golds[:1]))
            names = {form: at for at, form in enumerate(forms)}
            names |= {gold: names[golds[0]] for gold in golds}
            self._names[row] = names
            self.gold_N[row] = names[golds[0]]

    def label(self, row: int, said: str) -> int:
        """The label of an answer; `UNREADABLE` for a choice that the question does not offer."""
        question = self.questions[row]
        if not question.options:
            return self._names[row].get(self._form(row, said), UNREADABLE)
        letter = said.strip().upper()
        if len(letter) == 1 and letter in LETTERS[: self.options_N[row]]:
            return LETTERS.index(letter)
        texts = [normalise_answer(option) for option in question.options]
        form = normalise_answer(said)
        return texts.index(form) if form in texts else UNREADABLE

    def _form(self, row: int, said: str) -> str:
        return normalise_answer(said, number=self.questions[row].kind == "number")


@lru_cache(maxsize=65536)
def normalise_answer(said: str, *, number: bool = False) -> str:
    """An answer without case and extra spaces; as a number, its value whatever its unit or writing."""
    form = " ".join(said.split()).casefold()
    if not number:
        return form
    value = read_number(said)
    if value is None:
        return form
    try:
        return f"#{Fraction(value.rstrip('%'))}"
    except (ValueError, ZeroDivisionError):
        return value


def read_question(row: Mapping[str, Any], folder: Path, *, strict: bool = True) -> Question:
    """A question from a row of `questions.parquet`.

    Args:
        row: The row.
        folder: For messages.
        strict: Whether the gold answer has to fit; where only right and wrong are known it does not.

    Raises:
        InputError: its options are no texts, too many, or its gold is neither a letter nor an option.
    """
    qid, gold = str(row["question_id"]), str(row["gold"]).strip()
    given: list[object] = list(row.get("options") or ())
    options = tuple(option for option in given if isinstance(option, str))
    where = f'{folder}/questions.parquet, question "{one_line(qid)}"'
    if len(options) < len(given) or len(options) > len(LETTERS):
        raise InputError(f"{where}: options must be at most {len(LETTERS)} texts")
    kind: AnswerKind = "choice" if options else "number" if _is_number(gold) else "text"
    if options and strict:
        gold = _find_letter(gold, options, where)
    elif strict and not gold.strip("| "):
        raise InputError(f"{where}: it has no gold answer")
    category = row.get("category")
    return Question(
        id=qid,
        text=str(row["question"]),
        options=options,
        gold=gold,
        kind=kind,
        skills=(str(category),) if category else (),
    )


def _find_letter(gold: str, options: Sequence[str], where: str) -> str:
    if len(gold) == 1 and gold.upper() in LETTERS:
        return gold.upper()
    if gold in options:
        return LETTERS[options.index(gold)]
    raise InputError(
        f"{where}: its gold {one_line(gold, limit=40)!r} is neither a letter nor one of its options"
    )


def _is_number(gold: str) -> bool:
    return normalise_answer(gold, number=True).startswith("#") and any(c.isdigit() for c in gold)
