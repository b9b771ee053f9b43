"""What re-mixing did to the pathways inside an expert, as strips of layers by experts.

Shapes: C critical layers, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ...graph import Solution
from .curtain import Curtain
from .drawing import add, finish, start
from .heat import LEVELS
from .wording import clean, count, keep_start, read_number

__all__ = ["Pathways", "Strip", "embed_remix", "read_remix", "sum_up_pathways"]

Floats = npt.NDArray[np.float64]
LARGEST = 64 * 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A pathway with its name."""

    name: str
    picture: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Pathways:
    """Re-mixing by one member of the pool, in sum."""

    expert: str
    told: str
    verdicts: Sequence[tuple[str, str]]
    """Each with its number of answers."""
    strips: Sequence[Strip]


@dataclass(slots=True)
class _Sum:
    verdicts: Counter[str] = field(default_factory=Counter[str])
    letters: int = 0
    """How often another letter won."""
    number: int = 0
    """Of pathways in the sums: those of the first one's shape."""
    before_CE: Floats | None = None
    after_CE: Floats | None = None


def read_remix(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What an expert's reply tells of re-mixing, if anything."""
    details = row.get("details")
    remix = (
        cast("Mapping[str, Any]", details).get("remix") if isinstance(details, Mapping) else None
    )
    return cast("Mapping[str, Any]", remix) if isinstance(remix, Mapping) else None


def embed_remix(remix: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of one question's re-mixing; pathways as one digit per cell."""
    told: dict[str, Any] = {
        "verdict": keep_start(remix.get("verdict") or "", 120),
        "letters": [keep_start(remix.get(when) or "", 8) for when in ("before", "after")],
        "shares": [_numbers(remix.get(f"probabilities_{when}")) for when in ("before", "after")],
        "neighbours": _read_neighbours(remix.get("neighbours")),
        "curve": _numbers(remix.get("curve"))[:200],
    }
    if (pair := _read_pair(remix)) is not None:
        peak = max(float(matrix_CE.max()) for matrix_CE in pair) or 1.0
        told["pathway"] = [_tell_digits(matrix_CE / peak) for matrix_CE in pair]
    return told


def sum_up_pathways(solutions: Sequence[Solution], curtain: Curtain) -> list[Pathways]:
    """One summary per expert whose replies tell of re-mixing."""
    sums: dict[str, _Sum] = {}
    for solution in solutions:
        for row in solution.row.get("experts") or ():
            if (remix := read_remix(row)) is not None:
                total = sums.setdefault(clean(row.get("expert")), _Sum())
                _add(total, curtain.remix(remix, solution.question))
    return [_tell(expert, total) for expert, total in sorted(sums.items())]


def _add(total: _Sum, remix: Mapping[str, Any]) -> None:
    total.verdicts[keep_start(remix.get("verdict") or "unknown", 120)] += 1
    total.letters += remix.get("before") != remix.get("after")
    if (pair := _read_pair(remix)) is None:
        return
    before_CE, after_CE = pair
    if total.before_CE is None or total.after_CE is None:
        total.before_CE, total.after_CE = np.zeros_like(before_CE), np.zeros_like(after_CE)
    if before_CE.shape == total.before_CE.shape:
        total.before_CE += before_CE
        total.after_CE += after_CE
        total.number += 1


def _tell(expert: str, total: _Sum) -> Pathways:
    told = f"Re-mixing in {count(total.verdicts.total(), 'answer')}; another letter won in {total.letters:,}."
    strips: list[Strip] = []
    if total.before_CE is not None and total.after_CE is not None:
        before_CE, after_CE = total.before_CE / total.number, total.after_CE / total.number
        change_CE = after_CE - before_CE
        peak = max(float(before_CE.max()), float(after_CE.max()))
        moved = float(np.abs(change_CE).max())
        layers, experts = before_CE.shape
        told += (
            f" The strips are means of {count(total.number, 'pathway')}: {count(layers, 'layer')} from "
            f"top to bottom, {count(experts, 'expert')} from left to right, the strongest is {peak:.3g}."
        )
        strips = [
            Strip(name="before", picture=_draw_strip(before_CE, peak, "before")),
            Strip(name="after", picture=_draw_strip(after_CE, peak, "after")),
            Strip(
                name=f"change: blue more, orange less, at most {moved:.2g}",
                picture=_draw_strip(change_CE, moved, "change"),
            ),
        ]
    verdicts = [(verdict, f"{number:,}") for verdict, number in total.verdicts.most_common(8)]
    return Pathways(expert=expert, told=told, verdicts=verdicts, strips=strips)


def _read_pair(remix: Mapping[str, Any]) -> tuple[Floats, Floats] | None:
    """Both pathways, or None where they are not there or no pair of finite matrices of one shape."""
    try:
        before_CE, after_CE = (
            np.asarray(remix.get(f"pathway_{when}"), dtype=np.float64)
            for when in ("before", "after")
        )
    except (TypeError, ValueError):
        return None
    if before_CE.ndim != 2 or before_CE.shape != after_CE.shape:
        return None
    if not 0 < before_CE.size <= LARGEST or not np.isfinite([before_CE, after_CE]).all():
        return None
    return before_CE.clip(0), after_CE.clip(0)


def _draw_strip(matrix_CE: Floats, peak: float, name: str) -> Markup:
    """A row per layer, a cell per expert; what falls is of another colour than what rises."""
    layers, experts = matrix_CE.shape
    wide = max(4.0, min(14.0, 640 / experts))
    svg = start(wide * experts, 14.0 * layers, "strip", label=f"Pathway, mean {name}")
    add(svg, "rect", "strip-ground", x=0, y=0, width=wide * experts, height=14.0 * layers)
    for layer, row in enumerate(matrix_CE.tolist()):
        for at, cell in enumerate(row):
            if shade := round(LEVELS * min(1.0, abs(cell) / (peak or 1.0))):
                look = f"{'down' if cell < 0 else 'heat'}{shade}"
                place = {"x": at * wide, "y": 14.0 * layer, "width": wide - 1, "height": 13.0}
                add(svg, "rect", look, **place)
    return finish(svg)


def _tell_digits(shares_CE: Floats) -> list[str]:
    digits_CE = np.rint(LEVELS * shares_CE).astype(int).tolist()
    return ["".join(map(str, row)) for row in digits_CE]


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, list | tuple):
        return []
    numbers = map(read_number, cast("Sequence[Any]", value))
    return [round(number, 4) for number in numbers if number is not None]


def _read_neighbours(value: Any) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for pair in cast("Sequence[Any]", value if isinstance(value, list | tuple) else ()):
        if isinstance(pair, list | tuple) and len(cast("Sequence[Any]", pair)) == 2:
            name, similarity = cast("Sequence[Any]", pair)
            number = read_number(similarity)
            found.append((keep_start(name, 80), 0.0 if number is None else round(number, 3)))
    return found[:16]
