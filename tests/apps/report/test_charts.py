"""Charts have round ticks, place every point to scale, and put no name on another."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.apps.report.axes import choose_axis
from expertmix.apps.report.charts import Chart, draw_chart
from expertmix.apps.report.labels import Box, Label, place_labels

Row = dict[str, Any]


def row(label: str, calls: float, share: float, **more: Any) -> Row:
    told: Row = {"label": label, "method": label.partition("@")[0], "calls_mean": calls}
    return told | {"accuracy": share, "low": share - 0.1, "high": share + 0.1} | more


def draw(*rows: Row) -> Chart:
    chart = draw_chart(rows, "calls_mean", title="Right against calls", unit="calls")
    assert chart is not None
    return chart


def shapes(chart: Chart, look: str) -> list[Element]:
    svg = fromstring(chart.wide)
    return [element for element in svg.iter() if element.get("class") == look]


def centres(chart: Chart) -> list[tuple[float, float]]:
    return [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in shapes(chart, "chart-dot")
    ]


def test_points_lie_to_scale() -> None:
    chart = draw(row("a", 1, 0.2), row("b", 2, 0.4), row("c", 4, 0.6))
    (x1, y1), (x2, y2), (x4, y4) = centres(chart)
    assert x4 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y4, abs=0.2)
    assert y4 < y1  # right answers grow upwards


def test_widely_different_costs_have_a_log_axis_and_zero_a_place_before_it() -> None:
    chart = draw(row("none", 0, 0.2), row("a", 10, 0.2), row("b", 100, 0.4), row("c", 1000, 0.6))
    (x0, _), (x1, _), (x2, _), (x3, _) = centres(chart)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert x0 < x1
    assert any("log scale" in (text.text or "") for text in shapes(chart, "chart-unit end"))


def test_points_of_one_cost_stand_side_by_side() -> None:
    chart = draw(*(row(f"m{at}", 2, 0.4 + at / 50) for at in range(4)), row("far", 4, 0.5))
    across = sorted(x for x, _ in centres(chart))
    assert min(b - a for a, b in pairwise(across)) >= 5.9


def test_ours_are_drawn_on_top_and_named_in_their_colour() -> None:
    chart = draw(row("ours@2", 2, 0.4, is_ours=True), row("a", 2, 0.41))
    looks = [
        element.get("class")
        for element in fromstring(chart.wide).iter()
        if str(element.get("class")).startswith("chart-point")
    ]
    assert looks == ["chart-point", "chart-point ours"]
    assert [text.text for text in shapes(chart, "chart-name mid ours")] == ["ours@2"]


def test_budgets_of_one_method_are_joined() -> None:
    chart = draw(row("a@2", 2, 0.4), row("a@4", 4, 0.5), row("b", 3, 0.4))
    (path,) = shapes(chart, "chart-path")
    assert len(path.attrib["points"].split()) == 2


def test_bounds_near_by_are_lines_and_far_ones_are_told() -> None:
    bounds = (row("oracle", 5, 0.65, is_bound=True), row("chance", 0, 0.05, is_bound=True))
    chart = draw(row("a", 2, 0.5), *bounds)
    assert [text.text for text in shapes(chart, "chart-bound-name end")] == ["oracle 65.0"]
    assert chart.beyond == ["chance lies below, at 5.0 %"]
    assert len(centres(chart)) == 1


def test_a_chart_is_told_to_those_who_cannot_see_it() -> None:
    label = fromstring(draw(row("a", 2, 0.5)).narrow).attrib["aria-label"]
    assert label == "Right against calls. a: 50.0 % right (40.0–60.0), 2 calls"


def test_without_figures_there_is_no_chart() -> None:
    rows: list[Row] = [{"label": "a", "accuracy": 0.5}, {"label": "b", "calls_mean": 2}]
    assert draw_chart(rows, "calls_mean", title="t", unit="u") is None


def test_colours_are_the_pages() -> None:
    assert not re.search(r"#[0-9a-f]{3}|style=|fill=|stroke=", draw(row("a", 2, 0.5)).wide)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 1e7, allow_subnormal=False), min_size=1, max_size=8),
    zero=st.booleans(),
)
def test_an_axis_holds_all_values_in_order_between_round_ticks(
    values: list[float], zero: bool
) -> None:
    axis = choose_axis(values, zero=zero)
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    ticks = [axis.place(value) for value, _ in axis.ticks]
    assert ticks == sorted(ticks)
    assert axis.is_log or len(ticks) in range(2, 10)


POINTS = st.lists(
    st.tuples(st.floats(20, 480), st.floats(20, 280), st.integers(10, 120)), min_size=1, max_size=30
)


@settings(max_examples=40, deadline=None)
@given(points=POINTS)
def test_no_name_covers_another_or_a_dot_or_leaves_the_frame(
    points: list[tuple[float, float, int]],
) -> None:
    frame = Box(0, 0, 500, 300)
    dots = [Box(x - 4, y - 4, x + 4, y + 4) for x, y, _ in points]
    labels = [Label(x, y, width, 13) for x, y, width in points]
    placed = place_labels(labels, frame, solid=dots, thin=[])
    boxes = [place.box for place in placed if place is not None]
    assert all(frame.holds(box) for box in boxes)
    assert not any(first.overlap(other) for first, other in combinations(boxes, 2))
    assert not any(box.overlap(dot) for box in boxes for dot in dots)


def test_a_lone_name_stands_at_the_right_of_its_point_and_a_crowd_spreads() -> None:
    frame = Box(0, 0, 500, 300)
    (placed,) = place_labels([Label(100, 100, 40, 13)], frame, solid=[], thin=[])
    assert placed is not None
    assert placed.box.left == pytest.approx(108)
    assert not placed.is_led
    crowd = [Label(250 + at, 150, 60, 13) for at in range(16)]
    named = place_labels(crowd, frame, solid=[], thin=[])
    assert sum(place is not None for place in named) == 16
    assert any(place is not None and place.is_led for place in named)
