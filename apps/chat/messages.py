"""LangChain's messages in our words, and our replies as LangChain's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from ...agents.engines import Chunk, Message, Reply, TokenLogprob, ToolCall, Usage
from ...retrieval import InputError
from .thinking import Thinking

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.messages.content import InvalidToolCall
    from langchain_core.messages.tool import ToolCall as LangChainToolCall

__all__ = [
    "PROVIDER",
    "to_chunk",
    "to_last_chunk",
    "to_message",
    "to_single_chunk",
    "to_turns",
]

PROVIDER = "expertmix"
"""What `response_metadata["model_provider"]` says."""

Role = Literal["system", "user", "assistant"]
ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "system": "system",
    "developer": "system",
    "ai": "assistant",
    "assistant": "assistant",
}
TEXTS = frozenset({"text", "text-plain"})
UNSPOKEN = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking"}
    | {"redacted_thinking", "function_call", "non_standard"}
)
"""Blocks of an assistant's turn that are told elsewhere, or that no model is told again."""


def to_turns(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """What engines read: text, tool calls and their results.

    Names of speakers and what was thought in earlier turns are left out.

    Raises:
        InputError: a message is not text (an image, say), or of a kind that is no turn of a chat.
    """
    return tuple(_turn(message) for message in messages)


def to_message(reply: Reply, *, model_name: str) -> AIMessage:
    """A reply without failure as LangChain has it.

    Tool calls whose arguments are no JSON object are `invalid_tool_calls`. What was thought, in the reply
    or at the head of its text between `<think>` marks, is `additional_kwargs["reasoning_content"]`, of
    which LangChain makes a content block.

    Args:
        reply: What the expert said.
        model_name: Its alias.
    """
    from langchain_core.messages import AIMessage

    thought, text = Thinking.split(reply.text)
    calls, invalid = _read_calls(reply.tool_calls)
    return AIMessage(
        content=text,
        additional_kwargs=_reasoning(reply.reasoning or thought),
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=_usage(reply.usage),
        response_metadata=_metadata(reply, model_name),
    )


def to_chunk(chunk: Chunk) -> AIMessageChunk:
    """A piece of a streamed answer: text and what was thought."""
    from langchain_core.messages import AIMessageChunk

    return AIMessageChunk(content=chunk.text, additional_kwargs=_reasoning(chunk.reasoning))


def to_last_chunk(reply: Reply, *, model_name: str, text: str = "") -> AIMessageChunk:
    """What ends a stream: tool calls, usage and metadata.

    Args:
        reply: The whole reply.
        model_name: The expert's alias.
        text: What has not been streamed of it.
    """
    from langchain_core.messages import AIMessageChunk
    from langchain_core.messages.tool import tool_call_chunk

    return AIMessageChunk(
        content=text,
        tool_call_chunks=[
            tool_call_chunk(name=call["name"], args=call["arguments"], id=call["id"], index=place)
            for place, call in enumerate(reply.tool_calls)
        ],
        usage_metadata=_usage(reply.usage),
        response_metadata=_metadata(reply, model_name),
        chunk_position="last",
    )


def to_single_chunk(message: AIMessage) -> AIMessageChunk:
    """A whole message as the only piece of a stream."""
    from langchain_core.messages import AIMessageChunk
    from langchain_core.messages.tool import tool_call_chunk

    calls = [(call["name"], json.dumps(call["args"]), call["id"]) for call in message.tool_calls]
    spoilt = [(call["name"], call["args"], call["id"]) for call in message.invalid_tool_calls]
    return AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        tool_call_chunks=[
            tool_call_chunk(name=name, args=args, id=id_, index=at)
            for at, (name, args, id_) in enumerate([*calls, *spoilt])
        ],
        chunk_position="last",
    )


def _turn(message: BaseMessage) -> Message:
    from langchain_core.messages import AIMessage, ChatMessage, ToolMessage

    if isinstance(message, ToolMessage):
        content = _text(message, "tool")
        return Message(role="tool", content=content, tool_call_id=message.tool_call_id)
    kind = message.role if isinstance(message, ChatMessage) else message.type
    role = ROLES.get(kind.removesuffix("MessageChunk").lower())
    if role is None:
        raise InputError(f"a message of type {kind!r} is no turn of a chat that an expert can read")
    turn = Message(role=role, content=_text(message, role))
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        turn["tool_calls"] = _write_calls(message)
    return turn


def _text(message: BaseMessage, role: str) -> str:
    content: Any = message.content
    if isinstance(content, str):
        return content
    return "".join(_block_text(block, role) for block in content)


def _block_text(block: Any, role: str) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type", "text" if "text" in block else "nothing")
    if kind in TEXTS:
        return str(block.get("text") or "")
    if role == "assistant" and kind in UNSPOKEN:
        return ""
    raise InputError(f"experts read text only, and a message of this chat holds {kind!r}")


def _write_calls(message: AIMessage) -> list[ToolCall]:
    calls = [
        ToolCall(
            id=call["id"] or "", name=call["name"], arguments=json.dumps(call["args"], default=str)
        )
        for call in message.tool_calls
    ]
    spoilt = [
        ToolCall(id=call["id"] or "", name=call["name"] or "", arguments=call["args"] or "")
        for call in message.invalid_tool_calls
    ]
    return calls + spoilt


def _read_calls(
    calls: Sequence[ToolCall],
) -> tuple[list[LangChainToolCall], list[InvalidToolCall]]:
    from langchain_core.messages.tool import invalid_tool_call, tool_call

    read: list[LangChainToolCall] = []
    spoilt: list[InvalidToolCall] = []
    for call in calls:
        name, id_, written = call["name"], call["id"], call["arguments"]
        try:
            arguments: object = json.loads(written or "{}")
            reason = "the arguments are no JSON object"
        except (ValueError, RecursionError) as error:
            arguments, reason = None, f"the arguments are no JSON ({error})"
        if isinstance(arguments, dict):
            args = cast("dict[str, Any]", arguments)
            read.append(tool_call(name=name, args=args, id=id_))
        else:
            spoilt.append(invalid_tool_call(name=name, args=written, id=id_, error=reason))
    return read, spoilt


def _reasoning(thought: str) -> dict[str, Any]:
    return {"reasoning_content": thought} if thought else {}


def _usage(usage: Usage) -> UsageMetadata:
    told: UsageMetadata = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.cached_tokens:
        told["input_token_details"] = {"cache_read": usage.cached_tokens}
    return told


def _metadata(reply: Reply, model_name: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "model_name": model_name,
        "model_provider": PROVIDER,
        "finish_reason": "tool_calls" if reply.tool_calls else reply.finish,
    }
    if reply.logprobs:
        metadata["logprobs"] = {"content": [_token(entry) for entry in reply.logprobs]}
    return metadata


def _token(entry: TokenLogprob) -> dict[str, Any]:
    top = [{"token": token, "logprob": logprob} for token, logprob in entry.top]
    return {"token": entry.token, "logprob": entry.logprob, "top_logprobs": top}
