"""Rows of benchmark sets, official or laid out our way, as the plain objects that a `Question` is read from.

What a row says is never part of a message: the rows of some sets must not be shown.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, cast

from .errors import InputError
from .hub_questions import IDS
from .tasks import Layout, Task

__all__ = ["hash_content", "read_task_row"]

LETTERS = string.ascii_uppercase
OUR_COLUMNS = "question, options and gold (or gold_index)"
GOLD_CHARS = 30  # a longer answer is a solution whose `####` is missing

Row = Mapping[str, Any]


def read_task_row(row: Row, task: Task, *, seed: int = 0) -> dict[str, Any]:
    """The row as `Question.from_json` reads it: text, options, gold (a letter or a number), skills, task, id.

    A row with a column `gold` or `gold_index` (which counts from 0) is laid out our way, any other as the
    official files of the task. Outer blanks are cut off. Options without an order of their own are put
    into one that depends on the seed and on their question alone.

    Raises:
        InputError: a column is missing, or the answer is none of the options or no number.
    """
    columns = {name.casefold(): value for name, value in row.items() if value is not None}
    is_ours = "gold" in columns or "gold_index" in columns
    layout = Layout(text=("question", "text"), options=("options",)) if is_ours else task.layout
    names = [name for name in layout.text if name in columns]
    if not names or not isinstance(columns[names[0]], str) or not columns[names[0]].strip():
        raise _missing(row, task)
    plain: dict[str, Any] = {"text": columns[names[0]].strip(), "task": task.name}
    if task.kind == "choice":
        options, labels = _read_options(columns, layout, row, task)
        place = 0
        if is_ours:
            place = _place_of_ours(columns, options)
        elif layout.gold:
            place = _place_of(_first(columns, layout.gold, row, task), labels, len(options))
        else:
            options, place = _shuffle(plain["text"], options, seed)
        plain["options"], place = _without_filler(options, place, task.layout.filler)
        plain["gold"] = LETTERS[place]
    else:
        gold = columns.get("gold") if is_ours else _first(columns, layout.gold, row, task)
        plain["gold"] = _read_number(gold)
    plain["skills"] = _read_skills(columns, task.layout, is_ours)
    given = next((columns[name] for name in IDS if columns.get(name) not in (None, "")), None)
    if isinstance(given, str | int) and not isinstance(given, bool):
        plain["id"] = str(given)
    return plain


def hash_content(text: str, options: Sequence[str]) -> str:
    """A sha256 of a question's text and its options, whatever their order."""
    return hashlib.sha256(json.dumps([text, *sorted(options)]).encode()).hexdigest()


def _read_options(
    columns: Row, layout: Layout, row: Row, task: Task
) -> tuple[list[str], list[str]]:
    """The options, and the labels that the set itself gives them, if it does."""
    found: list[object] = [columns.get(name.casefold()) for name in layout.options]
    labels: list[str] = []
    if len(found) == 1:
        whole = found[0]
        if isinstance(whole, Mapping):
            table = cast("Mapping[str, Any]", whole)
            labels = [str(label).strip() for label in table.get("label") or ()]
            whole = table.get("text")
        if not isinstance(whole, list | tuple):
            raise _missing(row, task)
        found = list(cast("Sequence[object]", whole))
    # An option may be a number (JSON), never another thing.
    options = [str(item).strip() for item in found if isinstance(item, str | int | float)]
    if not options or len(options) != len(found):
        raise _missing(row, task)
    if len(options) > len(LETTERS):
        raise InputError(f"it has {len(options)} options; at most {len(LETTERS)} are possible")
    return options, labels


def _place_of(gold: object, labels: Sequence[str], options: int) -> int:
    """The place of the option that the official answer names: by its label or letter, or counting from 0."""
    marks = labels or LETTERS[:options]
    said = str(gold).strip()
    if said in marks:
        return marks.index(said)
    if len(said) == 1 and said.upper() in marks:
        return marks.index(said.upper())
    # A number among labels that are letters could count from 0 or from 1: it is not guessed.
    if not labels and not isinstance(gold, bool) and re.fullmatch(r"\d{1,2}(?:\.0)?", said):
        place = int(float(said))
        if place < options:
            return place
    known = f"{marks[0]}–{marks[-1]}" + ("" if labels else f" and no place 0–{options - 1}")
    told = f" {gold}" if isinstance(gold, int) else ""
    raise InputError(
        f"its answer{told} is none of its {options} options ({known}); is this split labelled, and does "
        "it count from 0?"
    )


def _place_of_ours(columns: Row, options: Sequence[str]) -> int:
    gold, index = columns.get("gold"), columns.get("gold_index")
    said = str(gold).strip() if isinstance(gold, str | int | float) else ""
    letters = LETTERS[: len(options)]
    at = -1
    if len(said) == 1 and said.upper() in letters:
        at = letters.index(said.upper())
    elif said in options:
        at = options.index(said)
    elif gold is None and isinstance(index, int | float) and index in range(len(options)):
        at = int(index)
    if at < 0 or (isinstance(index, int | float) and index != at):
        raise InputError(
            f"its gold is no letter A–{letters[-1]} and none of its options, or its gold_index, which "
            "counts from 0, is another option"
        )
    return at


def _shuffle(text: str, options: Sequence[str], seed: int) -> tuple[list[str], int]:
    """The options in an order of their own, and where the first of them went."""
    # By a hash, not by a generator: the same in every version of Python.
    key = f"{seed} {hash_content(text, options)} "

    def draw(place: int) -> bytes:
        return hashlib.sha256(json.dumps(key + options[place]).encode()).digest()

    order = sorted(range(len(options)), key=draw)
    return [options[place] for place in order], order.index(0)


def _without_filler(options: Sequence[str], place: int, filler: str) -> tuple[list[str], int]:
    kept = [at for at, option in enumerate(options) if not filler or option != filler]
    if place not in kept:
        raise InputError(f"its answer is {filler}, which is no option")
    return [options[at] for at in kept], kept.index(place)


def _read_number(gold: object) -> str:
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)
    if isinstance(gold, str | int | float) and not isinstance(gold, bool):
        text = str(gold).rpartition("####")[2].strip()
        text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
        if len(text) <= GOLD_CHARS and re.match(r"[-+$]?\.?\d", text):
            return text
    raise InputError("its answer is no number, and does not end in `#### N` either")


def _read_skills(columns: Row, layout: Layout, is_ours: bool) -> list[str]:
    listed: object = columns.get("skills") if is_ours else None
    if isinstance(listed, list | tuple):
        return [str(item) for item in cast("Sequence[object]", listed)]
    names = ("skills", "category", *layout.skills) if is_ours else layout.skills
    found = (columns.get(name.casefold()) for name in names)
    return list(dict.fromkeys(text for text in found if isinstance(text, str) and text.strip()))


def _first(columns: Row, names: Sequence[str], row: Row, task: Task) -> object:
    for name in names:
        found = columns.get(name.casefold())
        if found is not None and found != "":
            return found
    raise _missing(row, task)


def _missing(row: Row, task: Task) -> InputError:
    layout = task.layout
    needed = [" or ".join(layout.text), *layout.options]
    needed += [" or ".join(layout.gold)] if layout.gold else []
    return InputError(
        f"task {task.name} needs the columns {', '.join(needed)} with something in them, or ours: "
        f"{OUR_COLUMNS}; this row has {', '.join(map(str, row)) or 'none'}"
    )
