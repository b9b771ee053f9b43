"""The words exchanged with an OpenAI-compatible server: bodies out, events and errors in.

Nothing here waits or connects. What a server says is untrusted: it is checked piece by piece, and a
piece of the wrong shape is as good as absent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, cast

from .base import Failure, Message, Reply, Request, TokenLogprob, ToolCall, Usage
from .tool_reading import call_id
from .wording import is_about_context, one_line

__all__ = [
    "MOST_BYTES",
    "Transcript",
    "WireError",
    "chat_body",
    "error_text",
    "joined_text",
    "listed_models",
    "read_events",
    "read_logprobs",
]

MOST_BYTES = 64 << 20
"""A server that sends more than this for one answer is broken or hostile."""


class WireError(Exception):
    """The server said something else than expected; the message goes on after its address."""

    def __init__(self, message: str, *, context: bool = False) -> None:
        super().__init__(message)
        self.context = context
        """Whether it complained that the prompt does not fit the context window."""


def chat_body(
    model: str, request: Request, *, stream: bool, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON body of one chat completion.

    Args:
        model: As the server names it.
        request: Its final `assistant` turn, if it has one, is continued: that takes two fields which
            vLLM and SGLang know and other servers may refuse.
        stream: Whether to ask for server-sent events.
        extra: Fields to add or replace; a value of None takes a field out.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [_turn(turn) for turn in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": dict(sampling.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.tools and request.tool_choice != "none":
        body["tools"] = [{"type": "function", "function": dict(tool)} for tool in request.tools]
        body["tool_choice"] = _tool_choice(request.tool_choice)
    if request.messages and request.messages[-1]["role"] == "assistant":
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= extra
    return {key: value for key, value in body.items() if value is not None}


def _turn(turn: Message) -> dict[str, Any]:
    calls = turn.get("tool_calls")
    if not calls:
        return {name: value for name, value in turn.items() if name != "tool_calls"}
    functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    told = [
        {"id": call["id"], "type": "function", "function": function}
        for call, function in zip(calls, functions, strict=True)
    ]
    return {"role": turn["role"], "content": turn["content"] or None, "tool_calls": told}


def _tool_choice(choice: str) -> str | dict[str, Any]:
    if choice in ("auto", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event, wherever the network cut the bytes.

    Lines end in LF or CR LF only: other separators that Python's `splitlines` knows (U+2028, form
    feed) may stand unescaped inside JSON.

    Raises:
        WireError: the server does not stop.
    """
    rest, data, total = b"", list[bytes](), 0
    async for chunk in chunks:
        total += len(chunk)
        if total > MOST_BYTES:
            raise WireError(f"sent more than {MOST_BYTES >> 20} MiB")
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].strip())
            elif not line.strip() and data:
                yield b"\n".join(data).decode("utf-8", "replace")
                data = []
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data:
        yield b"\n".join(data).decode("utf-8", "replace")


class Transcript:
    """What has been received of one answer: a whole completion, or its events one after another."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        """In the order in which they began."""
        self._open: dict[int, int] = {}
        """The call that pieces of an index go on with."""
        self._logprobs: list[TokenLogprob] = []
        self._usage = Usage()
        self._reason: object = None
        self._seen = False

    @property
    def finished(self) -> bool:
        """Whether the server has said why the answer ended."""
        return self._reason is not None

    def add(self, data: str) -> tuple[str, str]:
        """Take in one JSON object; returns the text that it added, and what the model thought.

        Raises:
            WireError: it is not JSON, no completion, or an error that the server reports.
        """
        event = _load_object(data)
        if event.get("error") is not None:
            message, context = error_text(data)
            raise WireError(f"reported: {message}", context=context)
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise WireError(f'sent JSON without "choices": {one_line(data, limit=80)}')
        self._seen = self._seen or bool(choices)
        self._usage = _read_usage(event.get("usage")) or self._usage
        for choice in (_object(item) for item in cast("list[object]", choices)):
            if choice.get("index", 0) == 0:
                return self._add_choice(choice)
        return "", ""

    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            WireError: there was none.
        """
        if not self._seen:
            raise WireError("sent no answer")
        if self._reason == "content_filter":
            message = "the server's content filter withheld the answer"
            return Reply.failed(self._request, Failure(kind="refused", message=message))
        return Reply(
            request_id=self._request.id,
            text="".join(self._texts),
            tool_calls=tuple(self._tool_calls()),
            reasoning="".join(self._thoughts),
            finish="length" if self._reason == "length" else "stop",
            usage=self._usage,
            logprobs=tuple(self._logprobs),
        )

    def _add_choice(self, choice: Mapping[str, Any]) -> tuple[str, str]:
        # A streamed choice carries a "delta", a whole one a "message". What a reasoning model thought is
        # "reasoning_content", or with OpenRouter and newer vLLM "reasoning".
        piece = _object(choice.get("delta") or choice.get("message"))
        text = joined_text(piece.get("content"))
        thought = joined_text(piece.get("reasoning_content")) or joined_text(piece.get("reasoning"))
        self._texts.append(text)
        self._thoughts.append(thought)
        for place, part in enumerate(_objects(piece.get("tool_calls"))):
            self._add_call(place, part)
        self._logprobs += read_logprobs(_object(choice.get("logprobs")).get("content"))
        self._reason = choice.get("finish_reason") or self._reason
        return text, thought

    def _add_call(self, place: int, part: Mapping[str, Any]) -> None:
        """A piece of a tool call, or a whole one.

        Pieces that belong together have the same index. Some servers repeat it for every call, or leave
        it out: a piece with another id begins another call all the same.
        """
        index, function = part.get("index"), _object(part.get("function"))
        index = place if index is None else index
        if not isinstance(index, int):
            return
        named = joined_text(part.get("id"))
        key = self._open.get(index)
        if key is None or (named and self._calls[key]["id"] not in ("", named)):
            key = self._open[index] = len(self._calls)
        call = self._calls.setdefault(key, {"id": "", "name": "", "arguments": ""})
        call["id"] = call["id"] or named
        call["name"] = call["name"] or joined_text(function.get("name"))
        arguments = function.get("arguments")
        if isinstance(arguments, dict):  # some servers forget that they are text
            arguments = json.dumps(arguments)
        call["arguments"] += joined_text(arguments)

    def _tool_calls(self) -> Iterator[ToolCall]:
        for place, (_, call) in enumerate(sorted(self._calls.items())):
            if call["name"]:
                yield ToolCall(
                    id=call["id"] or call_id(self._request, place),
                    name=call["name"],
                    arguments=call["arguments"] or "{}",
                )


