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

    @property
    def letters(self) -> str:
        """The letters of the options, `"ABCD"` for four of them."""
        return LETTERS[: len(self.options)]

    def to_json(self) -> dict[str, Any]:
        """The question as the plain JSON object that `from_json` reads."""
        return {
            "id": self.id,
            "text": self.text,
            "options": list(self.options),
            "gold": self.gold,
            "kind": self.kind,
            "skills": list(self.skills),
        }

    @classmethod
    def restore(cls, row: Mapping[str, Any]) -> Question:
        """Read what `to_json` wrote, without checking again what was checked before."""
        return cls(
            id=row["id"],
            text=row["text"],
            options=tuple(row["options"]),
            gold=row["gold"],
            kind=row["kind"],
            skills=tuple(row["skills"]),
        )

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, default_id: str = "q") -> Question:
        """Read one row. `question` is accepted for `text`; `kind` follows from the rest if absent.

        Raises:
            InputError: the row has no text, or options and gold that do not fit together.
        """
        text = row.get("text", row.get("question"))
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'it has no "text" (its keys: {", ".join(map(str, row)) or "none"})')
        options = _read_options(row.get("options"))
        gold = _read_gold(row, options)
        return cls(
            id=_read_id(row.get("id"), default_id),
            text=text,
            options=options,
            gold=gold,
            kind=_read_kind(row.get("kind"), options, gold),
            skills=_read_skills(row),
        )


def read_questions(path: str | Path, *, limit: int | None = None) -> list[Question]:
    """Read questions from a `.jsonl` or `.parquet` file, in the file's order.

    A row without an id gets its number (`q1`, `q2`, …). Instead of a file, `path` may name a data set of
    the Hugging Face hub, pinned to a commit: `hf:OWNER/NAME[/CONFIG][:SPLIT]@COMMIT`, see `HubName`.

    Raises:
        InputError: the file is missing or empty, or a row is unusable; the message names the row. For a
            data set also as `read_hub_rows`.
    """
    rows = read_hub_rows(str(path)) if is_hub_name(path) else _file_rows(Path(path))
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


def _file_rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise InputError(f"no question file at {path}: give a .jsonl or .parquet file")
    return _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a JSON object is expected, got {line[:40]!r}")
        yield f"line {number}", cast("dict[str, Any]", row)


def _parquet_rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            f"reading {path} needs pyarrow: pip install pyarrow, or give a .jsonl file"
        ) from None
    try:
        rows = cast("list[dict[str, Any]]", pq.read_table(path).to_pylist())
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a parquet file ({error})") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


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


def _read_kind(value: object, options: tuple[str, ...], gold: str | None) -> AnswerKind:
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
