"""Chat models that answer a whole batch at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, cast

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from .pump import run_in_context
from .rounds import Round

__all__ = ["TogetherModel", "insist"]

T = TypeVar("T")


class TogetherModel(BaseChatModel):
    """A chat model of which `batch`, `abatch`, and `generate` of several lists are answered in one go.

    Every input keeps its own run, callbacks and place in the cache (see `rounds.py`). `max_concurrency` of a
    config bounds how many inputs are answered together.
    """

    @abstractmethod
    async def _answer_together(self, asked: Sequence[Any]) -> Sequence[Any]:
        """Answer what `_ask_together` was given, an exception in the place of what cannot be answered."""

    async def _ask_together(self, asked: Any) -> Any:
        """The answer, out of the round in which this is asked; by itself where there is none."""
        together = Round.of(self)
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

    def _begin_round(self) -> Round[Any, Any]:
        return Round(self, self._answer_together)


def insist(given: Sequence[T | BaseException]) -> list[T]:
    """All answers, or the first error among them raised."""
    for told in given:
        if isinstance(told, BaseException):
            raise told
    return cast("list[T]", list(given))