def joined_text(content: object) -> str:
    """The text of a message's content, which is a string or a list of blocks."""
    if isinstance(content, list):
        blocks = (block for block in cast("list[object]", content))
        return "".join(
            joined_text(block if isinstance(block, str) else _block_text(_object(block)))
            for block in blocks
        )
    if not isinstance(content, str):
        return ""
    # JSON may spell half of a surrogate pair, which no file or socket takes later.
    return content.encode("utf-8", "replace").decode("utf-8")


def read_logprobs(content: object) -> list[TokenLogprob]:
    """Log-probabilities as OpenAI's `logprobs.content` has them."""
    found: list[TokenLogprob] = []
    for entry in _objects(content):
        if (read := _token(entry)) is not None:
            top = (_token(item) for item in _objects(entry.get("top_logprobs")))
            found.append(
                TokenLogprob(token=read[0], logprob=read[1], top=tuple(t for t in top if t))
            )
    return found


def error_text(text: str) -> tuple[str, bool]:
    """The server's own message in one line, and whether it is about the context window."""
    try:
        event = _load_object(text)
    except WireError:
        return one_line(text), is_about_context(text)
    # vLLM's parameter errors, OpenAI's code and llama.cpp's type all say it in other words.
    codes = json.dumps([_object(event.get("error")).get(key) for key in ("code", "type")])
    message = _message_of(event)
    return message, is_about_context(message) or is_about_context(codes)


def listed_models(body: str) -> dict[str, int | None]:
    """The models that a server lists, with their context lengths where it says them (vLLM does).

    Raises:
        WireError: this is no list of models.
    """
    listing = _load_object(body)
    if not isinstance(listing.get("data"), list):
        raise WireError("sent no list of models")
    lengths = {str(m["id"]): m.get("max_model_len") for m in _objects(listing["data"]) if "id" in m}
    return {name: n if isinstance(n, int) and n > 0 else None for name, n in lengths.items()}


def _message_of(event: Mapping[str, Any]) -> str:
    error: object = event.get("error", event)
    if isinstance(error, str):
        return one_line(error)
    details = _object(error)
    said = details.get("message") or event.get("message") or event.get("detail")
    return one_line(said if isinstance(said, str) else json.dumps(said or error))


def _load_object(data: str) -> dict[str, Any]:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        raise WireError(f"sent no JSON: {one_line(data, limit=80)!r}") from None
    if not isinstance(value, dict):
        raise WireError(f"sent JSON that is no object: {one_line(data, limit=80)}")
    return cast("dict[str, Any]", value)


def _read_usage(value: object) -> Usage | None:
    usage = _object(value)
    if not usage:
        return None
    details = _object(usage.get("prompt_tokens_details"))
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens")),
    )


def _token(entry: Mapping[str, Any]) -> tuple[str, float] | None:
    token, logprob = entry.get("token"), entry.get("logprob")
    if not isinstance(token, str) or not isinstance(logprob, int | float):
        return None
    return joined_text(token), float(logprob)


def _block_text(block: Mapping[str, Any]) -> object:
    return block.get("text") if block.get("type", "text") in ("text", "output_text") else ""


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [_object(item) for item in items]


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
