"""Questions as people write them down: one JSON object a line, a parquet table, or a set on the hub."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from .errors import InputError
from .hub_questions import is_hub_name, read_hub_rows
from .rows import read_file_rows
from .tasks import Task, find_task

__all__ = ["AnswerKind", "Question", "fingerprint", "read_questions"]

AnswerKind = Literal["choice", "number", "text"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, with its gold answer where it is known."""

    id: str
    text: str
    options: tuple[str, ...] = ()
    """The choices, without their letters; empty for open questions."""
    gold: str | None = None
    """A letter for choices; otherwise the expected number or text (alternatives joined by ` || `)."""
    kind: AnswerKind = "text"
    skills: tuple[str, ...] = ()
    """Skills that a person gave it. Extractors never see them; profiles may use them."""
    task: str = ""
    """The benchmark set (`TASKS`) in whose official words it is asked, and by whose rule an answer is
    read; empty for our own."""

    @property
    def letters(self) -> str:
        """The letters of the options, `"ABCD"` for four of them."""
        return LETTERS[: len(self.options)]

    def to_json(self) -> dict[str, Any]:
        """The question as the plain JSON object that `from_json` reads."""
        row: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "options": list(self.options),
            "gold": self.gold,
            "kind": self.kind,
            "skills": list(self.skills),
        }
        # Only where there is one: fingerprints of questions without a task stay what they were.
        return {**row, "task": self.task} if self.task else row

    @classmethod
    def restore(cls, row: Mapping[str, Any]) -> Question:
        """Read what `to_json` wrote, without checking again what was checked before.

        Raises:
            InputError: a later version wrote it, with a task that is not known here.
        """
        return cls(
            id=row["id"],
            text=row["text"],
            options=tuple(row["options"]),
            gold=row["gold"],
            kind=row["kind"],
            skills=tuple(row["skills"]),
            task=find_task(row["task"]).name if row.get("task") else "",
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, default_id: str = "q") -> Question:
        """Read one row. `question` is accepted for `text`, `question_id` for `id`; `kind` follows from
        the rest if absent.

        Raises:
            InputError: the row has no text, options and gold that do not fit together, or a task that
                is not known or asks another kind of question.
        """
        text = row.get("text", row.get("question"))
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'it has no "text" (its keys: {", ".join(map(str, row)) or "none"})')
        options = _read_options(row.get("options"))
        gold = _read_gold(row, options)
        task = find_task(row["task"]) if row.get("task") else None
        return cls(
            id=_read_id(row.get("id", row.get("question_id")), default_id),
            text=text,
            options=options,
            gold=gold,
            kind=_read_kind(row.get("kind"), options, gold, task),
            skills=_read_skills(row),
            task=task.name if task else "",
        )


def read_questions(
    path: str | Path, *, limit: int | None = None, split: str | None = None
) -> list[Question]:
    """Read questions from a `.jsonl` or `.parquet` file, in the file's order.

    A row without an id gets its number (`q1`, `q2`, …). Instead of a file, `path` may name a data set of
    the Hugging Face hub, pinned to a commit: `hf:OWNER/NAME[/CONFIG][:SPLIT]@COMMIT`, see `HubName`.

    Args:
        path: The file, or the name on the hub.
        limit: The first so many of them.
        split: Only rows whose column `split` says so; of a data set, its split of that name.

    Raises:
        InputError: the file is missing or empty, has no such split, or a row is unusable; the message
            names the row. For a data set also as `read_hub_rows`.
    """
    if is_hub_name(path):
        rows = read_hub_rows(str(path), split=split)
    else:
        rows = read_file_rows(Path(path), split=split)
    questions: list[Question] = []
    first_seen: dict[str, str] = {}
    for place, row in rows:
        if limit is not None and len(questions) == limit:
            break
        try:
            question = Question.from_json(row, default_id=f"q{len(questions) + 1}")
        except InputError as error:
            raise InputError(f"{path}, {place}: {error}") from None
        if question.id in first_seen:
            raise InputError(
                f'{path}, {place}: the id "{question.id}" was already used in '
                f"{first_seen[question.id]}; ids must differ"
            )
        first_seen[question.id] = place
        questions.append(question)
    if not questions:
        raise InputError(f"{path} holds no questions: write one JSON object a line")
    return questions


def fingerprint(questions: Iterable[Question]) -> str:
    """A sha256 over the questions' contents, the same in any order."""
    lines = sorted(json.dumps(q.to_json(), sort_keys=True) for q in questions)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_id(value: object, default: str) -> str:
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f'its "id" must be a string or a whole number, got {value!r}')
    return str(value)


def _read_options(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InputError(f'its "options" must be a list of strings, got {value!r}')
    items = cast("list[object]", value)
    if not all(isinstance(item, str) for item in items):
        raise InputError('its "options" must be a list of strings')
    if items and not 2 <= len(items) <= len(LETTERS):
        raise InputError(f"it has {len(items)} options; between 2 and {len(LETTERS)} are possible")
    return tuple(str(item) for item in items)


def _read_gold(row: Mapping[str, Any], options: tuple[str, ...]) -> str | None:
    gold: object = row.get("gold")
    if gold is None:
        return None
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise InputError(f'its "gold" must be a string or a number, got {gold!r}')
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    text = str(gold).strip()
    if not options:
        return text
    if text in options and text.upper() not in LETTERS[: len(options)]:
        return LETTERS[options.index(text)]
    if len(text) == 1 and text.upper() in LETTERS[: len(options)]:
        return text.upper()
    raise InputError(
        f'its "gold" {text!r} is neither a letter {LETTERS[0]}–{LETTERS[len(options) - 1]} '
        "nor one of its options"
    )


def _read_kind(
    value: object, options: tuple[str, ...], gold: str | None, task: Task | None
) -> AnswerKind:
    if task is not None and value not in (None, task.kind):
        raise InputError(f'its "kind" is {value!r}, but task {task.name} asks for a {task.kind}')
    value = task.kind if task is not None else value
    if value is None:
        return "choice" if options else ("number" if gold and _is_number(gold) else "text")
    if value not in ("choice", "number", "text"):
        raise InputError(f'its "kind" must be choice, number or text, got {value!r}')
    if (value == "choice") != bool(options):
        raise InputError(f'its kind is "{value}" but it has {len(options)} options')
    return value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace(",", "")))
    except ValueError:
        return False


def _read_skills(row: Mapping[str, Any]) -> tuple[str, ...]:
    value: object = row.get("skills")
    if value is None:
        value = row.get("category")
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    items = cast("list[object]", value)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in items):
        raise InputError('its "skills" must be a list of strings')
    return tuple(str(item) for item in items)
