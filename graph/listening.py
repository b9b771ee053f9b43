"""While an expert works: what its model goes through, told to whoever streams the graph.

Every sign of life is also a heartbeat, so that LangGraph's `idle_timeout` measures silence and not work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from contextlib import contextmanager

from langgraph.runtime import Runtime

from ..agents import PoolEvent
from .events import GraphEvent
from .state import Resources

__all__ = ["listen"]

STAGE = "reason"


@contextmanager
def listen(runtime: Runtime[Resources], expert: str, requests: int) -> Generator[None]:
    """Tell what happens to the expert's model, and how many of its replies have come.

    Args:
        runtime: Of the node that asks it.
        expert: Its alias.
        requests: How many replies are to come.
    """
    pool = runtime.context.pool
    weights = pool.weights_of(expert)
    here = asyncio.get_running_loop()
    came = 0

    def hear(event: PoolEvent) -> None:  # in the pool's thread
        if event.weights == weights and event.alias in (None, expert):
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
                here.call_soon_threadsafe(pass_on, event)

    def pass_on(event: PoolEvent) -> None:
        nonlocal came
        runtime.heartbeat()
        if event.kind == "finished" and event.stage == STAGE:
            came += event.number
            told = {"event": "expert_progress", "expert": expert, "replies": came, "of": requests}
            runtime.stream_writer(told)
        for told in _translate(event, expert):
            runtime.stream_writer(told)

    end = pool.watch(hear)
    try:
        yield
    finally:
        end()


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
