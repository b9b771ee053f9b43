"""What the list of questions can be filtered by, in words and with numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .wording import keep_start

__all__ = ["MARKS", "Choice", "Names", "compare_marks", "tell_disputes", "tell_results"]

MARKS = {"r": "right", "w": "wrong", "a": "abstained", "n": "no answer", "u": "not graded"}
"""What became of a question, by the letter that stands for it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Something to filter by: what the script reads, and what people do."""

    value: str
    text: str


class Names:
    """Numbers names in the order in which they come, and counts them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """Each once; its place is its number."""
        return list(self._places)

    def places(self, names: Mapping[str, Any] | Sequence[str]) -> list[int]:
        """The numbers of some names."""
        self._counts.update(list(names))
        return [self._places.setdefault(name, len(self._places)) for name in names]

    def choices(self) -> list[Choice]:
        """All names in the order of the alphabet, with how often each came."""
        ordered = sorted(self._places, key=lambda name: (name.casefold(), name))
        return [
            Choice(str(self._places[name]), f"{keep_start(name, 60)} ({self._counts[name]:,})")
            for name in ordered
        ]


def tell_results(marks: str) -> list[Choice]:
    """What became of questions, as far as it occurs."""
    counts = Counter(marks)
    return [Choice(m, f"{text} ({counts[m]:,})") for m, text in MARKS.items() if counts[m]]


def compare_marks(
    marks: str, beside: Sequence[str], labels: Sequence[str], main: str
) -> tuple[list[Choice], list[Choice]]:
    """Where others are right and the main method is not, and the other way round; none that is empty.

    Args:
        marks: A letter per question, see `MARKS`.
        beside: For each other method a `1` per question that it has right, `0` for wrong, `-` for neither.
        labels: Of the other methods.
        main: Label of the main one.
    """
    gained: list[Choice] = []
    lost: list[Choice] = []
    for at, (label, theirs) in enumerate(zip(labels, beside, strict=True)):
        pairs = Counter(zip(marks, theirs, strict=True))
        better = sum(pairs[mark, "1"] for mark in "wan")
        if better:
            gained.append(Choice(f"+{at}", f"{label} right, {main} not ({better:,})"))
        if pairs["r", "0"]:
            lost.append(Choice(f"-{at}", f"{main} right, {label} not ({pairs['r', '0']:,})"))
    return gained, lost


def tell_disputes(disputed: str) -> list[Choice]:
    """Disputed or not, from a `1` or `0` per question; nothing to choose where none is."""
    number = disputed.count("1")
    if not number:
        return []
    agreed = len(disputed) - number
    return [Choice("1", f"disputed ({number:,})"), Choice("0", f"no dissent ({agreed:,})")]
