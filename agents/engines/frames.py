"""What an engine and its process say to each other: JSON messages behind a four-byte length.

JSON and not pickle, so that nothing that arrives can run code. `Request` and `Reply` cross as plain
dictionaries; the four converters below are the only place that knows their shape on the wire.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from .base import Failure, OptionScore, Reply, Request, Sampling, TokenLogprob, Usage

__all__ = [
    "pack",
    "read_frame",
    "receive_frame",
    "reply_from_json",
    "reply_to_json",
    "request_from_json",
    "request_to_json",
    "unpack",
]

_LENGTH = struct.Struct("!I")
_LARGEST = 1 << 28  # bytes; a length beyond this means that the two sides lost step


def pack(message: Mapping[str, Any]) -> bytes:
    """Turn a message into one frame: its length in four bytes, then its JSON."""
    body = json.dumps(message, separators=(",", ":"), default=dict).encode()
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """Read the JSON of one frame.

    Raises:
        ValueError: the body is not a JSON object.
    """
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError(f"a frame must hold a JSON object, got {type(message).__name__}")
    return cast("dict[str, Any]", message)


def _body_length(head: bytes) -> int:
    (length,) = _LENGTH.unpack(head)
    if length > _LARGEST:
        raise ValueError(f"a frame of {length} bytes is larger than the limit of {_LARGEST}")
    return length


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Wait for the next message; None once the other side has gone."""
    try:
        length = _body_length(await reader.readexactly(_LENGTH.size))
        return unpack(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive_frame(connection: socket.socket) -> dict[str, Any] | None:
    """Block until the next message has arrived; None once the other side has gone."""
    head = _receive_exactly(connection, _LENGTH.size)
    body = head and _receive_exactly(connection, _body_length(head))
    return unpack(body) if body else None


def _receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(min(size - len(parts), 1 << 20))
        except ConnectionError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


def request_to_json(request: Request) -> dict[str, Any]:
    """Everything of a request that an engine process needs; the question and its id stay at home."""
    sampling = request.sampling
    return {
        "id": request.id,
        "messages": list(request.messages),
        "sampling": {name: getattr(sampling, name) for name in Sampling.__slots__},
        "adapter": request.adapter,
        "options": request.options,
        "tools": request.tools,
        "tool_choice": request.tool_choice,
    }


def request_from_json(fields: Mapping[str, Any]) -> Request:
    """The request that `request_to_json` described."""
    sampling: dict[str, Any] = {**fields["sampling"], "stop": tuple(fields["sampling"]["stop"])}
    return Request(
        id=fields["id"],
        messages=tuple(fields["messages"]),
        sampling=Sampling(**sampling),
        adapter=fields["adapter"],
        options=tuple(fields["options"]),
        tools=tuple(fields["tools"]),
        tool_choice=fields["tool_choice"],
    )


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """Everything of a reply."""
    return asdict(reply)


def reply_from_json(fields: Mapping[str, Any]) -> Reply:
    """The reply that `reply_to_json` described."""
    return Reply(
        request_id=fields["request_id"],
        text=fields["text"],
        tool_calls=tuple(fields["tool_calls"]),
        reasoning=fields["reasoning"],
        finish=fields["finish"],
        usage=Usage(**fields["usage"]),
        logprobs=tuple(_token_logprob(entry) for entry in fields["logprobs"]),
        scores=tuple(OptionScore(**entry) for entry in fields["scores"]),
        details=fields.get("details", {}),
        failure=Failure(**fields["failure"]) if fields["failure"] else None,
    )


def _token_logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    top = tuple((str(token), float(logprob)) for token, logprob in entry["top"])
    return TokenLogprob(token=entry["token"], logprob=entry["logprob"], top=top)
