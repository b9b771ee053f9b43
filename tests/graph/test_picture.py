"""Graphs that draw themselves, and call no one for it."""

from __future__ import annotations

import re
import socket
from typing import Any
from xml.etree import ElementTree

import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from expertmix.graph import create_graph
from expertmix.graph.picture import draw_graph, draw_mermaid, show_locally


class State(TypedDict):
    x: int


def stay(state: State) -> State:
    return state


def leave(_: State) -> str:
    return END


def show(graph: Any) -> dict[str, str]:
    return graph._repr_mimebundle_()


def parse(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page[page.index("<svg") :])


def labels(page: str) -> list[str]:
    return [e.text or "" for e in parse(page).iter() if e.tag.endswith("text")]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a display called somebody")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_notebook_gets_a_picture_and_everybody_else_text() -> None:
    bundle = show(create_graph(approval=True))
    steps = ["extract_skills", "recruit", "approve", "reason", "aggregate"]
    assert sorted(labels(bundle["text/html"])) == sorted(["start", *steps, "end"])
    for step in steps:
        assert step in bundle["text/plain"]
    for inner in ("error_handler", "defer"):
        assert inner not in bundle["text/plain"] + bundle["text/html"]
    for outside in ("<script", "http://", "https://", "url(http"):
        assert outside not in bundle["text/html"].replace("http://www.w3.org/2000/svg", "")


def test_boxes_lie_apart_and_inside_the_picture() -> None:
    svg = parse(show(create_graph())["text/html"])
    boxes = [
        tuple(float(e.attrib[key]) for key in ("x", "y", "width", "height"))
        for e in svg.iter()
        if e.tag.endswith("rect")
    ]
    left, top, width, height = map(float, svg.attrib["viewBox"].split())
    for x, y, wide, tall in boxes:
        assert left <= x
        assert x + wide <= left + width
        assert top <= y
        assert y + tall <= top + height
    for one in boxes:
        for two in boxes:
            apart = one[0] + one[2] <= two[0] or two[0] + two[2] <= one[0]
            assert one is two or apart or one[1] != two[1]


def test_conditions_are_dashed_and_ways_back_go_below() -> None:
    graph = create_graph().get_graph()
    svg = parse(draw_graph(graph))
    paths = [e for e in svg.iter() if e.tag.endswith("path") and "marker-end" in e.attrib]
    assert len(paths) == len(graph.edges)
    dashed = [path for path in paths if path.attrib.get("class") == "if"]
    assert len(dashed) == sum(edge.conditional for edge in graph.edges)
    assert sum("C" in path.attrib["d"] for path in paths) == 2  # to the end at once, and back


def test_names_are_escaped_and_any_graph_can_be_shown() -> None:
    graph = StateGraph(State)
    for name in ("<b>", "left", "right", "loop"):
        graph.add_node(name, stay)
    graph.add_edge(START, "<b>")
    graph.add_edge("<b>", "left")
    graph.add_edge("<b>", "right")
    graph.add_edge("left", "loop")
    graph.add_edge("right", "loop")
    graph.add_conditional_edges("loop", leave, ["loop", "left", END])
    shown = show(show_locally(graph.compile()))
    assert "<b>" not in shown["text/html"]
    assert sorted(labels(shown["text/html"])) == ["<b>", "end", "left", "loop", "right", "start"]
    assert re.search(r"loop -\.\-?", draw_mermaid(graph.compile().get_graph()))
