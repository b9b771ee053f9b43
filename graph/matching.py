"""Ours against every other method where both may spend the same: calls, or generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .methods import OURS
from .significance import Difference, compare_pairs

if TYPE_CHECKING:
    from .comparison import Entry

__all__ = ["SLACK", "Pair", "match_by"]

SLACK = 1.05
"""How much more tokens than ours another method may use and still count as equal."""

Unit = Literal["calls", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One of ours against another method; the difference is ours minus the other's."""

    by: Unit
    at: float
    """Calls per question allowed to both, or tokens per question that ours generates."""
    ours: str
    other: str
    calls_ratio: float
    """What the other method uses of ours."""
    tokens_ratio: float
    is_dearer: bool
    """Whether even the other method's smallest form goes past what is matched."""
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        """The pair as plain JSON values."""
        return {
            "by": self.by,
            "at": round(self.at, 3),
            "method": self.ours,
            "against": self.other,
            "calls_ratio": round(self.calls_ratio, 3),
            "tokens_ratio": round(self.tokens_ratio, 3),
            "is_dearer": self.is_dearer,
            **self.difference.to_json(),
        }


def match_by(unit: Unit, entries: Sequence[Entry], budgets: Sequence[int] = ()) -> list[Pair]:
    """Pairs at equal compute; those of one of ours at one size form a family for Holm's correction.

    By calls: at each budget, the largest form of each method within it. By tokens: at each size of ours, the
    other method's form that generates most tokens within `SLACK` times ours; where even its smallest
    generates more, that one, marked as dearer. Ours that generates none (its experts score options instead of
    writing) has nothing to be matched.

    Args:
        unit: What is matched.
        entries: All methods at all sizes.
        budgets: Calls per question, for `calls`.
    """
    ours = [entry for entry in entries if entry.method.name in OURS]
    pairs: list[Pair] = []
    done: set[tuple[str, tuple[str, ...]]] = set()
    for budget in budgets if unit == "calls" else (None,):
        for entry in ours:
            if budget is not None and entry is not _largest(entries, entry.method.name, budget):
                continue
            if budget is None and not entry.spending.tokens:
                continue
            rivals = _find_rivals(entry, entries, budget)
            key = entry.label, tuple(rival.label for rival, _ in rivals)
            if key in done or not rivals:  # a larger budget changed nothing
                continue
            done.add(key)
            found = compare_pairs([(entry.right, rival.right) for rival, _ in rivals])
            for (rival, is_dearer), difference in zip(rivals, found, strict=True):
                mine, theirs = entry.spending, rival.spending
                pairs.append(
                    Pair(
                        by=unit,
                        at=mine.tokens if budget is None else budget,
                        ours=entry.label,
                        other=rival.label,
                        calls_ratio=_divide(theirs.calls, mine.calls),
                        tokens_ratio=_divide(theirs.tokens, mine.tokens),
                        is_dearer=is_dearer,
                        difference=difference,
                    )
                )
    return pairs


def _find_rivals(
    ours: Entry, entries: Sequence[Entry], budget: int | None
) -> list[tuple[Entry, bool]]:
    """The other methods' forms to compare with, and whether each is dearer than ours."""
    rivals: list[tuple[Entry, bool]] = []
    for name in dict.fromkeys(entry.method.name for entry in entries):
        if name in OURS or any(e.is_bound for e in entries if e.method.name == name):
            continue
        if budget is not None:
            rival = _largest(entries, name, budget)
            rivals += [] if rival is None else [(rival, False)]
            continue
        forms = sorted(
            (entry for entry in entries if entry.method.name == name),
            key=lambda entry: (entry.spending.tokens, entry.method.calls),
        )
        within = [e for e in forms if e.spending.tokens <= SLACK * ours.spending.tokens]
        rivals.append((within[-1], False) if within else (forms[0], True))
    return rivals


def _largest(entries: Sequence[Entry], name: str, budget: int) -> Entry | None:
    """The largest form of a method within so many calls."""
    forms = [e for e in entries if e.method.name == name and e.method.calls <= budget]
    return max(forms, key=lambda entry: entry.method.calls, default=None)


def _divide(a: float, b: float) -> float:
    return a / b if b else 0.0
