"""Questions of a benchmark set, from the user's own file or from the hub."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from .errors import InputError
from .questions import Question
from .rows import read_rows
from .task_rows import hash_content, read_task_row
from .tasks import TASKS, find_task

__all__ = ["is_confidential", "read_task"]


def read_task(
    path: str | Path,
    task: str,
    *,
    limit: int | None = None,
    split: str | None = None,
    seed: int = 0,
) -> list[Question]:
    """The questions of a benchmark set, to be asked and read the official way, in the file's order.

    Rows may be laid out as the official files of the task, or our way: `question`, `options`, `gold` (a
    letter, an option or a number) or `gold_index`, and perhaps `id`, `split` and `category`. Subject or
    category becomes the question's skill.

    A question keeps the id that its row gives. Without one, and where another question has it already, it
    is `TASK-` and 12 hexadecimal digits of the sha256 of its text and options. A row that repeats an
    earlier one with the same id is left out, and so is one with a single option, which asks nothing: how
    many is logged as a warning, by number.

    Args:
        path: A `.jsonl` or `.parquet` file, or `hf:OWNER/NAME[/CONFIG][:SPLIT]@COMMIT`.
        task: One of `TASKS`.
        limit: The first so many of them.
        split: Only rows whose column `split` says so; of a data set, its split of that name.
        seed: Where options have no order of their own (GPQA), another seed gives another one.

    Raises:
        InputError: there is no such task, file or split, no question, or a row lacks a column or names no
            right answer. The message names file, row and columns; what rows say is never in it.
    """
    known = find_task(task)
    questions: list[Question] = []
    contents: dict[str, str] = {}
    repeated = lone = 0
    for place, row in read_rows(path, split=split):
        if limit is not None and len(questions) == limit:
            break
        try:
            plain = read_task_row(row, known, seed=seed)
            if len(plain.get("options", "AB")) == 1:
                lone += 1
                continue
            question = Question.from_json(plain)
        except InputError as error:
            raise InputError(f"{path}, {place}: {error}") from None
        content = hash_content(question.text, question.options)
        named = f"{known.name}-{content[:12]}"
        id = str(plain.get("id", named))
        if contents.get(id, content) != content:
            id = named
        if id in contents:
            repeated += 1
            continue
        contents[id] = content
        questions.append(replace(question, id=id))
    _tell(path, "that repeat an earlier one", repeated)
    _tell(path, "with a single option", lone)
    if not questions:
        raise InputError(f"{path} holds no questions of task {known.name}")
    return questions


def is_confidential(question: Question) -> bool:
    """Whether the authors of the question's set ask that it is neither shown nor published.

    Whoever shows or stores questions shows the id of such a one, never its text, options or answers.
    """
    return question.task in TASKS and TASKS[question.task].confidential


def _tell(path: str | Path, which: str, rows: int) -> None:
    if rows:
        logging.getLogger(__name__).warning("%s: rows %s, left out: %d", path, which, rows)
