"""The wiring, and nothing else."""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from .nodes import (
    aggregate,
    ask_recruits,
    extract_skills,
    go_on,
    keep_failure,
    reason,
    recruit_experts,
)
from .state import ExpertBatch, PanelInput, PanelOutput, PanelState, Resources

__all__ = ["build_graph", "create_graph"]


def build_graph() -> StateGraph[PanelState, Resources, PanelInput, PanelOutput]:
    """The panel as a graph that can still be changed, before `compile`."""
    graph = StateGraph(PanelState, Resources, input_schema=PanelInput, output_schema=PanelOutput)
    graph.add_node("extract_skills", extract_skills)
    # Deferred: a further round begins when every expert of the last one has answered.
    graph.add_node("recruit", recruit_experts, defer=True)
    # LangGraph finds the error parameter by its type, which its own annotation does not foresee.
    graph.add_node("reason", reason, input_schema=ExpertBatch, error_handler=keep_failure)  # pyright: ignore[reportCallIssue, reportArgumentType]
    graph.add_node("aggregate", aggregate, defer=True)

    graph.add_edge(START, "extract_skills")
    graph.add_edge("extract_skills", "recruit")
    graph.add_conditional_edges("recruit", ask_recruits, ["reason", "aggregate"])
    graph.add_conditional_edges("reason", go_on, ["recruit", "aggregate"])
    graph.add_edge("aggregate", END)
    return graph


def create_graph(
    **settings: Any,
) -> CompiledStateGraph[PanelState, Resources, PanelInput, PanelOutput]:
    """The compiled panel. `settings` go to `StateGraph.compile`; no checkpointer is built in.

    In a notebook it shows itself as a Mermaid diagram that JupyterLab draws; LangGraph's own display would
    send the graph to a remote service.

    Run it with `await graph.ainvoke({"questions": {...}}, context=Resources(pool=...))`.
    """
    compiled = build_graph().compile(**settings)
    compiled.__class__ = _LocallyDrawn
    return compiled


class _LocallyDrawn(CompiledStateGraph[PanelState, Resources, PanelInput, PanelOutput]):
    """A compiled graph that is drawn where it is shown."""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        drawn = self.get_graph().draw_mermaid()
        return {"text/plain": drawn, "text/markdown": f"```mermaid\n{drawn}\n```"}
