"""A comparison in sentences: which differences are real, which are not, and where mixing does not help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .matching import Pair
from .significance import LEVEL

__all__ = ["tell_findings"]

FEW = 400
"""Questions below which it is said how small a difference can be seen."""


def tell_findings(
    rows: Sequence[Mapping[str, Any]],
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
        *_tell_ours(pairs, "calls"),
        *_tell_ours(pairs, "tokens"),
        *_tell_bounds(methods, rows),
        *_tell_costs(methods),
        *_tell_power(methods[0]["n"]),
        *_tell_failures(methods),
        *_tell_skipped(skipped),
        *remarks,
    ]


def _tell_mixing(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether anything beats the strongest expert alone."""
    yard = next((row for row in methods if row["method"] == "single_best"), None)
    if yard is None:
        return []
    told = f"The strongest expert alone is right on {_rate(yard)}."
    # A router asks one expert, and a panel of one mixes nothing.
    mixing = [row for row in methods if row["calls"] > 1 and row["delta"] is not None]
    better = [row for row in mixing if row["p_holm"] < LEVEL and row["delta"]["mean"] > 0]
    worse = [row for row in mixing if row["p_holm"] < LEVEL and row["delta"]["mean"] < 0]
    if not mixing:
        return [told]
    if not better:
        lead = (
            "Mixing does not help here" if not worse else "Mixing does not help here, and may hurt"
        )
        found = (
            f"{lead}: of {len(mixing)} ways to make several calls, none is significantly better."
        )
    else:
        best = max(better, key=lambda row: row["accuracy"])
        found = (
            f"Of {len(mixing)} ways to make several calls, {len(better)} "
            f"{'is' if len(better) == 1 else 'are'} significantly better; the best of them is "
            f"{best['label']}, right on {_rate(best)}, {_gain(best['delta'])} points."
        )
    sentences = [f"{told} {found}"]
    if worse:
        names = _list(row["label"] for row in worse)
        sentences.append(f"Significantly worse than the strongest expert alone: {names}.")
    return sentences


def _tell_ours(pairs: Sequence[Pair], by: str) -> list[str]:
    """Each of ours against the others at matched compute."""
    sentences: list[str] = []
    families = dict.fromkeys((pair.ours, pair.at) for pair in pairs if pair.by == by)
    for ours, at in families:
        family = [p for p in pairs if p.by == by and (p.ours, p.at) == (ours, at)]
        what = f"With at most {at:g} calls" if by == "calls" else f"At {at:.0f} generated tokens"
        parts: list[str] = []
        for verdict, words in (
            ("better", "is significantly better than"),
            ("worse", "is significantly worse than"),
        ):
            named = [_name(p) for p in family if p.difference.verdict == verdict]
            if named:
                parts.append(f"{words} {_list(named)}")
        level = [p.other for p in family if p.difference.verdict == "no significant difference"]
        if len(level) == len(family) > 1:
            parts.append(f"does not differ significantly from any of the {len(level)} others")
        elif level:
            parts.append(f"does not differ significantly from {_list(level)}")
        sentences.append(f"{what} per question, {ours} {'; it '.join(parts)}.")
    return sentences


def _tell_bounds(
    methods: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    best = max(methods, key=lambda row: (row["accuracy"], -row["calls_mean"]))
    bounds = {row["method"]: row for row in rows if row["is_bound"]}
    told = f"The highest accuracy is that of {best['label']}: {_rate(best)}"
    parts = [f"blind guessing would be right on {_percent(bounds['chance']['accuracy'])}"]
    if "oracle" in bounds:
        share = _percent(bounds["oracle"]["accuracy"])
        parts.append(f"whoever always picked a right expert where there is one on {share}")
    return [f"{told}; {', '.join(parts)}."]


def _tell_costs(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    ours = next((row for row in methods if row["method"] == "panel"), None)
    dearest = max(methods, key=lambda row: row["tokens_mean"])
    if ours is None or ours["tokens_mean"] <= 0 or dearest["method"] == "panel":
        return []
    times = dearest["tokens_mean"] / ours["tokens_mean"]
    return [
        f"{ours['label']} generates {ours['tokens_mean']:.0f} tokens per question, "
        f"{dearest['label']} {times:.1f} times as many."
    ]


def _tell_power(number: int) -> list[str]:
    """How large a difference must be to be seen with so few questions."""
    if number >= FEW:
        return []
    # Two methods that differ on a third of the questions, seen four times of five at the 5 % level.
    points = 100 * (1.96 + 0.84) * math.sqrt(1 / 3 / number)
    return [
        f"With {number} questions, differences below about {points:.0f} points are mostly not seen: "
        "no significant difference does not mean equal."
    ]


def _tell_failures(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Answers that are missing because an expert failed: they count against the method."""
    failed = [row for row in methods if row["failed"] > 0]
    if not failed:
        return []
    worst = max(failed, key=lambda row: row["failed"])
    return [
        f"Experts failed in {len(failed)} of {len(methods)} methods, most in {worst['label']}: on "
        f"{_percent(worst['failed'])} of its questions an answer is missing. The same command asks again."
    ]


def _tell_skipped(skipped: Mapping[str, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, why in skipped.items():
        by_reason.setdefault(why, []).append(name)
    return [f"Not run: {_list(names)} ({why})." for why, names in by_reason.items()]


def _name(pair: Pair) -> str:
    told = f"{pair.other} ({pair.difference.mean * 100:+.1f}"
    if pair.is_dearer:
        told += f", at {pair.tokens_ratio:.1f} times the tokens"
    return f"{told})"


def _rate(row: Mapping[str, Any]) -> str:
    low, high = _percent(row["low"]), _percent(row["high"])
    return f"{_percent(row['accuracy'])} of {row['n']} questions [{low}, {high}]"


def _gain(delta: Mapping[str, float]) -> str:
    mean, low, high = (100 * delta[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _list(names: Any) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
