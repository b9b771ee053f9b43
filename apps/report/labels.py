"""Where the names of points stand, so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["NEAR", "Box", "Label", "Placed", "nearest", "place_labels"]

# Pixels.
RINGS = (8.0, 13.0, 22.0, 34.0, 48.0, 64.0, 84.0, 108.0)
NEAR = 16.0
"""Farther away, a line leads from a name to its point."""
TURNS = 16
CROSSING = 4.0
"""What a square pixel of a line under another label costs, in quarter pixels of distance."""


@dataclass(frozen=True, slots=True)
class Box:
    """An upright rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def grown(self, by: float) -> Box:
        """The box with a margin."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)


@dataclass(frozen=True, slots=True)
class Label:
    """A name that wants a place beside its point."""

    x: float
    y: float
    width: float
    height: float
    farthest: float = math.inf
    """Pixels from the point beyond which it rather goes without."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where it stands, and whether a line is needed to see whose it is."""

    box: Box
    is_led: bool


def place_labels(
    labels: Sequence[Label], frame: Box, *, solid: Sequence[Box], thin: Sequence[Box]
) -> list[Placed | None]:
    """Give each label the nearest place that is free, the first ones first.

    Args:
        labels: The most important first.
        frame: No label leaves it.
        solid: What no label may cover: points.
        thin: What it had better not cover: whiskers, lines.

    Returns:
        A place for each label, or None where there is no room for it.
    """
    taken: list[Box] = []
    leads: list[Box] = []
    placed: list[Placed | None] = []
    for label in labels:
        best: tuple[float, Placed] | None = None
        for cost, candidate in _candidates(label):
            box = candidate.box
            if best is not None and cost >= best[0]:
                break  # rings only get farther
            if not frame.holds(box) or any(box.overlap(other) for other in (*taken, *solid)):
                continue
            lead = _lead(label, box) if candidate.is_led else []
            cost += 0.25 * sum(box.overlap(other) for other in (*thin, *leads))
            cost += CROSSING * sum(piece.overlap(other) for piece in lead for other in taken)
            if best is None or cost < best[0]:
                best = cost, candidate
        placed.append(best[1] if best else None)
        if best:
            taken.append(best[1].box.grown(1.0))
            if best[1].is_led:
                leads += _lead(label, best[1].box)
    return placed


def _candidates(label: Label) -> Iterator[tuple[float, Placed]]:
    """Places by what they cost at least: near ones before far ones, right before left before above."""
    for ring in (ring for ring in RINGS if ring <= label.farthest):
        for turn in _turns():
            x, y = label.x + ring * math.cos(turn), label.y - ring * math.sin(turn)
            # The box is anchored at the side that faces the point.
            sideways = math.cos(turn)
            left = x - label.width * (1 - sideways) / 2
            top = y - label.height * (1 + math.sin(turn)) / 2
            box = Box(left, top, left + label.width, top + label.height)
            bias = 0.2 * abs(turn) if turn >= 0 else 0.25 * abs(turn)
            yield 4 * ring + bias, Placed(box, ring > NEAR)


def _turns() -> list[float]:
    """Directions in radians, the right first and then away from it to both sides."""
    step = 2 * math.pi / TURNS
    return sorted(((at - TURNS // 2 + 1) * step for at in range(TURNS)), key=lambda t: (abs(t), -t))


def _lead(label: Label, box: Box) -> list[Box]:
    """The line from a point to its label, as small boxes that other labels keep away from."""
    x, y = nearest(label.x, label.y, box)
    steps = max(2, int(math.hypot(x - label.x, y - label.y) / 4))
    spots = [
        (label.x + (x - label.x) * at / steps, label.y + (y - label.y) * at / steps)
        for at in range(1, steps)
    ]
    return [Box(px - 1, py - 1, px + 1, py + 1) for px, py in spots]


def nearest(x: float, y: float, box: Box) -> tuple[float, float]:
    """The point of the box that is nearest to another."""
    return max(box.left, min(x, box.right)), max(box.top, min(y, box.bottom))
