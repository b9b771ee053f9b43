"""Answers piece by piece: server-sent events with chunks in OpenAI's shape.

Every stream begins with a chunk that has the role, and ends with `[DONE]`. An error on the way is an event
of its own, in the shape of an error, before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ...agents.engines import ToolCall, Usage
from .errors import ApiError, ClientGone
from .rendering import tell_calls
from .replies import TokenCount

__all__ = ["DONE", "Chunks", "Put", "send_events"]

Put = Callable[[dict[str, Any]], None]
DONE = b"data: [DONE]\n\n"
PING_SECONDS = 15.0
"""After so much silence a comment is sent, so that nobody between takes the connection for dead."""
SEND_SECONDS = 30.0
"""Within which a client must take what it is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Makes the chunks of one answer."""

    id: str
    created: int
    model: str
    fingerprint: str
    counts_usage: bool

    def begin(self, index: int = 0) -> dict[str, Any]:
        """The first chunk of an answer."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def text(self, text: str, index: int = 0) -> dict[str, Any]:
        """A piece of an answer."""
        return self._chunk(index, {"content": text})

    def thought(self, text: str, index: int = 0) -> dict[str, Any]:
        """A piece of what a model thinks before it answers."""
        return self._chunk(index, {"reasoning_content": text})

    def calls(self, calls: Sequence[ToolCall], index: int = 0) -> dict[str, Any]:
        """The calls that the answer asks for, each of them whole."""
        told = [call.model_dump() for call in tell_calls(calls)]
        return self._chunk(
            index, {"tool_calls": [{"index": at, **call} for at, call in enumerate(told)]}
        )

    def tell(self, details: dict[str, Any]) -> dict[str, Any]:
        """Nothing of the answer; something in the extension field. Clients that read only choices find none."""
        return self._chunk(0, {}) | {"expertmix": details}

    def end(self, finish: str, index: int = 0, *, logprobs: Any = None) -> dict[str, Any]:
        """The last chunk of an answer. Log-probabilities come here, all at once."""
        return self._chunk(index, {}, finish=finish, logprobs=logprobs)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """What it cost: the last chunk of all, for who asked for it."""
        return self._frame() | {"choices": [], "usage": TokenCount.of(usage).model_dump()}

    def _frame(self) -> dict[str, Any]:
        frame: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        return frame | ({"usage": None} if self.counts_usage else {})

    def _chunk(
        self, index: int, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._frame() | {"choices": [choice]}


def send_events(
    work: Callable[[Put], Awaitable[None]], explain: Callable[[Exception], ApiError]
) -> Response:
    """A response that streams what `work` puts, and ends when it does.

    A client that leaves, or takes nothing for `SEND_SECONDS`, cancels the work.

    Args:
        work: Called once, with what takes a chunk.
        explain: What a client is told of what `work` raises.
    """
    return _Events(_run(work, explain))


class _Events(StreamingResponse):
    """Server-sent events; the library for them would log every chunk for debugging."""

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        # Where a client leaves while it is sent something, nothing else would end the work.
        async with contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send_in_time)


async def _run(
    work: Callable[[Put], Awaitable[None]], explain: Callable[[Exception], ApiError]
) -> AsyncGenerator[bytes]:
    chunks: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(chunks.put_nowait))
    task.add_done_callback(lambda _: chunks.put_nowait(None))
    try:
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    chunk = await chunks.get()
            except TimeoutError:
                yield b": still working\n\n"
                continue
            if chunk is None:
                break
            yield _event(chunk)
        try:
            task.result()
        except Exception as error:
            yield explain(error).to_event()
        yield DONE
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _event(content: dict[str, Any]) -> bytes:
    # ASCII: no separator inside that could end a line.
    return f"data: {json.dumps(content)}\n\n".encode()
