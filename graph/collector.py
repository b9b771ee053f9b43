"""Garbage collection while a large batch runs."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["few_collections"]

LARGE = 256
"""Questions; smaller batches are not worth it."""
THRESHOLD = 50_000
"""New containers between two collections at least, where Python's own default is 700."""
PER_QUESTION = 10
"""And as many for each question of the batch, so that its size does not change how often that is."""


@contextmanager
def few_collections(questions: int) -> Generator[None]:
    """Look for garbage less often while a batch of so many questions is in the graph.

    A batch is built up out of rows that all stay until its end, so a collection finds nothing and walks
    over everything again and again: a third of the graph's whole cost at 10,000 questions
    (`benchmarks/graph_overhead.py`). Collections still happen. If two batches overlap, the first to end
    sets Python's threshold back, which only costs the other a little time.
    """
    before = gc.get_threshold()
    if questions < LARGE or not 0 < before[0] < THRESHOLD:
        yield
        return
    gc.set_threshold(max(THRESHOLD, PER_QUESTION * questions), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
