"""Any LangChain chat model as an engine."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import httpx

from ...retrieval import InputError
from .base import Chunk, Failure, Load, Message, Reply, Request, ToolCall, Usage
from .in_flight import InFlight, OnText
from .openai_wire import joined_text, read_logprobs
from .tool_reading import call_id
from .wording import is_about_context, one_line

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel, LanguageModelInput
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.runnables import Runnable

__all__ = ["ChatModelEngine"]

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_tokens": ("max_tokens", "num_predict", "max_output_tokens", "max_completion_tokens"),
    "seed": ("seed",),
}
"""Our names for what providers' classes call by several."""
LENGTH = frozenset({"length", "max_tokens", "model_length"})
UNREACHED = frozenset({"APIConnectionError", "TransportError"})
"""Exceptions of providers' own libraries, by name: none of these libraries is imported here."""


class ChatModelEngine:
    """A LangChain `BaseChatModel`, asked through `ainvoke` and `astream`.

    Sampling reaches the model through the fields that its class declares: each request is asked of
    a copy in which `temperature`, `top_p`, `max_tokens` (or `num_predict`, `max_output_tokens`) and
    `seed` are replaced. A class without such a field keeps its own behaviour, as does every setting
    that is not in `settings`. `stop` is passed as LangChain does. A JSON schema goes through
    `with_structured_output`, and tools through `bind_tools`. Options, adapters and a final assistant turn are refused, since
    LangChain has no way to ask for them. Usage is what the model reports, else 0.

    Retries and timeouts are the chat model's own (`max_retries`, `timeout`).

    Args:
        name: For messages.
        model: The chat model.
        concurrency: Requests at one time.
        settings: Which of temperature, top_p, max_tokens, seed to hand on; `()` for a model that is
            to be left as it was built.
    """

    def __init__(
        self,
        name: str,
        model: BaseChatModel,
        *,
        concurrency: int = 8,
        settings: Collection[str] = tuple(SETTINGS),
    ) -> None:
        self.name = name
        self._model = model
        self._fields = _fields_of(model, settings)
        self._in_flight = InFlight(name, self._answer, concurrency=concurrency)

    @classmethod
    def from_name(
        cls, model: str, *, name: str | None = None, concurrency: int = 8
    ) -> ChatModelEngine:
        """Build a chat model with LangChain's `init_chat_model`.

        Args:
            model: `provider:model`, such as `ollama:llama3.2`.
            name: For messages; default: `model`.
            concurrency: Requests at one time.

        Raises:
            InputError: `langchain` or the provider's package is not installed, or the provider does
                not know what was asked for.
        """
        try:
            from langchain.chat_models import (  # pyright: ignore[reportMissingImports]
                init_chat_model,
            )
        except ImportError:
            raise InputError(
                f'the chat model "{model}" needs langchain: pip install langchain, and the package '
                f"of its provider"
            ) from None
        try:
            built = init_chat_model(model)
        except Exception as error:  # providers check keys and settings in their own ways
            raise InputError(f'no chat model "{model}": {one_line(error)}') from None
        return cls(name or model, built, concurrency=concurrency)

    async def start(self) -> Load:
        """Nothing is loaded: the chat model exists already."""
        self._in_flight.open()
        return Load()

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Answer all requests; replies come in the order of the requests."""
        return await self._in_flight.answer_all(requests, on_reply)

    def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answer one request piece by piece."""
        return self._in_flight.stream(request)

    async def close(self) -> None:
        """Abort what is in flight; the chat model is its owner's. Safe to call twice."""
        await self._in_flight.close()

    async def _answer(self, request: Request, on_text: OnText | None) -> Reply:
        refusal = _refuse(request)
        if refusal is not None:
            return Reply.failed(request, refusal)
        try:
            model = self._with_sampling(request, stream=on_text is not None)
            asked = _with_tools(model, request)
            if isinstance(asked, Failure):
                return Reply.failed(request, asked)
            if request.sampling.json_schema is not None:
                reply = await _ask_structured(model, request)
            elif on_text is not None:
                return await _stream(asked, request, on_text)
            else:
                reply = _read(request, await asked.ainvoke(_turns(request), **_stop(request)))
        except Exception as error:  # a provider may raise anything; it is one request's failure
            return Reply.failed(request, _explain(self.name, error))
        if on_text is not None and reply.text:
            on_text(reply.text)
        return reply

    def _with_sampling(self, request: Request, *, stream: bool) -> BaseChatModel:
        sampling = request.sampling
        changes = {field: getattr(sampling, ours) for ours, field in self._fields.items()}
        declared = type(self._model).model_fields
        if sampling.logprobs is not None and "top_logprobs" in declared:
            changes |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if stream and "stream_usage" in declared:  # without it, ChatOpenAI streams no usage
            changes["stream_usage"] = True
        return self._model.model_copy(update=changes) if changes else self._model


