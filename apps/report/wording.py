"""Untrusted texts and bare figures, in the words in which a page shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

__all__ = [
    "DASH",
    "choose_digits",
    "clean",
    "count",
    "keep_end",
    "keep_start",
    "read_number",
    "tell_chance",
    "tell_figure",
    "tell_interval",
    "tell_points",
    "tell_share",
]

DASH = "—"
MINUS = "\u2212"

# What commands a terminal, turns the direction of writing, or is no character at all.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def clean(text: object) -> str:
    """A text as it may stand in a page: what cannot be shown, or would turn others, becomes `\ufffd`.

    Line breaks and tabs stay. Escaping for HTML or JSON is up to whoever writes it there.
    """
    return _UNWANTED.sub("\ufffd", str(text).replace("\r\n", "\n").replace("\r", "\n"))


def keep_start(text: object, most: int) -> str:
    """A clean text, or its beginning and `…`."""
    shown = clean(text)
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def keep_end(text: object, most: int) -> tuple[str, int]:
    """A clean text's last `most` characters, and how many it has where that cuts it; else 0."""
    shown = clean(text)
    return (shown, 0) if len(shown) <= most else (shown[-most:], len(shown))


def read_number(value: Any) -> float | None:
    """A finite number, or None for whatever else stands there."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def tell_share(value: Any) -> str:
    """A share of 1 in per cent without the sign: `48.4`."""
    number = read_number(value)
    return DASH if number is None else f"{100 * number:.1f}"


def tell_points(value: Any) -> str:
    """A difference of shares in points, signed: `+3.1`."""
    number = read_number(value)
    if number is None:
        return DASH
    points = round(100 * number, 1)
    return f"{'+' if points > 0 else MINUS if points < 0 else '±'}{abs(points):.1f}"


def tell_interval(low: Any, high: Any, *, signed: bool = False) -> str:
    """Two ends in per cent, `36.6–60.4`; in points `[−1.0, +7.2]`; empty where one is missing."""
    if read_number(low) is None or read_number(high) is None:
        return ""
    if signed:
        return f"[{tell_points(low)}, {tell_points(high)}]"
    return f"{tell_share(low)}–{tell_share(high)}"


def tell_chance(value: Any) -> str:
    """A p value."""
    number = read_number(value)
    if number is None:
        return DASH
    return "< 0.001" if number < 0.001 else f"{number:.3f}" if number < 0.1 else f"{number:.2f}"


def tell_figure(value: Any, digits: int | None = None) -> str:
    """A number with commas between thousands and so many decimals; by itself, as many as it deserves."""
    number = read_number(value)
    if number is None:
        return DASH
    told = f"{number:,.{choose_digits([number]) if digits is None else digits}f}"
    return told.replace("-", MINUS)


def choose_digits(values: Iterable[Any]) -> int:
    """Decimals for figures that stand below each other: none for whole ones, else about three digits."""
    numbers = [abs(number) for value in values if (number := read_number(value)) is not None]
    if all(number == int(number) for number in numbers):
        return 0
    if max(numbers) < 10:
        return 2
    return 0 if min(numbers) >= 100 else 1


def count(number: int, noun: str) -> str:
    """`1 question`, `2,000 questions`."""
    return f"{number:,} {noun}" + "s" * (number != 1)
