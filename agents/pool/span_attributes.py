"""What spans say: OpenTelemetry's GenAI conventions (opentelemetry-semantic-conventions 0.66b2).

Names of ours begin with `expertmix.`. Nothing here quotes what was asked or answered but `write_messages` and
`write_reply`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..engines import Failure, Message, Reply, Request

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = [
    "count_usage",
    "describe_sampling",
    "mark_failed",
    "set_error",
    "write_messages",
    "write_reply",
]


def describe_sampling(requests: Sequence[Request]) -> dict[str, Any]:
    """What all requests of a call have in common."""
    told: dict[str, Any] = {}
    for name, values in (
        ("max_tokens", {request.sampling.max_tokens for request in requests}),
        ("temperature", {request.sampling.temperature for request in requests}),
        ("top_p", {request.sampling.top_p for request in requests}),
    ):
        if len(values) == 1:
            told[f"gen_ai.request.{name}"] = values.pop()
    return told


def count_usage(replies: Sequence[Reply]) -> dict[str, int]:
    """Tokens of some replies."""
    return {
        "gen_ai.usage.input_tokens": sum(reply.usage.prompt_tokens for reply in replies),
        "gen_ai.usage.output_tokens": sum(reply.usage.completion_tokens for reply in replies),
        "gen_ai.usage.cache_read.input_tokens": sum(r.usage.cached_tokens for r in replies),
    }


def mark_failed(span: Span, failures: Sequence[Failure], total: int) -> None:
    """Kinds and numbers, never the words: they may quote a prompt."""
    kinds = sorted({failure.kind for failure in failures})
    told = f"{len(failures)} of {total} requests failed: {', '.join(kinds)}"
    set_error(span, kinds[0] if len(kinds) == 1 else "_OTHER", told)


def set_error(span: Span, kind: str, told: str) -> None:
    """A status of error, of some type."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, told))


def write_messages(messages: Sequence[Message]) -> str:
    """A conversation as JSON, in the conventions' shape."""
    return json.dumps(
        [
            {"role": turn["role"], "parts": [{"type": "text", "content": turn["content"]}]}
            for turn in messages
        ]
    )


def write_reply(reply: Reply) -> str:
    """A reply likewise."""
    parts = [{"type": "text", "content": reply.text}]
    if reply.reasoning:
        parts.insert(0, {"type": "reasoning", "content": reply.reasoning})
    finish = reply.finish
    return json.dumps([{"role": "assistant", "parts": parts, "finish_reason": finish}])
