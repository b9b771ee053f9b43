"""Ending a graph in good order: what is being asked is finished and checkpointed, the rest waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from langgraph.runtime import RunControl

__all__ = ["drain_on_signal"]


@contextmanager
def drain_on_signal(*signals: signal.Signals) -> Generator[RunControl]:
    """On SIGTERM (or the signals given) let a graph end after its present step.

    The graph raises `langgraph.errors.GraphDrained`; with a checkpointer, `ainvoke(None, config)` goes on
    where it ended. A second signal acts as it did before. In the main thread only, as Python has it.

    Yields:
        What goes to `graph.ainvoke(…, control=…)`.

    Raises:
        RuntimeError: not the main thread.

    Example:
        >>> with drain_on_signal() as control:  # doctest: +SKIP
        ...     await graph.ainvoke(questions, config, context=resources, control=control)
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("signals reach the main thread only: use drain_on_signal there")
    control = RunControl()
    watched = signals or (signal.SIGTERM,)
    before = {number: signal.getsignal(number) for number in watched}

    def drain(number: int, _: FrameType | None) -> None:
        control.request_drain(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    for number in watched:
        signal.signal(number, drain)
    try:
        yield control
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
