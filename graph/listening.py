"""While an expert works: what its model goes through, told to whoever streams the graph.

Every sign of life is also a heartbeat, so that LangGraph's `idle_timeout` measures silence and not work.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Generator
from contextlib import contextmanager

from langgraph.runtime import Runtime

from ..agents import PoolEvent
from ..agents.engines import Reply
from .events import GraphEvent
from .state import Resources

__all__ = ["listen"]

STAGE = "reason"
MOST_REPORTS = 100

_asking: contextvars.ContextVar[object | None] = contextvars.ContextVar("asking", default=None)
"""Which asking the present task belongs to; the pool takes it along into its own thread."""


@contextmanager
def listen(
    runtime: Runtime[Resources], expert: str, requests: int
) -> Generator[Callable[[Reply], None]]:
    """Tell what happens to the expert's model, and how many of its replies have come.

    Args:
        runtime: Of the node that asks it.
        expert: Its alias.
        requests: How many replies are to come.

    Yields:
        What is to be called, in this event loop, with each reply.
    """
    pool = runtime.context.pool
    weights = pool.weights_of(expert)
    here = asyncio.get_running_loop()
    # LangGraph finds the stream of this run in the context, which the pool's thread does not share.
    mine = contextvars.copy_context()
    token = object()
    step = -(-requests // MOST_REPORTS)
    came = 0

    def hear(event: PoolEvent) -> None:  # in the pool's thread
        if event.weights != weights or event.alias not in (None, expert):
            return
        if event.kind == "queued" and _asking.get() is not token:
            return  # of another run that asks the same expert
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
            here.call_soon_threadsafe(pass_on, event, context=mine)

    def pass_on(event: PoolEvent) -> None:
        runtime.heartbeat()
        for told in _translate(event, expert):
            runtime.stream_writer(told)

    def count(_: Reply) -> None:
        nonlocal came
        came += 1
        runtime.heartbeat()
        if came % step == 0 or came == requests:
            told: GraphEvent = {
                "event": "expert_progress",
                "expert": expert,
                "replies": came,
                "of": requests,
            }
            mine.run(runtime.stream_writer, told)

    before = _asking.set(token)
    end = pool.watch(hear)
    try:
        yield count
    finally:
        end()
        _asking.reset(before)


def _translate(event: PoolEvent, expert: str) -> list[GraphEvent]:
    weights, device = event.weights, event.device
    match event.kind:
        case "queued" if event.stage == STAGE:
            return [{"event": "expert_queued", "expert": expert, "requests": event.number}]
        case "loading":
            told: list[GraphEvent] = []
            if event.previous:
                told.append(
                    {
                        "event": "pool_swap",
                        "expert": expert,
                        "weights": weights,
                        "previous": event.previous,
                        "device": device,
                    }
                )
            told.append(
                {
                    "event": "expert_loading",
                    "expert": expert,
                    "weights": weights,
                    "device": device,
                    "way": event.way,
                }
            )
            return told
        case "ready":
            return [
                {
                    "event": "expert_ready",
                    "expert": expert,
                    "weights": weights,
                    "device": device,
                    "seconds": event.seconds,
                }
            ]
        case "tokens":
            return [
                {
                    "event": "expert_tokens",
                    "expert": expert,
                    "tokens": event.number,
                    "seconds": event.seconds,
                }
            ]
        case "died" | "failed":
            return [{"event": "pool_trouble", "expert": expert, "message": event.message}]
        case _:
            return []
