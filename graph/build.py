"""The wiring, and nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from langgraph.cache.base import BaseCache
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime, get_runtime
from langgraph.types import RetryPolicy, TimeoutPolicy

from ..retrieval import InputError
from .approval import approve_plan
from .asking import RETRY
from .caching import CACHING, WithoutFailures
from .nodes import (
    aggregate,
    ask_recruits,
    extract_skills,
    go_on,
    keep_failure,
    reason,
    recruit_experts,
)
from .picture import show_locally
from .state import NO_RESOURCES, ExpertBatch, PanelInput, PanelOutput, PanelState, Resources

__all__ = ["build_graph", "create_graph"]

T = TypeVar("T", bound=Callable[..., Any])


def build_graph(
    resources: Resources | None = None,
    *,
    approval: bool = False,
    cached: bool = False,
    retry: RetryPolicy | None = RETRY,
    timeout: float | TimeoutPolicy | None = None,
) -> StateGraph[PanelState, Resources, PanelInput, PanelOutput]:
    """The panel as a graph that can still be changed, before `compile`.

    Args:
        resources: What the nodes work with. None takes it from the run's `context`; given here, the graph
            needs no context and fits into any other, whatever context that one has.
        approval: Show the plan of the first round to a person and wait; needs a checkpointer.
        cached: Give every batch of an expert a cache key of its own, and keep its answers under it.
        retry: When an expert of which nothing came is asked again; see `RetryableExpertError`.
        timeout: Of one attempt to ask an expert. What it had answered by then is lost with it, unless the
            pool has an answer store: `Resources.expert_seconds` keeps it. Loading, tokens and replies are
            heartbeats.
    """
    bind = functools.partial(_bind, resources)
    context = Resources if resources is None else None
    graph = StateGraph(PanelState, context, input_schema=PanelInput, output_schema=PanelOutput)
    graph.add_node("extract_skills", bind(extract_skills), metadata={"stage": "skills"})
    # Deferred: a further round begins when every expert of the last one has answered.
    graph.add_node("recruit", bind(recruit_experts), defer=True, metadata={"stage": "recruit"})
    # LangGraph finds the error parameter by its type, which its own annotation does not foresee.
    graph.add_node(  # pyright: ignore[reportCallIssue]
        "reason",
        bind(reason),
        input_schema=ExpertBatch,
        metadata={"stage": "reason"},
        retry_policy=retry,
        timeout=timeout,
        cache_policy=CACHING if cached else None,
        error_handler=bind(keep_failure),  # pyright: ignore[reportArgumentType]
    )
    graph.add_node("aggregate", bind(aggregate), defer=True, metadata={"stage": "aggregate"})
    last = "recruit"
    if approval:
        graph.add_node("approve", bind(approve_plan), metadata={"stage": "approve"})
        graph.add_edge("recruit", "approve")
        last = "approve"

    graph.add_edge(START, "extract_skills")
    graph.add_edge("extract_skills", "recruit")
    decide = functools.partial(_bind_edge, resources)
    graph.add_conditional_edges(last, decide(ask_recruits, cached=cached), ["reason", "aggregate"])
    graph.add_conditional_edges("reason", decide(go_on), ["recruit", "aggregate"])
    graph.add_edge("aggregate", END)
    return graph


def create_graph(
    resources: Resources | None = None,
    *,
    approval: bool = False,
    retry: RetryPolicy | None = RETRY,
    timeout: float | TimeoutPolicy | None = None,
    cache: BaseCache[Sequence[tuple[str, Any]]] | None = None,
    **settings: Any,
) -> CompiledStateGraph[PanelState, Resources, PanelInput, PanelOutput]:
    """The compiled panel. `settings` go to `StateGraph.compile`; no checkpointer is built in.

    In a notebook it draws itself; LangGraph's own display would send the graph to a remote service.

    Args:
        resources: See `build_graph`.
        approval: See `build_graph`.
        retry: See `build_graph`.
        timeout: See `build_graph`.
        cache: Where experts' answers are kept under a key of our own; failures are not.
        settings: `checkpointer`, `store`, `interrupt_before`, `name`, …

    Run it with `await graph.ainvoke({"questions": {...}}, context=Resources(pool=...))`.
    """
    cached = cache is not None
    graph = build_graph(resources, approval=approval, cached=cached, retry=retry, timeout=timeout)
    kept = None if cache is None else WithoutFailures(cache)
    return show_locally(graph.compile(cache=kept, **settings))


def _bind(resources: Resources | None, step: T) -> T:
    """A step of the graph that works with these resources instead of the run's context.

    LangGraph reads from a step's signature what it wants; the bound step keeps it.
    """
    if resources is None:
        return step

    @functools.wraps(step)
    async def bound_async(*given: Any, runtime: Runtime[Resources], **named: Any) -> Any:
        return await step(*given, **named, runtime=runtime.override(context=resources))

    @functools.wraps(step)
    def bound(*given: Any, runtime: Runtime[Resources], **named: Any) -> Any:
        return step(*given, **named, runtime=runtime.override(context=resources))

    return bound_async if inspect.iscoroutinefunction(step) else bound  # pyright: ignore[reportReturnType]


def _bind_edge(
    resources: Resources | None, edge: Callable[..., Any], **more: Any
) -> Callable[[Any], Awaitable[Any]]:
    """A condition of the graph with its runtime; `update_state` asks conditions too, and has none."""

    @functools.wraps(edge, assigned=("__module__", "__name__", "__doc__"))
    async def decide(state: Any) -> Any:
        runtime = _find_runtime(resources)
        decided = edge(state, runtime, **more)
        return await decided if inspect.isawaitable(decided) else decided

    del decide.__wrapped__  # LangGraph would read the condition's own signature
    return decide


def _find_runtime(resources: Resources | None) -> Runtime[Resources]:
    try:
        found: Runtime[Resources] | None = get_runtime(Resources)
    except (KeyError, RuntimeError):
        found = None
    runtime: Runtime[Any] = Runtime() if found is None else found
    if resources is not None:
        return runtime.override(context=resources)
    if runtime.context is None:
        raise InputError(NO_RESOURCES)
    return runtime
