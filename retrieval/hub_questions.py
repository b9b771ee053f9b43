"""Labelled questions from the Hugging Face hub: `hf:NAME[/CONFIG][:SPLIT]@REVISION`.

Data sets name their columns as they like. The common names are found here, and every row becomes the
plain object that a line of a `.jsonl` file holds.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from .errors import InputError

__all__ = ["IDS", "HubName", "is_hub_name", "normalise_row", "read_hub_rows", "read_raw_hub_rows"]

PREFIX = "hf:"
TEXTS = ("text", "question", "problem", "prompt", "query", "question_text", "input")
CONTEXTS = ("passage", "context")
OPTIONS = ("options", "choices", "endings")
GOLDS = (
    "gold",
    "answerKey",
    "answer_key",
    "correct_answer",
    "answer",
    "label",
    "target",
    "answer_idx",
    "answer_index",
    "cop",
    "answers",
)
IDS = ("id", "question_id", "qid", "uid")
SKILLS = ("skills", "category", "subject", "subject_name", "topic")
NUMBERED = (("option1", "option2"), ("sol1", "sol2"), ("choice1", "choice2"), ("opa", "opb"))
LETTERS = string.ascii_uppercase

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HubName:
    """Which rows of which data set, at which commit."""

    name: str
    """`owner/name`; a few old data sets have no owner."""
    revision: str
    """Commit: 40 hexadecimal digits, so that the questions can never change unnoticed."""
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read `hf:owner/name[/config][:split]@revision`.

        Raises:
            InputError: the name is malformed, or its revision is missing or no commit.
        """
        place, at, revision = text.removeprefix(PREFIX).strip().partition("@")
        place, colon, split = place.partition(":")
        parts = place.split("/")
        words = [*parts, *([split] if colon else [])]
        is_plain = all(
            re.fullmatch(r"\w[\w.-]*", word) for word in words
        )  # no `..`, no hidden file
        if len(parts) > 3 or not is_plain:
            raise InputError(
                f"{text!r} names no data set; write hf:OWNER/NAME[/CONFIG][:SPLIT]@COMMIT"
            )
        name = "/".join(parts[:2])
        if not re.fullmatch("[0-9a-f]{40}", revision):
            what = f"the revision {revision!r} is no commit" if at else "it has no revision"
            raise InputError(
                f"{text!r} is not pinned: {what}; append @ and the 40 hexadecimal digits of a commit "
                f"from https://huggingface.co/datasets/{name}/commits/main"
            )
        return cls(name, revision, parts[2] if len(parts) == 3 else None, split or None)


def is_hub_name(text: object) -> bool:
    """Whether this names a data set of the hub instead of a file."""
    return str(text).startswith(PREFIX)


def read_hub_rows(text: str, *, split: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row's place, for messages, and what `Question.from_json` reads of it.

    A row without an id gets the data set's name, its split and its number. `split` says which split
    where the name does not.

    Raises:
        InputError: as `HubName.parse` and `normalise_row`; the library `datasets` is missing; the data
            set cannot be fetched, or has several splits and none is named; the name and `split` differ.
    """
    wanted = _with_split(text, split)
    rows, held = _load(wanted)
    stem = f"{wanted.name.rpartition('/')[2]}-{held}"
    labels = _label_names(rows)
    for number, row in enumerate(rows):
        place = f"row {number}"
        try:
            normal = normalise_row(cast("Row", row), labels)
        except InputError as error:
            raise InputError(f"{text}, {place}: {error}") from None
        normal.setdefault("id", f"{stem}-{number}")
        yield place, normal


def read_raw_hub_rows(text: str, *, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """As `read_hub_rows`, but each row under the data set's own column names.

    Raises:
        InputError: as `read_hub_rows`, but for what a row holds.
    """
    rows, _ = _load(_with_split(text, split))
    for number, row in enumerate(rows):
        yield f"row {number}", cast("Row", row)


def normalise_row(row: Row, labels: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """A row under the names that `Question.from_json` knows: text, options, gold, id and skills.

    Options may be a list, a mapping from letters to texts, `{"text": …, "label": …}`, or columns of
    their own (`A` … `D`, `option1` …, `opa` …). A gold answer may be a letter, an option's own label, an
    option's text, or a whole number, which counts options from 0. Without options it is a text, a number,
    a truth value, or a list of texts of which any is right; of a text with `####` (GSM8K) what follows it.

    Args:
        row: One row of a data set.
        labels: Names of the values of columns that hold class numbers.

    Raises:
        InputError: no column is known to hold a question or an answer, or the answer is no option.
    """
    _, text = _find(row, TEXTS)
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"no question in the columns {_list(row)}; one of {_list(TEXTS)} is needed"
        )
    _, context = _find(row, CONTEXTS)
    options, marks = _read_options(row)
    name, gold = _find(row, GOLDS)
    if gold is None:
        raise InputError(f"no answer in the columns {_list(row)}; one of {_list(GOLDS)} is needed")
    if (
        not options
        and isinstance(gold, int)
        and not isinstance(gold, bool)
        and name in (labels or {})
    ):
        options = list((labels or {})[name])
    normal: dict[str, Any] = {
        "text": f"{context.strip()}\n\n{text}" if isinstance(context, str) and context else text,
        "gold": _choose(gold, options, marks) if options else _write(gold),
    }
    if options:
        normal["options"] = options
    _, found = _find(row, IDS)
    if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
        normal["id"] = str(found)
    _, skills = _find(row, SKILLS)
    if skills:
        normal["skills"] = skills
    return normal


def _with_split(text: str, split: str | None) -> HubName:
    wanted = HubName.parse(text)
    if split is None or split == wanted.split:
        return wanted
    if wanted.split is not None:
        raise InputError(f'{text} names the split {wanted.split}, but "{split}" was asked for')
    return replace(wanted, split=split)


def _load(wanted: HubName) -> tuple[Any, str]:
    """The rows and the name of their split. Code that a data set may bring is never run."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise InputError(
            f"reading hf:{wanted.name} needs the library datasets: pip install 'expertmix[eval]', or "
            "give a .jsonl or .parquet file"
        ) from None
    import httpx

    place = f"hf:{wanted.name} at revision {wanted.revision[:12]}"
    if Path(wanted.name).exists():  # the library would read it, whatever the revision
        raise InputError(
            f"{place} cannot be read while a folder {wanted.name} lies here; run from another folder"
        )
    try:
        found: Any = datasets.load_dataset(
            wanted.name, wanted.config, split=wanted.split, revision=wanted.revision
        )
    except (ConnectionError, httpx.TransportError) as error:
        raise InputError(
            f"{place} is not in the local cache and the hub cannot be reached ({_first_line(error)}); go "
            "online (and unset HF_HUB_OFFLINE) once, or give a .jsonl or .parquet file"
        ) from None
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        raise InputError(f"{place} cannot be read: {_first_line(error)}") from None
    if wanted.split is not None:
        return found, wanted.split
    splits = sorted(found)
    if len(splits) != 1:
        raise InputError(
            f"{place} has the splits {_list(splits)}; name one: hf:{wanted.name}"
            f"{f'/{wanted.config}' if wanted.config else ''}:{splits[0]}@{wanted.revision}"
        )
    return found[splits[0]], splits[0]


