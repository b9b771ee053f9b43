"""Showing a graph where it is: a notebook draws it as inline SVG, without a script and without a remote service.

LangGraph's own display sends the graph to a web service to have it drawn, and shows its inner error handlers.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, TypeVar

from langchain_core.runnables.graph import Edge, Graph
from langgraph.graph.state import CompiledStateGraph

__all__ = ["draw_graph", "draw_mermaid", "show_locally"]

Compiled = TypeVar("Compiled", bound=CompiledStateGraph[Any, Any, Any, Any])

HEIGHT, GAP, ROW, MARGIN = 34, 42, 56, 10
INNER = "__error_handler__"
ENDS: Mapping[str, str] = {"__start__": "start", "__end__": "end"}
STYLE = (
    "<style>.expertmix-graph{max-width:100%;height:auto;font:13px system-ui,sans-serif}"
    ".expertmix-graph text{fill:currentColor;text-anchor:middle;dominant-baseline:central}"
    ".expertmix-graph rect{fill:none;stroke:currentColor;stroke-opacity:.6}"
    ".expertmix-graph path{fill:none;stroke:currentColor;stroke-opacity:.6}"
    ".expertmix-graph .if{stroke-dasharray:4 3}</style>"
)
HEAD = (
    '<defs><marker id="expertmix-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:currentColor;stroke:none;'
    'fill-opacity:.6"/></marker></defs>'
)


def show_locally(compiled: Compiled) -> Compiled:
    """The same graph, which shows itself in notebooks as `draw_graph` draws it."""
    compiled.__class__ = _LocallyDrawn  # pyright: ignore[reportAttributeAccessIssue]
    return compiled


class _LocallyDrawn(CompiledStateGraph[Any, Any, Any, Any]):
    """A compiled graph that is drawn where it is shown."""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        graph = self.get_graph()
        return {"text/plain": draw_mermaid(graph), "text/html": draw_graph(graph)}


def draw_mermaid(graph: Graph) -> str:
    """The graph as Mermaid text, without what only LangGraph itself uses."""
    nodes = {
        name: node._replace(metadata=None)
        for name, node in graph.nodes.items()
        if not name.startswith(INNER)
    }
    return Graph(nodes, _edges_of(graph)).draw_mermaid()


def draw_graph(graph: Graph) -> str:
    """The graph as HTML with one inline SVG, from left to right; dashed where a condition decides."""
    edges = _edges_of(graph)
    names = [name for name in graph.nodes if not name.startswith(INNER)]
    columns = _find_columns(names, edges)
    places = _place(names, columns)
    rows = max(list(columns.values()).count(column) for column in columns.values())
    above = GAP if any(columns[e.target] - columns[e.source] > 1 for e in edges) else 0
    below = GAP if any(columns[e.target] <= columns[e.source] for e in edges) else 0
    width = max(x + wide for x, _, wide in places.values()) + MARGIN
    tall = rows * ROW + above + below
    paths = "".join(_draw_edge(edge, places, columns) for edge in edges)
    boxes = "".join(_draw_node(name, *places[name]) for name in names)
    return (
        f'{STYLE}<svg class="expertmix-graph" role="img" aria-label="graph" width="{width}" '
        f'height="{tall}" viewBox="0 {-above} {width} {tall}" xmlns="http://www.w3.org/2000/svg">'
        f"{HEAD}{paths}{boxes}</svg>"
    )


def _edges_of(graph: Graph) -> list[Edge]:
    return [e for e in graph.edges if not any(end.startswith(INNER) for end in e[:2])]


def _find_columns(names: list[str], edges: list[Edge]) -> dict[str, int]:
    """The longest way from the start to each node, ways back left out."""
    after: dict[str, list[str]] = {name: [] for name in names}
    for edge in edges:
        after[edge.source].append(edge.target)
    order: list[str] = []
    forward: list[tuple[str, str]] = []
    state: dict[str, str] = {}

    def walk(name: str) -> None:
        state[name] = "open"
        for target in after[name]:
            if state.get(target) != "open":  # else it leads back
                forward.append((name, target))
                if target not in state:
                    walk(target)
        state[name] = "done"
        order.append(name)

    entered = {edge.target for edge in edges}
    for name in sorted(names, key=lambda name: name in entered):  # starts first
        if name not in state:
            walk(name)
    columns = dict.fromkeys(names, 0)
    for name in reversed(order):
        for source, target in forward:
            if source == name:
                columns[target] = max(columns[target], columns[name] + 1)
    return columns


def _place(names: list[str], columns: Mapping[str, int]) -> dict[str, tuple[float, float, float]]:
    """Left, top and width of each node."""
    places: dict[str, tuple[float, float, float]] = {}
    left = float(MARGIN)
    for column in range(max(columns.values()) + 1):
        here = [name for name in names if columns[name] == column]
        wide = max((8.0 * len(ENDS.get(name, name)) + 22 for name in here), default=0.0)
        for row, name in enumerate(here):
            places[name] = (left, row * ROW + (ROW - HEIGHT) / 2, wide)
        left += wide + GAP
    return places


def _draw_node(name: str, x: float, y: float, wide: float) -> str:
    round_ = HEIGHT / 2 if name in ENDS else 6
    label = escape(ENDS.get(name, name))
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{HEIGHT}" rx="{round_:g}"/>'
        f'<text x="{x + wide / 2:g}" y="{y + HEIGHT / 2:g}">{label}</text>'
    )


def _draw_edge(
    edge: Edge, places: Mapping[str, tuple[float, float, float]], columns: Mapping[str, int]
) -> str:
    """Straight to the next column, in an arch over what it skips, below it on the way back."""
    x1, y1, wide1 = places[edge.source]
    x2, y2, wide2 = places[edge.target]
    step = columns[edge.target] - columns[edge.source]
    if step == 1:
        way = f"M{x1 + wide1:g} {y1 + HEIGHT / 2:g}L{x2:g} {y2 + HEIGHT / 2:g}"
    else:
        down = step < 1
        side, lift = (HEIGHT, GAP) if down else (0, -GAP)
        start, end = x1 + wide1 * 0.5, x2 + wide2 * 0.5
        way = (
            f"M{start:g} {y1 + side:g}C{start:g} {y1 + side + lift:g} "
            f"{end:g} {y2 + side + lift:g} {end:g} {y2 + side:g}"
        )
    style = ' class="if"' if edge.conditional else ""
    return f'<path d="{way}"{style} marker-end="url(#expertmix-head)"/>'
