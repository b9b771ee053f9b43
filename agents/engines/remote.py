"""An engine on another machine, in a Ray actor.

The engine proper is built over there from plain settings (`station.py`); what is lost with a machine is
what had not been answered. Replies come one by one as they finish, and every request ends: in a
reply, or in the failure that says how the actor was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .base import Chunk, EngineError, Failure, Load, Reply, Request
from .frames import reply_from_json
from .outpost import Outpost, Place
from .station import Build, build_from_settings, request_to_entry

__all__ = ["RayEngine"]


class RayEngine:
    """Answers requests with an engine that lives in a Ray actor.

    It belongs to the event loop in which it was started.

    Args:
        name: For messages and logs.
        settings: What the engine is built from on its node; plain values.
        at: The actor that is to hold it, or a place for an actor of its own, which it then closes.
            Engines in one actor start faster: vLLM is imported once.
        build: Makes the engine of the settings.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        *,
        at: Outpost | Place,
        build: Build = build_from_settings,
    ) -> None:
        self.name = name
        self._settings = settings
        self._build = build
        self._owns = isinstance(at, Place)
        self._outpost = Outpost(at) if isinstance(at, Place) else at
        self._number = self._outpost.enlist()
        self._lock = asyncio.Lock()
        self._load: Load | None = None
        self._failure: Failure | None = None
        """Why there can be no more answers; None while there can."""
        self._pulse = time.monotonic()
        self._tokens = 0

    @property
    def pid(self) -> int | None:
        """Process id of the actor, on its node; None before it runs."""
        return self._outpost.pid

    @property
    def pulse(self) -> float:
        """When the engine last made progress, or its actor was heard where it does not tell."""
        return self._pulse

    @property
    def generated_tokens(self) -> int:
        """Tokens generated so far; those of unfinished replies only if the engine counts them."""
        return self._tokens

    async def start(self) -> Load:
        """Build the engine on its node and load the model. A second call returns the first's answer.

        Raises:
            EngineError: there is no room or no node, or the engine's own reason.
        """
        async with self._lock:
            if self._load is None:
                if self._failure is not None:
                    raise EngineError(self._failure)
                self._load = await self._start()
            return self._load

    async def _start(self) -> Load:
        begun = time.monotonic()
        try:
            await self._outpost.start()
            report = await self._outpost.order("start", self._number, self._build, self._settings)
            if "failure" in report:
                raise EngineError(Failure(**report["failure"]))
        except EngineError as error:
            self._failure = self._failure or replace(error.failure, kind="load")
            raise EngineError(self._failure) from None
        self._pulse = time.monotonic()
        load = Load(**report["load"])
        return replace(load, seconds=self._pulse - begun, probe=tuple(load.probe))

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Answer all requests as one batch; replies come in the order of the requests.

        Args:
            requests: Their ids must differ.
            on_reply: Called with each reply as soon as it has come here.

        Raises:
            ValueError: two requests have the same id.
            RuntimeError: the engine was not started.
        """
        if len({request.id for request in requests}) < len(requests):
            raise ValueError("the requests of one call must have different ids")
        replies: dict[str, Reply] = {}
        async with contextlib.aclosing(self._ask(requests)) as chunks:
            async for chunk in chunks:
                if chunk.reply is not None:
                    replies[chunk.reply.request_id] = chunk.reply
                    if on_reply is not None:
                        on_reply(chunk.reply)
        return [replies[request.id] for request in requests]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answer one request piece by piece. Closing the iterator aborts the request.

        Raises:
            RuntimeError: the engine was not started.
        """
        async with contextlib.aclosing(self._ask([request], stream=True)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _ask(
        self, requests: Sequence[Request], *, stream: bool = False
    ) -> AsyncGenerator[Chunk, None]:
        """Chunks as they come, with one reply to each request, whatever happens over there."""
        if self._load is None:
            raise RuntimeError(f"engine {self.name!r} must be started before it can answer")
        waiting = {request.id: request for request in requests}
        try:
            async with contextlib.aclosing(self._relay(requests, stream)) as chunks:
                async for chunk in chunks:
                    if chunk.reply is None or waiting.pop(chunk.reply.request_id, None):
                        yield chunk
            reason = "it ended without an answer"
        except EngineError as error:
            reason = error.failure.message
        for request in waiting.values():
            yield Chunk(reply=Reply.failed(request, self._failure or self._died(reason)))

    async def _relay(
        self, requests: Sequence[Request], stream: bool
    ) -> AsyncGenerator[Chunk, None]:
        """What the actor says.

        Raises:
            EngineError: the actor is lost, or the engine in it broke.
        """
        if self._failure is not None or not requests:
            return
        entries = [request_to_entry(request) for request in requests]
        messages = self._outpost.ask(self._number, entries, stream=stream)
        async with contextlib.aclosing(messages):
            async for message in messages:
                self._note(message)
                for part in message["parts"]:
                    yield self._read(part, counted=message["tokens"] is not None)

    def _note(self, message: Mapping[str, Any]) -> None:
        self._pulse = max(self._pulse, time.monotonic() - message["age"])
        self._tokens = message["tokens"] or self._tokens

    def _read(self, part: Mapping[str, Any], *, counted: bool) -> Chunk:
        if "failure" in part:
            raise EngineError(Failure(kind="engine", message=part["failure"]))
        reply = reply_from_json(part["reply"]) if part["reply"] else None
        if reply is not None and not counted:
            self._tokens += reply.usage.completion_tokens
        reasoning = part.get("reasoning", "")
        return Chunk(text=part.get("text", ""), reasoning=reasoning, reply=reply)

    def _died(self, reason: str) -> Failure:
        message = f"engine {self.name!r} died: {reason}"
        return Failure(kind="engine", message=message, retryable=True)

    async def close(self) -> None:
        """End the engine, and its actor if that is its own. Safe to call twice.

        Requests still in flight end in failures.
        """
        closed = Failure(kind="engine", message=f"engine {self.name!r} was closed")
        self._failure = self._failure or closed
        await self._outpost.dismiss(self._number)
        if self._owns:
            await self._outpost.close()
