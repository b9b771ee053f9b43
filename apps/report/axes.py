"""Axes with round ticks, linear or logarithmic as the figures need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .wording import tell_figure

__all__ = ["Axis", "choose_axis"]

WIDE = 12.0
"""A largest figure of so many times the smallest asks for a logarithmic axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From one figure to another."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False
    gutter: float = 0.0
    """Share of a logarithmic axis that is set aside at its beginning for 0."""

    def place(self, value: float) -> float:
        """Where a figure lies, from 0 to 1."""
        if not self.is_log:
            share = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            return 0.0
        else:
            share = math.log(value / self.low) / math.log(self.high / self.low)
            share = self.gutter + (1 - self.gutter) * share
        return max(0.0, min(1.0, share))


def choose_axis(values: Sequence[float], *, zero: bool) -> Axis:
    """An axis that holds all values.

    Args:
        values: At least one.
        zero: Whether 0 means something: then a linear axis begins there, and it is logarithmic where
            the values differ widely. Otherwise it begins below the smallest value.
    """
    positive = [value for value in values if value > 0]
    if zero and len(positive) > 1 and max(positive) > WIDE * min(positive):
        return _choose_log(min(positive), max(positive), any(value <= 0 for value in values))
    low, high = (0.0 if zero else min(values)), max(values)
    if high <= low:
        low, high = (0.0, high * 1.25) if zero and high > 0 else (low - 1.0, low + 1.0)
    step = _round_step((high - low) / 5)
    low = step * math.floor(low / step + 1e-9)
    high = step * math.ceil(high / step - 1e-9)
    number = round((high - low) / step)
    ticks = tuple(
        (low + step * at, tell_figure(round(low + step * at, 9))) for at in range(number + 1)
    )
    return Axis(low=low, high=high, ticks=ticks)


def _choose_log(smallest: float, largest: float, has_zero: bool) -> Axis:
    low, high = smallest / 1.15, largest * 1.15
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 3 else (1, 3) if decades < 5 else (1,)
    ticks = [(v, tell_figure(v)) for v in _round_figures(low, high, factors)]
    return Axis(
        low=low,
        high=high,
        ticks=tuple([(0.0, "0")] * has_zero + ticks),
        is_log=True,
        gutter=0.12 if has_zero else 0.0,
    )


def _round_figures(low: float, high: float, factors: Sequence[int]) -> Iterator[float]:
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for factor in factors:
            if low <= (value := factor * 10.0**power) <= high:
                yield value


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, and no less."""
    ten = 10.0 ** math.floor(math.log10(least))
    return next(factor * ten for factor in (1, 2, 5, 10) if factor * ten >= least * (1 - 1e-9))
