"""Chat models that answer a whole batch at once."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from .pump import run_in_context
from .rounds import Round
from .tracing import RunManager, begin_run, below, running

__all__ = ["TogetherModel", "insist"]

T = TypeVar("T")


class TogetherModel(BaseChatModel):
    """A chat model of which `batch`, `abatch`, and `generate` of several lists are answered in one go.

    Every input keeps its own run, callbacks and place in the cache (see `rounds.py`). `max_concurrency` of a
    config bounds how many inputs are answered together. In a trace, what is done for all of them stands below the
    last one.
    """

    @abstractmethod
    async def _answer_together(self, asked: Sequence[Any]) -> Sequence[Any]:
        """Answer what `_ask_below` was given, an exception in the place of what cannot be answered."""

    async def _ask_below(self, run_manager: RunManager, asked: Any, *, alone: bool = False) -> Any:
        """The answer, found below the run in traces.

        Args:
            run_manager: Of the model's run.
            asked: See `_answer_together`.
            alone: Whether not to wait for the others of the round in which this is asked, if there is one.
        """
        with below(run_manager) as context:
            work = self._ask_together(asked, None if alone else Round.of(self))
            return await asyncio.get_running_loop().create_task(work, context=context)

    async def _ask_together(self, asked: Any, together: Round[Any, Any] | None) -> Any:
        if together is not None:
            return await together.ask(asked)
        [answer] = insist(await self._answer_together([asked]))
        return answer

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer message lists together; see the base class."""
        if len(messages) < 2:
            return super().generate(messages, stop, callbacks, **kwargs)
        return run_in_context(self.agenerate(messages, stop, callbacks, **kwargs))

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer message lists together; see the base class."""
        ask = super().agenerate
        if len(messages) < 2:
            return await ask(messages, stop, callbacks, **kwargs)
        first = kwargs.pop("run_id", None)  # LangChain gives it to the first list
        ids = [first, *[None] * (len(messages) - 1)]
        works = [
            partial(ask, [one], stop, callbacks, run_id=run_id, **kwargs)
            for one, run_id in zip(messages, ids, strict=True)
        ]
        results = insist(await self._begin_round().run(works))
        return LLMResult(
            generations=[generations for result in results for generations in result.generations],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
            run=[run for result in results for run in result.run or ()],
        )

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer inputs together; each is a run of its own for callbacks and caches."""
        work = self.abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return run_in_context(work)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """As `batch`."""
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        works = [
            partial(self.ainvoke, one, settings, **kwargs)
            for one, settings in zip(inputs, configs, strict=True)
        ]
        size = configs[0].get("max_concurrency") or len(works)
        given: list[AIMessage | BaseException] = []
        for start in range(0, len(works), size):
            given += await self._begin_round().run(works[start : start + size])
            if not return_exceptions:
                insist(given)
        return cast("list[AIMessage]", given)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As the base class, and in a trace everything stands below the model's run."""
        config, run = begin_run(config)
        pieces = super().stream(input, config, stop=stop, **kwargs)
        with running(run):  # for the first piece only, with which all begins
            first = next(pieces, None)
        if first is not None:
            yield first
            yield from pieces

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As `stream`."""
        config, run = begin_run(config)
        pieces = cast(
            "AsyncGenerator[AIMessageChunk]", super().astream(input, config, stop=stop, **kwargs)
        )
        async with aclosing(pieces):
            with running(run):
                first = await anext(pieces, None)
            if first is not None:
                yield first
                async for piece in pieces:
                    yield piece

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with running(run_manager):  # it may stream for whoever listens to the run
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with running(run_manager):
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def _begin_round(self) -> Round[Any, Any]:
        return Round(self, self._answer_together)


def insist(given: Sequence[T | BaseException]) -> list[T]:
    """All answers, or the first error among them raised."""
    for told in given:
        if isinstance(told, BaseException):
            raise told
    return cast("list[T]", list(given))
