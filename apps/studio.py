"""What `langgraph.json` names: the panel for `langgraph dev`, LangGraph Studio and LangSmith Deployment.

The server asks for a graph whenever it runs one, so the pool outlives them: one per process, opened at the
first question and closed at the end. The environment says which one:

| variable | meaning |
|---|---|
| `EXPERTMIX_POOL` | pool file; by default `pool.yaml` here, else the built-in pool for laptops |
| `EXPERTMIX_PROFILE` | folder of a profile; without one, experts are drawn at random |
| `EXPERTMIX_K` | experts per question |
| `EXPERTMIX_STORE` | file in which answers are kept and found again; without one, everything is asked anew |
| `EXPERTMIX_APPROVAL` | 1: show the plan and wait before anybody is asked |
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from pathlib import Path
from typing import Any

from ..agents import AnswerStore, Catalog, Pool
from ..graph import Resources, create_graph, make_resources
from ..retrieval import InputError
from .chat_graph import create_chat_graph
from .pools import find_pool

__all__ = ["close_resources", "make_chat", "make_panel", "open_resources"]


async def make_chat() -> Any:
    """The panel over messages; see `create_chat_graph`.

    Raises:
        InputError: what the environment names is not there, or does not fit together.
    """
    resources = await asyncio.to_thread(open_resources)
    return create_chat_graph(resources, approval=_wants_approval())


async def make_panel() -> Any:
    """The panel itself: a batch of questions in, verdicts out.

    Raises:
        InputError: as `make_chat`.
    """
    resources = await asyncio.to_thread(open_resources)
    return create_graph(resources, approval=_wants_approval(), name="panel")


_opening = threading.Lock()  # functools.cache lets several threads make a first value each


def open_resources() -> Resources:
    """The process's panel. Nothing is loaded before a question comes.

    Raises:
        InputError: what the environment names is not there, or does not fit together.
    """
    with _opening:
        return _make_resources()


def close_resources() -> None:
    """Close the process's pool, if there is one; the next question opens another."""
    with _opening:
        if _make_resources.cache_info().currsize:
            _make_resources().pool.close()
            _make_resources.cache_clear()


@functools.cache
def _make_resources() -> Resources:
    named = os.environ.get("EXPERTMIX_POOL")
    kept = os.environ.get("EXPERTMIX_STORE")
    catalog = Catalog.load(find_pool(Path(named) if named else None))
    pool = Pool(catalog, store=AnswerStore(kept) if kept else None)
    profile = os.environ.get("EXPERTMIX_PROFILE") or None
    resources = make_resources(pool, k=_read_k(), profile=profile)
    pool.open()
    atexit.register(close_resources)
    return resources


def _read_k() -> int | None:
    said = os.environ.get("EXPERTMIX_K", "")
    if said and not said.isdecimal():
        raise InputError(f'EXPERTMIX_K is "{said}"; give the number of experts per question')
    return int(said) if said else None


def _wants_approval() -> bool:
    return os.environ.get("EXPERTMIX_APPROVAL", "0") not in ("", "0")
