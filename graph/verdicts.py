"""A comparison in sentences: which differences are real, which are not, and where mixing does not help."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .matching import Pair
from .significance import SAME

__all__ = ["count", "tell_findings"]

FEW = 400
"""Questions below which it is said how small a difference can be seen."""
MOST = 4
"""Names of a list before it is cut short. Those that beat ours are always named."""


Row = Mapping[str, Any]


def tell_findings(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    *,
    skipped: Mapping[str, str],
    remarks: Sequence[str] = (),
) -> list[str]:
    """Sentences about a comparison, the most important first.

    Args:
        rows: As `Comparison.rows`.
        pairs: Ours against others at matched compute.
        skipped: Methods that were not run, and why.
        remarks: Further sentences, for the end.
    """
    methods = [row for row in rows if not row["is_bound"]]
    if not methods:
        return [*_tell_skipped(skipped), *remarks]
    return [
        *_tell_mixing(methods),
        *_tell_ours(pairs),
        *_tell_bounds(methods, rows),
        *_tell_costs(methods),
        *_tell_power(methods[0]["n"]),
        *_tell_failures(methods),
        *_tell_skipped(skipped),
        *remarks,
    ]


def _tell_mixing(methods: Sequence[Row]) -> list[str]:
    """Whether anything beats the strongest expert alone."""
    yard = next((row for row in methods if row["method"] == "single_best"), None)
    if yard is None:
        return []
    others = [row for row in methods if row["delta"] is not None]
    # A router asks one expert, and a panel of one mixes nothing.
    mixing = [row for row in others if row["calls"] > 1]
    sentences = [f"The strongest expert alone is right on {_rate(yard)}."]
    if mixing:
        sentences[0] += f" {_tell_best(mixing)}"
    routed = [row["label"] for row in others if row["calls"] <= 1 and row["verdict"] == "better"]
    if routed:
        sentences.append(f"Significantly better with a single call: {_list(routed)}.")
    worse = [row["label"] for row in others if row["verdict"] == "worse"]
    if worse:
        sentences.append(f"Significantly worse than the strongest expert alone: {_list(worse)}.")
    return sentences


def _tell_best(mixing: Sequence[Row]) -> str:
    """The best of those who make several calls, and whether it is better than one call."""
    number = len(mixing)
    better = [row for row in mixing if row["verdict"] == "better"]
    best = max(better or mixing, key=lambda row: row["delta"]["mean"])
    told = f"{best['label']}, right on {_rate(best)}, {_gain(best['delta'])} points"
    if better:
        if number == 1:
            return f"Mixing helps: {told}."
        are = "is" if len(better) == 1 else "are"
        return (
            f"Of {number} ways to make several calls, {len(better)} {are} significantly better; the best: "
            f"{told}."
        )
    if best["delta"]["mean"] <= 0:
        who = best["label"] if number == 1 else f"none of {number} ways to make several calls"
        return (
            f"Mixing does not help here: {who} is {'not ' if number == 1 else ''}right more often."
        )
    of = "" if number == 1 else f" of {number} ways to make several calls, the best is"
    return f"Mixing does not help significantly here:{of} {told}."


def _tell_ours(pairs: Sequence[Pair]) -> list[str]:
    """Each of ours against the others at matched compute."""
    families: dict[tuple[str, str, float], list[Pair]] = {}
    for pair in pairs:
        families.setdefault((pair.by, pair.ours, pair.at), []).append(pair)
    sentences: list[str] = []
    told: set[tuple[str, frozenset[str]]] = set()
    level: dict[str, list[str]] = {}
    for (by, ours, at), family in families.items():
        rivals = ours, frozenset(pair.other for pair in family)
        if by == "tokens" and rivals in told:  # at equal calls it said the same
            continue
        told.add(rivals)
        most = f"With at most {count(at, 'call')} per question"
        if len(family) > 1 and all(pair.difference.verdict == SAME for pair in family):
            what = most if by == "calls" else "At about equal tokens"
            level.setdefault(what, []).append(ours)
            continue
        what = most if by == "calls" else f"At about {count(at, 'generated token')} per question"
        sentences.append(f"{what}, {ours} {'; it '.join(_tell_family(family))}.")
    return [
        *sentences,
        *(
            f"{what}, {_list(names)} {'does' if len(names) == 1 else 'do'} not differ significantly from any "
            "other method."
            for what, names in level.items()
        ),
    ]


def _tell_family(family: Sequence[Pair]) -> list[str]:
    """What ours is to the others: better, worse, level."""
    by_verdict: dict[str, list[Pair]] = {}
    for pair in sorted(family, key=lambda pair: -abs(pair.difference.mean)):
        by_verdict.setdefault(pair.difference.verdict, []).append(pair)
    parts: list[str] = []
    if better := by_verdict.get("better"):
        parts.append(f"is significantly better than {_list(map(_name, better), most=MOST)}")
    if worse := by_verdict.get("worse"):
        parts.append(f"is significantly worse than {_list(map(_name, worse))}")
    level = by_verdict.get(SAME, [])
    if len(level) > MOST:
        parts.append(f"does not differ significantly from the other {len(level)}")
    elif level:
        parts.append(f"does not differ significantly from {_list(p.other for p in level)}")
    return parts


def _tell_bounds(methods: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    best = max(methods, key=lambda row: (row["accuracy"], -row["calls_mean"]))
    bounds = {row["method"]: row for row in rows if row["is_bound"]}
    told = f"The highest accuracy is that of {best['label']}: {_rate(best)}"
    parts = [f"blind guessing would be right on {_percent(bounds['chance']['accuracy'])}"]
    if "oracle" in bounds:
        share = _percent(bounds["oracle"]["accuracy"])
        parts.append(f"whoever picked a right expert wherever there is one, on {share}")
    return [f"{told}; {', '.join(parts)}."]


def _tell_costs(methods: Sequence[Row]) -> list[str]:
    ours = next((row for row in methods if row["method"] == "panel"), None)
    dearest = max(methods, key=lambda row: row["tokens_mean"])
    if ours is None or ours["tokens_mean"] <= 0:
        return []
    times = dearest["tokens_mean"] / ours["tokens_mean"]
    if times < 1.1:
        return []
    return [
        f"{ours['label']} generates {count(ours['tokens_mean'], 'token')} per question, "
        f"{dearest['label']} {times:.1f} times as many."
    ]


def _tell_power(number: int) -> list[str]:
    """How large a difference must be to be seen with so few questions."""
    if number >= FEW:
        return []
    # Two methods that differ on a third of the questions, seen four times of five at the 5 % level.
    points = 100 * (1.96 + 0.84) * math.sqrt(1 / 3 / number)
    told = f"With {count(number, 'question')}"
    if points > 50:
        return [f"{told}, hardly any difference can be told from chance."]
    return [
        f"{told}, only differences of about {points:.0f} points or more are likely to be found: without a "
        "significant difference, methods need not be equal."
    ]


def _tell_failures(methods: Sequence[Row]) -> list[str]:
    """Answers that are missing because an expert failed: they count against the method."""
    failed = [row for row in methods if row["failed"] > 0]
    if not failed:
        return []
    worst = max(failed, key=lambda row: row["failed"])
    more = ", others on some" if len(failed) > 1 else ""
    return [
        f"Experts failed: {worst['label']} lacks answers on {_percent(worst['failed'])} of its questions{more}. "
        "Another run asks again, unless the prompt was too long."
    ]


def _tell_skipped(skipped: Mapping[str, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, why in skipped.items():
        by_reason.setdefault(why, []).append(name)
    return [
        f"Not run: {_list(names)}; {'it' if len(names) == 1 else 'each'} {why}."
        for why, names in by_reason.items()
    ]


def count(number: float, noun: str) -> str:
    """`1 question`, `1,200 questions`; a number that is not whole is rounded."""
    shown = f"{number:,.0f}"
    return f"{shown} {noun}" if shown == "1" else f"{shown} {noun}s"


def _name(pair: Pair) -> str:
    told = f"{pair.other} ({pair.difference.mean * 100:+.1f} points"
    if pair.is_dearer:
        told += f", at {pair.tokens_ratio:.1f} times the tokens"
    return f"{told})"


def _rate(row: Row) -> str:
    low, high = _percent(row["low"]), _percent(row["high"])
    return f"{_percent(row['accuracy'])} of {count(row['n'], 'question')} [{low}, {high}]"


def _gain(delta: Mapping[str, float]) -> str:
    mean, low, high = (100 * delta[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _list(names: Iterable[str], *, most: int | None = None) -> str:
    """`a, b and c`; beyond `most`, the others are counted."""
    shown = list(names)
    if most is not None and len(shown) > most + 1:
        shown = [*shown[:most], f"{len(shown) - most} others"]
    *first, last = shown
    return f"{', '.join(first)} and {last}" if first else last
