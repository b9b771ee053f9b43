"""An OpenAI-shaped server on loopback that goes wrong on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

__all__ = [
    "Behaviour",
    "FaultServer",
    "Seen",
    "body_of",
    "event_of",
    "fail",
    "hang",
    "raw",
    "say",
    "stream_raw",
]


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Behaviour: TypeAlias = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FaultServer:
    """Answers chat completions with the next planned behaviour, or else with an echo."""

    plan: list[Behaviour] = field(default_factory=list[Behaviour])
    models: Mapping[str, int | None] = field(default_factory=lambda: {"smol": 512})
    listing: Behaviour | None = None
    """What happens to GET /models instead of the list."""
    seen: list[Seen] = field(default_factory=list[Seen])
    """The chat requests so far."""
    hung_up: int = 0
    """Clients that closed the connection before their answer was complete."""
    busy: int = 0
    peak: int = 0
    """The most requests that were here at one time."""
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = await _read(reader)
        if seen.method == "GET":
            await (self.listing or self._list)(seen, writer)
            return
        self.seen.append(seen)
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        behaviour = self.plan.pop(0) if self.plan else _echo
        answer = asyncio.ensure_future(behaviour(seen, writer))
        eof = asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait({answer, eof}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.hung_up += 1
        finally:
            self.busy -= 1
            for future in (answer, eof):
                future.cancel()
            await asyncio.gather(answer, eof, return_exceptions=True)

    async def _list(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        data = [{"id": name, "max_model_len": length} for name, length in self.models.items()]
        await _respond(writer, 200, json.dumps({"object": "list", "data": data}).encode())


def body_of(
    text: str, *, finish: str | None = "stop", message: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A whole chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "smol",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **(message or {})},
                "finish_reason": finish,
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": len(text.split()),
            "total_tokens": 7 + len(text.split()),
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def event_of(text: str = "", *, finish: str | None = None, usage: bool = False) -> bytes:
    """One event of a streamed chat completion."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    event: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "smol",
        "choices": [] if usage else [choice],
    }
    if usage:
        event["usage"] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def say(text: str, *, finish: str = "stop", **message: Any) -> Behaviour:
    """Answer properly, as a stream if one was asked for."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        if not seen.body.get("stream"):
            body = body_of(text, finish=finish, message=message)
            await _respond(writer, 200, json.dumps(body).encode())
            return
        pieces = [event_of(f"{word} ") for word in text.split()[:-1]]
        pieces += [event_of(text.split()[-1]), event_of(finish=finish)]
        if seen.body.get("stream_options", {}).get("include_usage"):
            pieces.append(event_of(usage=True))
        await _stream(writer, [*pieces, b"data: [DONE]\n\n"])

    return behave


def fail(
    status: int, message: str = "no", *, headers: Mapping[str, str] | None = None
) -> Behaviour:
    """Answer with an error as OpenAI words it."""
    body = json.dumps({"error": {"message": message, "type": "oops", "code": status}}).encode()

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await _respond(writer, status, body, headers)

    return behave


def raw(body: bytes, *, status: int = 200) -> Behaviour:
    """Answer with these bytes."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await _respond(writer, status, body)

    return behave


def stream_raw(
    pieces: Iterable[bytes], *, reset: bool = False, pause: float = 0.0, forever: bool = False
) -> Behaviour:
    """Stream these bytes; then end, reset the connection, or stay silent forever."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await _stream(writer, pieces, pause=pause)
        if forever:
            await asyncio.Event().wait()
        if reset:
            # The client must have read what came before: a reset may overtake it.
            await asyncio.sleep(0.05)
            writer.transport.abort()

    return behave


def hang() -> Behaviour:
    """Accept the request and never answer."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    return behave


async def _echo(seen: Seen, writer: asyncio.StreamWriter) -> None:
    await say(f"echo: {seen.body['messages'][-1]['content']}")(seen, writer)


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    pairs = (line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, cast("dict[str, Any]", json.loads(body or b"{}")))


async def _respond(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    headers: Mapping[str, str] | None = None,
) -> None:
    lines = [
        f"HTTP/1.1 {status} Whatever",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()


async def _stream(
    writer: asyncio.StreamWriter, pieces: Iterable[bytes], *, pause: float = 0.0
) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause)
