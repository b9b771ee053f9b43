"""Right answers against what they cost, as one drawing for wide pages and one for narrow ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

from .axes import Axis, choose_axis
from .drawing import add, finish, start, write
from .labels import NEAR, Box, Label, nearest, place_labels
from .wording import clean, keep_start, read_number, tell_figure, tell_interval, tell_share

__all__ = ["Chart", "draw_chart"]

# Pixels. The width of a letter is a guess that holds for most fonts.
LETTER, LINE, LONGEST = 6.7, 13.0, 26
TOP, BOTTOM, LEFT, RIGHT = 26.0, 38.0, 36.0, 14.0
SIZES = ((548.0, 400.0), (344.0, 400.0))
CROWD = 20
"""More points than this are not joined by lines, and in a narrow drawing named only from near by."""
APART = 6.0
"""Points that lie nearer than this are set side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """The same drawing in two widths, and what neither could hold."""

    title: str
    wide: Markup
    narrow: Markup
    beyond: Sequence[str]
    """Bounds that lie outside, in words."""
    lost: tuple[str, str]
    """A sentence about names that found no room in the wide and in the narrow one, or nothing."""


@dataclass(frozen=True, slots=True)
class _Point:
    label: str
    method: str
    x: float
    y: float
    low: float
    high: float
    is_ours: bool
    told: str


def draw_chart(
    rows: Sequence[Mapping[str, Any]], key: str, *, title: str, unit: str
) -> Chart | None:
    """Draw accuracy with its intervals against a cost.

    Args:
        rows: As in `ReportContent`.
        key: Of the cost, for instance `calls_mean`.
        title: Stands above it.
        unit: Of the axis, for instance `calls per question, mean`.

    Returns:
        None where no method has both an accuracy and that cost.
    """
    points = [p for row in rows if not row.get("is_bound") and (p := _point(row, key, unit))]
    if not points:
        return None
    across = choose_axis([point.x for point in points], zero=True)
    inside, beyond = _sort_bounds(rows, points)
    ends = [100 * end for p in points for end in (p.low, p.high)]
    upward = choose_axis([*ends, *(100 * share for _, share in inside)], zero=False)
    drawn = [_draw(points, inside, across, upward, title, unit, size) for size in SIZES]
    (wide, lost_wide), (narrow, lost_narrow) = drawn
    lost = (_tell_lost(lost_wide), _tell_lost(lost_narrow))
    return Chart(title=title, wide=wide, narrow=narrow, beyond=beyond, lost=lost)


def _tell_lost(names: Sequence[str]) -> str:
    if not names:
        return ""
    told = ", ".join(names) if len(names) <= 6 else f"{len(names)} dots; the table has them"
    return f"Without a name for want of room: {told}."


def _point(row: Mapping[str, Any], key: str, unit: str) -> _Point | None:
    share, cost = read_number(row.get("accuracy")), read_number(row.get(key))
    if share is None or cost is None or cost < 0:
        return None
    ends = [read_number(row.get("low")), read_number(row.get("high"))]
    low, high = (share if end is None else end for end in ends)
    label = clean(row.get("label") or row.get("method") or "?")
    told = f"{label}: {tell_share(share)} % right"
    told += f" ({tell_interval(*ends)})" if None not in ends else ""
    told += f", {tell_figure(cost)} {unit}"
    method = str(row.get("method") or label)
    return _Point(label, method, cost, share, low, high, bool(row.get("is_ours")), told)


def _sort_bounds(
    rows: Sequence[Mapping[str, Any]], points: Sequence[_Point]
) -> tuple[list[tuple[str, float]], list[str]]:
    """Bounds near enough to be drawn, and in words those that would flatten everything else."""
    low, high = min(p.low for p in points), max(p.high for p in points)
    room = max(0.05, 0.3 * (high - low))
    inside: list[tuple[str, float]] = []
    beyond: list[str] = []
    for row in rows:
        share = read_number(row.get("accuracy"))
        if not row.get("is_bound") or share is None:
            continue
        name = clean(row.get("label") or row.get("method") or "?")
        if low - room <= share <= high + room:
            inside.append((name, share))
        else:
            side = "above" if share > high else "below"
            beyond.append(f"{name} lies {side}, at {tell_share(share)} %")
    return inside, beyond