def _fields_of(model: BaseChatModel, settings: Collection[str]) -> dict[str, str]:
    """The model's own name of each setting that is to be handed on."""
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise ValueError(f"no setting {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    declared = type(model).model_fields
    named = {ours: next((n for n in SETTINGS[ours] if n in declared), None) for ours in settings}
    return {ours: field for ours, field in named.items() if field is not None}


def _refuse(request: Request) -> Failure | None:
    if request.options:
        message = "a LangChain chat model cannot score options; ask it to write an answer"
    elif request.adapter is not None:
        message = f'a LangChain chat model has no adapters (asked for "{request.adapter}")'
    elif request.messages and request.messages[-1]["role"] == "assistant":
        message = "a LangChain chat model cannot continue an assistant's turn; end with the user's"
    elif request.sampling.json_schema is not None and _offers_tools(request):
        message = "a LangChain chat model cannot be given tools and a JSON schema in one request"
    else:
        return None
    return Failure(kind="refused", message=message)


def _offers_tools(request: Request) -> bool:
    return bool(request.tools) and request.tool_choice != "none"


def _with_tools(
    model: BaseChatModel, request: Request
) -> Runnable[LanguageModelInput, AIMessage] | Failure:
    """The model with the request's tools, where it takes any."""
    if not _offers_tools(request):
        return model
    tools = [{"type": "function", "function": dict(tool)} for tool in request.tools]
    # Of `any`, all providers' classes make what their servers call it.
    choice = {"auto": None, "required": "any"}.get(request.tool_choice, request.tool_choice)
    try:
        return model.bind_tools(tools, **({} if choice is None else {"tool_choice": choice}))
    except NotImplementedError:
        message = f"{type(model).__name__} takes no tools; ask it without"
        return Failure(kind="refused", message=message)


def _turns(request: Request) -> list[Any]:
    return [_turn(turn) for turn in request.messages]


def _turn(turn: Message) -> Any:
    from langchain_core.messages import AIMessage, ToolMessage
    from langchain_core.output_parsers.openai_tools import parse_tool_calls

    if turn["role"] == "tool":
        return ToolMessage(turn["content"], tool_call_id=turn.get("tool_call_id", ""))
    calls = turn.get("tool_calls")
    if not calls:
        return {"role": turn["role"], "content": turn["content"]}
    read: list[Any] = []
    spoilt: list[Any] = []
    for call in calls:
        function = {"name": call["name"], "arguments": call["arguments"] or "{}"}
        try:
            read += parse_tool_calls([{"id": call["id"], "function": function}], return_id=True)
        except ValueError as error:
            arguments = call["arguments"]
            spoilt.append(
                {
                    "type": "invalid_tool_call",
                    "id": call["id"],
                    "name": call["name"],
                    "args": arguments,
                    "error": str(error),
                }
            )
    return AIMessage(turn["content"], tool_calls=read, invalid_tool_calls=spoilt)


def _stop(request: Request) -> dict[str, Any]:
    return {"stop": list(request.sampling.stop)} if request.sampling.stop else {}


async def _stream(
    model: Runnable[LanguageModelInput, AIMessage], request: Request, on_text: OnText
) -> Reply:
    whole: BaseMessage | None = None
    async for chunk in model.astream(_turns(request), **_stop(request)):
        # Chunks add up to one message with its usage and its reason to finish.
        whole = chunk if whole is None else cast("BaseMessage", whole + chunk)
        text, thought = joined_text(chunk.content), _thought(chunk)
        if text or thought:
            on_text(text, thought)
    if whole is None:
        return Reply(request_id=request.id)
    return _read(request, whole)


async def _ask_structured(model: BaseChatModel, request: Request) -> Reply:
    # OpenAI's and the tool-calling implementations need a name for the schema.
    schema = {"title": "answer", **(request.sampling.json_schema or {})}
    try:
        structured = model.with_structured_output(schema, include_raw=True)
    except NotImplementedError:
        message = f"{type(model).__name__} cannot be held to a JSON schema"
        return Reply.failed(request, Failure(kind="refused", message=message))
    answer = cast("dict[str, Any]", await structured.ainvoke(_turns(request), **_stop(request)))
    reply = _read(request, answer["raw"])
    if reply.text or answer["parsed"] is None:
        return reply
    parsed = answer["parsed"]  # from a tool call, which leaves no text
    text = json.dumps(parsed if isinstance(parsed, dict) else parsed.model_dump(mode="json"))
    return Reply(request_id=reply.request_id, text=text, finish=reply.finish, usage=reply.usage)


def _read(request: Request, message: BaseMessage) -> Reply:
    said = cast("dict[str, Any]", message.response_metadata)
    reasons = (said.get(key) for key in ("finish_reason", "stop_reason", "done_reason"))
    cut = any(isinstance(reason, str) and reason.lower() in LENGTH for reason in reasons)
    logprobs = cast("dict[str, Any]", said.get("logprobs") or {})
    return Reply(
        request_id=request.id,
        text=joined_text(message.content),
        tool_calls=tuple(_read_calls(request, cast("AIMessage", message))),
        reasoning=_thought(message),
        finish="length" if cut else "stop",
        usage=_read_usage(cast("AIMessage", message)),
        logprobs=tuple(read_logprobs(logprobs.get("content"))),
    )


def _thought(message: BaseMessage) -> str:
    """What the model thought, where its class tells that apart."""
    if isinstance(message.content, str) and not message.additional_kwargs:
        return ""
    blocks = cast("list[dict[str, Any]]", message.content_blocks)
    return "".join(
        joined_text(block.get("reasoning")) for block in blocks if block["type"] == "reasoning"
    )


def _read_calls(request: Request, message: AIMessage) -> Iterator[ToolCall]:
    read = [(call, json.dumps(call["args"])) for call in getattr(message, "tool_calls", ())]
    spoilt = [(call, call["args"] or "") for call in getattr(message, "invalid_tool_calls", ())]
    for place, (call, arguments) in enumerate([*read, *spoilt]):
        if name := call["name"]:
            id_ = call["id"] or call_id(request, place)
            yield ToolCall(id=id_, name=name, arguments=arguments)


def _read_usage(message: AIMessage) -> Usage:
    usage = getattr(message, "usage_metadata", None)
    if usage is None:
        return Usage()
    return Usage(
        prompt_tokens=usage["input_tokens"],
        completion_tokens=usage["output_tokens"],
        cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0) or 0,
    )


def _explain(name: str, error: Exception) -> Failure:
    reason = one_line(error) or "no reason given"
    message = f'chat model "{name}" raised {type(error).__name__}: {reason}'
    if is_about_context(str(error)):
        return Failure(kind="context", message=message)
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return Failure(kind="address", message=message, retryable=status == 429 or status >= 500)
    names = {cls.__name__ for cls in type(error).__mro__}
    if (
        isinstance(error, httpx.TransportError | ConnectionError | TimeoutError)
        or names & UNREACHED
    ):
        return Failure(kind="address", message=message, retryable=True)
    return Failure(kind="engine", message=message)