def _label_names(rows: Any) -> dict[str, list[str]]:
    """The names that a data set gives to the numbers of its class columns."""
    features: Mapping[str, Any] = getattr(rows, "features", None) or {}
    return {
        column: list(feature.names)
        for column, feature in features.items()
        if hasattr(feature, "names") and isinstance(feature.names, list)
    }


def _find(row: Row, names: Sequence[str]) -> tuple[str, Any]:
    """The first of these columns that the row has, whatever the case, with something in it."""
    columns = {column.casefold(): column for column in row}
    for name in names:
        column = columns.get(name.casefold())
        if column is not None and row[column] is not None and row[column] != "":
            return column, row[column]
    return "", None


def _read_options(row: Row) -> tuple[list[str], list[str]]:
    """The options, and the marks (letters, numbers) under which the data set itself speaks of them."""
    _, found = _find(row, OPTIONS)
    if isinstance(found, Mapping):
        table = cast("Mapping[str, Any]", found)
        if isinstance(table.get("text"), list):
            texts = [str(text) for text in table["text"]]
            return texts, [str(mark) for mark in table.get("label") or LETTERS[: len(texts)]]
        marks = sorted(mark for mark, text in table.items() if text is not None)
        return [str(table[mark]) for mark in marks], marks
    if isinstance(found, list | tuple):
        texts = [str(text) for text in cast("Sequence[object]", found)]
        return texts, list(LETTERS[: len(texts)])
    for first, second in (("A", "B"), *NUMBERED):
        if first in row and second in row:
            return _read_columns(row, first)
    return [], []


def _read_columns(row: Row, first: str) -> tuple[list[str], list[str]]:
    """Options in columns of their own: those that follow `first` letter by letter or digit by digit."""
    stem, mark = first[:-1], first[-1]
    marks = [chr(ord(mark) + at) for at in range(9)]
    held = [m for m in marks if row.get(f"{stem}{m}") not in (None, "")]
    return [str(row[f"{stem}{m}"]) for m in held], held


def _choose(gold: object, options: Sequence[str], marks: Sequence[str]) -> str:
    """The letter of the right option."""
    if isinstance(gold, list) and len(cast("list[object]", gold)) == 1:
        gold = cast("list[object]", gold)[0]
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    place = -1
    if isinstance(gold, int) and not isinstance(gold, bool):
        place = gold
    elif isinstance(gold, str):
        said = gold.strip()
        bare = said.strip("()[]. ")
        if bare in marks:
            place = marks.index(bare)
        elif options.count(said) == 1:
            place = options.index(said)
        elif len(bare) == 1 and bare.upper() in LETTERS:
            place = LETTERS.index(bare.upper())
    if not 0 <= place < len(options):
        raise InputError(
            f"the answer {gold!r} is none of its {len(options)} options; is this split labelled?"
        )
    return LETTERS[place] if place < len(LETTERS) else options[place]


def _write(gold: object) -> str:
    """The gold of an open question; several that are right are joined by ` || `."""
    if isinstance(gold, bool):
        return "yes || true" if gold else "no || false"
    if isinstance(gold, Mapping):
        table = cast("Mapping[str, Any]", gold)
        said = [table.get(key) for key in ("value", "text", "aliases")]
        gold = [item for part in said for item in (part if isinstance(part, list) else [part])]
    if isinstance(gold, list | tuple):
        items = [
            item for item in cast("Sequence[object]", gold) if isinstance(item, str | int | float)
        ]
        texts = dict.fromkeys(text for text in map(_write, items) if text)
        if not texts:
            raise InputError("its list of answers is empty; is this split labelled?")
        return " || ".join(texts)
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    return str(gold).rpartition("####")[2].strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _list(names: Sequence[str] | Row) -> str:
    return ", ".join(names) or "none"
