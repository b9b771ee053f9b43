"""One expert of a pool as a LangChain chat model."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import Field

from ...agents import Catalog, Pool
from ...agents.engines import Chunk, EngineError, Reply, Request
from ...retrieval import InputError
from .lazy_pool import LazyPool
from .messages import PROVIDER, to_chunk, to_last_chunk, to_message, to_turns
from .pump import iterate_here, run_in_context
from .structure import bind_structure, to_choice, to_functions
from .thinking import Thinking
from .together import TogetherModel
from .tracing import RunManager, iterate_below
from .wishes import SETTINGS, describe, read_most_calls, read_wishes

__all__ = ["ChatExpert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What an expert is asked."""

    alias: str
    request: Request
    most_calls: int | None
    """How many calls of tools are taken from its reply; None takes all."""

    def take(self, reply: Reply) -> Reply:
        """The reply as it was ordered.

        Raises:
            EngineError: it is none.
        """
        if reply.failure is not None:
            raise EngineError(reply.failure)
        return replace(reply, tool_calls=reply.tool_calls[: self.most_calls])


class ChatExpert(TogetherModel):
    """An expert of a pool, to be used wherever LangChain takes a chat model.

    `batch`, `abatch`, and `generate` of several lists are one call of the pool and so one batch of the
    engine, while every list keeps its own run, callbacks and place in the cache. Two exceptions: with a
    `rate_limiter`, lists are asked one by one as it lets them; with `max_concurrency`, so many at a time.

    Settings that are None are the expert's own in the pool file. `invoke(…, model="other")` asks another
    expert of the same pool; temperature, top_p, max_tokens, stop, seed, logprobs and top_logprobs can be
    given per call as well. An expert that fails raises `EngineError` with its one sentence.

    In a trace, what the pool does stands below the model's run. What was thought is told apart whole and
    streamed, but where the expert's chat template opens the thought in the prompt a stream gives it as text, closing
    mark and all, since nobody can tell before its end: use `invoke` there.

    Example:
        >>> from expertmix.apps.chat import ChatExpert
        >>> with ChatExpert(pool="examples/pool.yaml", model="smol") as llm:  # doctest: +SKIP
        ...     llm.invoke("What is the capital of France?").text
        'The capital of France is Paris.'

    Raises:
        InputError: there is no such pool file, or no such expert in it.
    """

    pool: LazyPool | Pool | Catalog | str | Path = Field(exclude=True, repr=False)
    """An open pool, which stays open; or a catalog or a pool file, of which a pool is opened at the first call
    and closed by `close`. Copies and bindings of a model share its pool. Two models that are made from one
    file have two pools, each with its own loads: give both an open `Pool`, or take the second as
    `first.model_copy(update={"model": …})`."""
    model: str
    """The expert's alias."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    """Strings that end the answer; those of a call come in their place."""
    seed: int | None = None
    logprobs: bool = False
    """Whether `response_metadata["logprobs"]` has each token's log-probability."""
    top_logprobs: int | None = None
    """The same with this many alternatives."""

    def __init__(self, **fields: Any) -> None:
        if "pool" in fields:
            fields["pool"] = LazyPool.of(fields["pool"])
        super().__init__(**fields)
        _ = self._lazy.catalog[self.model]

    @property
    def _lazy(self) -> LazyPool:
        if not isinstance(self.pool, LazyPool):  # a copy that was given another one
            self.pool = LazyPool.of(self.pool)
        return self.pool

    def close(self) -> None:
        """Close the pool if it was opened here. Safe to call twice."""
        self._lazy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def _llm_type(self) -> str:
        return "expertmix-expert"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        spec = self._lazy.catalog[self.model]
        own = {name: getattr(self, name) for name in SETTINGS}
        return {"model": self.model, **own, "expert": spec.model_dump(mode="json")}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = PROVIDER
        own = self._lazy.catalog[self.model].sampling
        params.setdefault("ls_temperature", own.temperature)
        params.setdefault("ls_max_tokens", own.max_tokens)
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        return describe(self._lazy.catalog[self.model])

    def _order(self, messages: list[BaseMessage], stop: list[str] | None, **wishes: Any) -> _Order:
        """What the pool is asked.

        Raises:
            InputError: unknown settings, an unknown expert, or a message that is no text.
        """
        alias = wishes.pop("model", None) or self.model
        own = {name: getattr(self, name) for name in SETTINGS}
        given = own | ({} if stop is None else {"stop": stop})
        wanted = read_wishes(self._lazy.catalog[alias], given | wishes)
        request = Request(id=uuid.uuid4().hex, messages=to_turns(messages))
        return _Order(
            alias=alias, request=replace(request, **wanted), most_calls=read_most_calls(wishes)
        )

    async def _ask(self, order: _Order, run_manager: RunManager) -> ChatResult:
        # Whom a rate limiter lets through is not held back for the others.
        alone = self.rate_limiter is not None
        reply = await self._ask_below(run_manager, order, alone=alone)
        message = to_message(order.take(reply), model_name=order.alias)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _answer_together(self, asked: Sequence[_Order]) -> list[Reply]:
        """The replies, in one call of the pool for each expert."""
        pool, replies = self._lazy.open(), dict[str, Reply]()
        for alias in dict.fromkeys(order.alias for order in asked):
            requests = [order.request for order in asked if order.alias == alias]
            for reply in await pool.generate(alias, requests, stage="chat"):
                replies[reply.request_id] = reply
        return [replies[order.request.id] for order in asked]

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run_in_context(self._ask(self._order(messages, stop, **kwargs), run_manager))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await self._ask(self._order(messages, stop, **kwargs), run_manager)

    async def _pieces(
        self, order: _Order, run_manager: RunManager
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        thinking = Thinking()
        pool, alias = self._lazy.open(), order.alias
        stream = cast("AsyncGenerator[Chunk]", pool.stream(alias, order.request))
        async with contextlib.aclosing(iterate_below(run_manager, stream)) as chunks:
            async for chunk in chunks:
                told = thinking.take(chunk.text)
                if chunk.reply is None:
                    thought = chunk.reasoning + told.reasoning
                    if told.text or thought:
                        piece = Chunk(text=told.text, reasoning=thought)
                        yield ChatGenerationChunk(message=to_chunk(piece))
                    continue
                reply, rest = order.take(chunk.reply), thinking.finish()
                if thought := told.reasoning + rest.reasoning:
                    yield ChatGenerationChunk(message=to_chunk(Chunk(reasoning=thought)))
                text = told.text + rest.text
                yield ChatGenerationChunk(message=to_last_chunk(reply, model_name=alias, text=text))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        order = self._order(messages, stop, **kwargs)
        yield from iterate_here(partial(self._pieces, order, run_manager))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        order = self._order(messages, stop, **kwargs)
        async with contextlib.aclosing(self._pieces(order, run_manager)) as pieces:
            async for piece in pieces:
                yield piece

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools on offer. Nothing is called here: calls are in `AIMessage.tool_calls`.

        Args:
            tools: Whatever LangChain takes as tools.
            tool_choice: `auto` (None, False), `any` or `required` (True), `none`, or the name of the tool
                that must be called.
            kwargs: Further settings of the call. With `parallel_tool_calls=False` the first call of a reply is
                kept alone.

        Raises:
            InputError: something is no function, or the chosen tool is not among them.
        """
        told = to_functions(tools)
        return self.bind(tools=told, tool_choice=to_choice(tool_choice, told), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with answers in a form; see `structure.Method`.

        Args:
            schema: A pydantic class, a TypedDict, a JSON Schema or an OpenAI function.
            include_raw: Whether to give `raw`, `parsed` and `parsing_error` instead of the object alone.
            method: `json_schema` constrains what is written to the schema.
            strict: Changes nothing: the schema is always kept.
            kwargs: None are known.

        Raises:
            InputError: there is no such method, or something unknown is asked for.
        """
        if kwargs:
            raise InputError(f"with_structured_output does not know {', '.join(sorted(kwargs))}")
        return bind_structure(self, schema, method=method, include_raw=include_raw, strict=strict)
