"""Labelled choices to learn letters from, without those that something is measured on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....retrieval import InputError, Question, read_questions
from ....retrieval.references import normal_text
from ...reason import derive_seed

__all__ = [
    "Lessons",
    "lesson_batches",
    "point",
    "read_choices",
    "read_lessons",
    "shuffle_options",
]

BUCKET = 32
"""Batches whose questions are sorted by length together, so that little is padding."""
POINTING = (0.7, 0.15)
"""Share of lessons that only point at an option: at first, and later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What is learnt from."""

    questions: tuple[Question, ...]
    files: tuple[str, ...]
    """Their names."""
    dropped: int
    """Rows left out because a held-out row asks the same."""


def read_lessons(files: Sequence[Path], held_out: Sequence[Path] = ()) -> Lessons:
    """Read the choices whose split begins with `train` from parquet files.

    A row is dropped where its normalised text is also that of a row of another split, in any of the
    files, or of a question in `held_out`.

    Args:
        files: Laid out with the columns `question`, `options`, `gold` and `split`.
        held_out: Files of questions that are tested on.

    Raises:
        InputError: an unreadable file, a file without splits, or nothing to learn from.
    """
    learnt: list[Question] = []
    tested = {normal_text(q.text) for path in held_out for q in read_questions(path)}
    for path in files:
        for split, question in _split_rows(path):
            if split is None:
                raise InputError(
                    f"{path} has rows without a split; name the split, train or test, in a column."
                )
            if split.startswith("train"):
                learnt.append(question)
            else:
                tested.add(normal_text(question.text))
    kept = [
        question
        for question in learnt
        if len(question.options) >= 2
        and question.gold is not None
        and normal_text(question.text) not in tested
    ]
    dropped = sum(normal_text(question.text) in tested for question in learnt)
    if not kept:
        names = ", ".join(map(str, files))
        raise InputError(f"There are no labelled choices in a split named train in {names}.")
    return Lessons(questions=tuple(kept), files=tuple(path.name for path in files), dropped=dropped)


def read_choices(path: Path, *, without: Sequence[Question] = ()) -> list[Question]:
    """Read the labelled choices to measure on: those outside a split named train, if there are any.

    Raises:
        InputError: an unreadable file, or one without labelled choices.
    """
    if path.suffix == ".parquet":
        rows = list(_split_rows(path))
        tested = [q for split, q in rows if split is not None and not split.startswith("train")]
        questions = tested or [question for _, question in rows]
    else:
        questions = read_questions(path)
    learnt = {normal_text(question.text) for question in without}
    choices = [
        question
        for question in questions
        if question.options and question.gold and normal_text(question.text) not in learnt
    ]
    if not choices:
        raise InputError(f"{path} holds no labelled choices that were not trained on.")
    return choices


def lesson_batches(
    questions: Sequence[Question], size: int, seed: int, *, pointing_steps: int = 0
) -> Iterator[list[Question]]:
    """Batches without end, in an order and with options shuffled that follow from `seed` alone.

    Small models do not know what a letter in a list stands for. So in the first `pointing_steps` batches
    most lessons (`POINTING[0]`), and later some (`POINTING[1]`), ask only which option says a given text;
    SmolLM2-135M learns that from some 1,500 of them, and nothing from real questions before.

    Args:
        questions: Labelled choices.
        size: Of a batch.
        seed: Decides everything that is drawn.
        pointing_steps: 0: real questions only.
    """
    epoch = step = 0
    while True:
        rng = random.Random(derive_seed(seed, "epoch", epoch))
        order = list(questions)
        rng.shuffle(order)
        for start in range(0, len(order), BUCKET * size):
            bucket = sorted(order[start : start + BUCKET * size], key=_length)
            batches = [bucket[i : i + size] for i in range(0, len(bucket), size)]
            rng.shuffle(batches)
            for batch in batches:
                share = POINTING[step >= pointing_steps] if pointing_steps else 0.0
                step += 1
                shuffled = [shuffle_options(question, rng) for question in batch]
                yield [point(q, rng) if rng.random() < share else q for q in shuffled]
        epoch += 1


def point(question: Question, rng: random.Random) -> Question:
    """A lesson about letters alone: which of the same options says a text that is one of them."""
    place = rng.randrange(len(question.options))
    return replace(
        question,
        text=f'Which option says "{question.options[place]}"?',
        gold=question.letters[place],
    )


def shuffle_options(question: Question, rng: random.Random) -> Question:
    """The same choice with its options in another order, and its gold letter with them."""
    order = list(range(len(question.options)))
    rng.shuffle(order)
    gold = question.letters.index(question.gold or "")
    return replace(
        question,
        options=tuple(question.options[place] for place in order),
        gold=question.letters[order.index(gold)],
    )


def _length(question: Question) -> int:
    return len(question.text) + sum(map(len, question.options))


def _split_rows(path: Path) -> Iterator[tuple[str | None, Question]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path} cannot be read as parquet: {str(error).splitlines()[0]}"
        ) from error
    for number, row in enumerate(rows, 1):
        split = row.get("split")
        try:
            question = Question.from_json(row, default_id=f"{path.stem}/{number}")
        except InputError as error:
            raise InputError(f"{path}, row {number}: {error}") from None
        yield (None if split is None else str(split)), question