def _draw(
    points: Sequence[_Point],
    bounds: Sequence[tuple[str, float]],
    across: Axis,
    upward: Axis,
    title: str,
    unit: str,
    size: tuple[float, float],
) -> tuple[Markup, list[str]]:
    """The drawing, and the names that found no room in it."""
    width, height = size
    frame = Box(LEFT, TOP, width - RIGHT, height - BOTTOM)
    told = "; ".join([p.told for p in points] + [f"{n}: {tell_share(s)} %" for n, s in bounds])
    svg = start(width, height, "chart", label=f"{title}. {told}")
    _draw_grid(svg, frame, across, upward, unit)
    at = _set_apart([(_x(frame, across, p.x), _y(frame, upward, p.y)) for p in points])
    thin = _draw_bounds(svg, frame, upward, bounds)
    _draw_paths(svg, points, at)
    for point, (x, y) in zip(points, at, strict=True):
        if not point.is_ours:
            thin.append(_draw_point(svg, frame, upward, point, x, y))
    for point, (x, y) in zip(points, at, strict=True):
        if point.is_ours:  # on top of the others
            thin.append(_draw_point(svg, frame, upward, point, x, y))
    order = sorted(range(len(points)), key=lambda i: (not points[i].is_ours, -points[i].y, i))
    names = [keep_start(points[i].label, LONGEST) for i in order]

    def far(number: int) -> float:
        is_tight = width < 400 and len(points) > CROWD and not points[number].is_ours
        return NEAR if is_tight else math.inf

    wanted = [
        Label(*at[i], LETTER * len(name) * (1.06 if points[i].is_ours else 1.0), LINE, far(i))
        for i, name in zip(order, names, strict=True)
    ]
    solid = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in at]
    placed = place_labels(wanted, frame.grown(6), solid=solid, thin=thin)
    found = [(i, name, p) for i, name, p in zip(order, names, placed, strict=True) if p is not None]
    for i, _, place in found:
        if place.is_led:
            x, y = nearest(*at[i], place.box)
            add(svg, "line", "chart-lead", x1=at[i][0], y1=at[i][1], x2=x, y2=y)
    for i, name, place in found:  # above all lines
        look = "chart-name mid ours" if points[i].is_ours else "chart-name mid"
        middle = (place.box.left + place.box.right) / 2
        write(svg, middle, place.box.bottom - 3, name, look)
    lost = [name for name, place in zip(names, placed, strict=True) if place is None]
    return finish(svg), lost


def _set_apart(at: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of nearly the same cost side by side, so that each whisker is seen."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    moved = list(at)
    while order:
        group = [order.pop(0)]
        while order and at[order[0]][0] - at[group[-1]][0] < APART:
            group.append(order.pop(0))
        middle = sum(at[i][0] for i in group) / len(group)
        if len(group) > 1:
            group.sort(key=lambda i: (-at[i][1], i))
            for place, i in enumerate(group):
                moved[i] = middle + APART * (place - (len(group) - 1) / 2), at[i][1]
    return moved


def _draw_grid(svg: Element, frame: Box, across: Axis, upward: Axis, unit: str) -> None:
    for value, text in upward.ticks:
        y = _y(frame, upward, value / 100)
        add(svg, "line", "chart-grid", x1=frame.left, x2=frame.right, y1=y, y2=y)
        write(svg, frame.left - 7, y + 4, text, "chart-tick end")
    add(svg, "line", "chart-axis", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom)
    reached = -math.inf
    for value, text in across.ticks:
        x = _x(frame, across, value)
        add(svg, "line", "chart-axis", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 4)
        if x - LETTER * len(text) / 2 > reached + 4:  # narrow drawings have no room for all
            write(svg, x, frame.bottom + 17, text, "chart-tick mid")
            reached = x + LETTER * len(text) / 2
    told = unit + (" (log scale)" if across.is_log else "")
    write(svg, frame.right, frame.bottom + 33, told, "chart-unit end")
    write(svg, 0, 12, "right, %", "chart-unit")


def _draw_bounds(
    svg: Element, frame: Box, upward: Axis, bounds: Sequence[tuple[str, float]]
) -> list[Box]:
    """Dashed lines from side to side, named at the right end; what they cover."""
    covered: list[Box] = []
    for name, share in bounds:
        y = _y(frame, upward, share)
        add(svg, "line", "chart-bound", x1=frame.left, x2=frame.right, y1=y, y2=y)
        text = f"{keep_start(name, 18)} {tell_share(share)}"
        write(svg, frame.right, y - 4, text, "chart-bound-name end")
        covered += [
            Box(frame.left, y - 1, frame.right, y + 1),
            Box(frame.right - LETTER * len(text), y - 15, frame.right, y),
        ]
    return covered


def _draw_paths(svg: Element, points: Sequence[_Point], at: Sequence[tuple[float, float]]) -> None:
    """A line through the budgets of each method that has several."""
    methods: dict[str, list[int]] = {}
    for number, point in enumerate(points):
        methods.setdefault(point.method, []).append(number)
    for numbers in methods.values():
        is_ours = points[numbers[0]].is_ours
        if len(numbers) > 1 and (is_ours or len(points) <= CROWD):
            ordered = sorted(numbers, key=lambda i: (points[i].x, points[i].y))
            look = "chart-path ours" if is_ours else "chart-path"
            path = " ".join(f"{at[i][0]:.1f},{at[i][1]:.1f}" for i in ordered)
            add(svg, "polyline", look, points=path)


def _draw_point(svg: Element, frame: Box, upward: Axis, point: _Point, x: float, y: float) -> Box:
    group = add(svg, "g", "chart-point ours" if point.is_ours else "chart-point")
    SubElement(group, "title").text = point.told
    top, bottom = _y(frame, upward, point.high), _y(frame, upward, point.low)
    add(group, "line", "chart-whisker", x1=x, x2=x, y1=top, y2=bottom)
    add(group, "circle", "chart-dot", cx=x, cy=y, r=5.5 if point.is_ours else 4)
    return Box(x - 1, top, x + 1, bottom)


def _x(frame: Box, axis: Axis, value: float) -> float:
    return frame.left + 14 + (frame.right - frame.left - 28) * axis.place(value)


def _y(frame: Box, axis: Axis, share: float) -> float:
    return frame.bottom - (frame.bottom - frame.top) * axis.place(100 * share)
