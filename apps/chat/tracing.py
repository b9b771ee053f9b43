"""Where a panel's own runs stand in a trace."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import Context

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackManager,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.runnables.config import ensure_config, patch_config, set_config_context

__all__ = ["below"]


@contextmanager
def below(
    run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None,
) -> Generator[Context]:
    """A context in which runnables run below a chat model's run, with its inherited callbacks.

    Chat models have no children in LangChain, so their run managers make no callbacks for any.
    """
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
