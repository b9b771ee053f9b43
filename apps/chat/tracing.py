"""Where that which a chat model does stands in a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from contextvars import Context, ContextVar
from typing import TypeAlias, TypeVar

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackManager,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, patch_config, set_config_context
from langchain_core.utils.uuid import uuid7

__all__ = ["RunManager", "begin_run", "below", "iterate_below", "running"]

T = TypeVar("T")
RunManager: TypeAlias = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None

_run: ContextVar[RunManager] = ContextVar("expertmix_run", default=None)


@contextmanager
def running(run_manager: RunManager) -> Generator[None]:
    """Remember a model's run, which LangChain does not tell its `_stream`."""
    before = _run.set(run_manager)
    try:
        yield
    finally:
        _run.reset(before)


def begin_run(config: RunnableConfig | None) -> tuple[RunnableConfig, RunManager]:
    """The config with an id of the run that LangChain will begin with it, and a manager of that run."""
    config = ensure_config(config)
    run_id = config["run_id"] = config.get("run_id") or uuid7()
    manager = CallbackManager.configure(
        config.get("callbacks"),
        inheritable_tags=config.get("tags"),
        inheritable_metadata=config.get("metadata"),
    )
    run = CallbackManagerForLLMRun(
        run_id=run_id,
        handlers=manager.handlers,
        inheritable_handlers=manager.inheritable_handlers,
        inheritable_tags=manager.inheritable_tags,
        inheritable_metadata=manager.inheritable_metadata,
    )
    return config, run


@contextmanager
def below(run_manager: RunManager) -> Generator[Context]:
    """A context in which runnables run below a chat model's run, with its inherited callbacks.

    Chat models have no children in LangChain, so their run managers make no callbacks for any. A pool looks
    for the parent of its spans here too.

    Args:
        run_manager: Of the model's run; where LangChain gave none, the run is that of `running`.
    """
    run_manager = run_manager or _run.get()
    child: BaseCallbackManager | None = None
    if run_manager is not None:
        is_async = isinstance(run_manager, AsyncCallbackManagerForLLMRun)
        make = AsyncCallbackManager if is_async else CallbackManager
        child = make(handlers=[], parent_run_id=run_manager.run_id)
        child.set_handlers(run_manager.inheritable_handlers)
        child.add_tags(run_manager.inheritable_tags)
        child.add_metadata(run_manager.inheritable_metadata)
    with set_config_context(patch_config(ensure_config(), callbacks=child)) as context:
        yield context


async def iterate_below(
    run_manager: RunManager, pieces: AsyncGenerator[T, None]
) -> AsyncGenerator[T, None]:
    """An asynchronous generator, each of whose steps is made in the context of `below`.

    A generator runs in the context of whoever asks for its next piece, so the context cannot just be set once.
    """

    async def step() -> T:
        return await anext(pieces)

    with below(run_manager) as context:
        async with aclosing(pieces):
            while True:
                task = asyncio.get_running_loop().create_task(step(), context=context)
                try:
                    piece = await task
                except StopAsyncIteration:
                    return
                yield piece
