"""What runs inside a Ray actor: engines, built on the node that they work on.

A station holds several engines, as a launcher starts several processes: vLLM is imported once for all
of them, not once for each. Everything that crosses is plain values: requests and replies as `frames.py`
writes them, failures by their fields. Ray makes an actor of the class elsewhere (`outpost.py`), so
that nothing in here imports it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import psutil

from ...retrieval import InputError
from .base import Engine, EngineError, Failure, Pulsed, Request
from .frames import reply_to_json, request_from_json, request_to_json
from .launcher import Launcher
from .reasons import root_reason

__all__ = ["Build", "Station", "build_from_settings", "entry_to_request", "request_to_entry"]

Build: TypeAlias = Callable[[Mapping[str, Any], Launcher], Engine]
"""Makes an engine of plain settings, on its node. It must be importable there, and may block."""

_BEAT_SECONDS = 1.0
_FRAME = 256  # parts in one message, as in a frame from a vLLM process


def build_from_settings(settings: Mapping[str, Any], launcher: Launcher) -> Engine:
    """An engine of which the settings say everything: its kind as `engine`, and its arguments.

    Args:
        settings: `engine` is `vllm`, `transformers` or `scripted`; the rest are the arguments of that
            engine's class. `faults` of a scripted one are the fields of `Faults`.
        launcher: Starts the processes of a vLLM engine.

    Raises:
        InputError: there is no such engine.
    """
    given: dict[str, Any] = {key: value for key, value in settings.items() if key != "engine"}
    match settings["engine"]:
        case "vllm":
            from .vllm import VllmEngine

            return VllmEngine(**given, launcher=launcher)
        case "transformers":
            from .transformers import TransformersEngine

            return TransformersEngine(**given)
        case "scripted":
            from .scripted import Faults, ScriptedEngine

            faults = Faults(**given.pop("faults", {}))
            return ScriptedEngine(**given, faults=faults)
        case kind:
            kinds = "vllm, transformers and scripted"
            raise InputError(f'no engine "{kind}" can be built on a node; there are {kinds}')


def request_to_entry(request: Request) -> dict[str, Any]:
    """A request for an engine that may look its answer up: the question's id travels with it."""
    return {"request": request_to_json(request), "question": request.question_id}


def entry_to_request(entry: Mapping[str, Any]) -> Request:
    """The request that `request_to_entry` described."""
    return replace(request_from_json(entry["request"]), question_id=entry["question"])


class Station:
    """Starts engines by number, relays what they answer, and ends them.

    Args:
        environment: Variables that the node is to take over from whoever asked for the actor.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)  # before torch or vLLM is imported, which read them once
        self._launcher = Launcher()
        self._engines: dict[int, Engine] = {}
        self._ended: set[int] = set()

    async def greet(self) -> dict[str, Any]:
        """Say that the actor has its place, and how much memory there is."""
        return {"pid": os.getpid(), "free_bytes": _free_bytes()}

    async def start(self, number: int, build: Build, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Build and start an engine. The answer has its `load`, or the `failure` that prevented it."""
        try:
            engine = await asyncio.to_thread(build, settings, self._launcher)
            self._check_wanted(number)
            self._engines[number] = engine
            return {"load": asdict(await engine.start()), "free_bytes": _free_bytes()}
        except EngineError as error:
            failure = error.failure
        except InputError as error:
            failure = Failure(kind="load", message=str(error))
        except Exception as error:  # a library's own; it must not cost the station
            failure = Failure(kind="load", message=root_reason(error))
        await self.end(number)
        return {"failure": asdict(failure), "free_bytes": _free_bytes()}

    def _check_wanted(self, number: int) -> None:
        if number in self._ended:  # while it was being built
            raise EngineError(Failure(kind="load", message="the engine was closed"))

    async def answer(
        self, number: int, entries: Sequence[Mapping[str, Any]], stream: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Relay what an engine says to some requests: as it comes, and a sign of life every second.

        Cancelling the call aborts them.
        """
        parts: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        requests = [entry_to_request(entry) for entry in entries]
        engine = self._engines.get(number)
        work = asyncio.create_task(_ask(engine, requests, stream, parts.put_nowait))
        work.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            ended = False
            while not ended:
                news = await _collect(parts)
                ended = None in news
                yield {"parts": [part for part in news if part is not None], **_vitals(engine)}
        finally:
            work.cancel()
            await asyncio.wait([work])

    async def end(self, number: int) -> dict[str, Any]:
        """Close an engine, wherever it is in its life."""
        self._ended.add(number)
        engine = self._engines.pop(number, None)
        if engine is not None:
            await engine.close()
        return {"free_bytes": _free_bytes()}

    async def close(self) -> None:
        """Close every engine, and the process that vLLM's were forked from."""
        await asyncio.gather(*map(self.end, list(self._engines)), return_exceptions=True)
        await self._launcher.close()


async def _ask(
    engine: Engine | None,
    requests: Sequence[Request],
    stream: bool,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Let an engine answer; what it says and how it fails goes to `tell`."""
    try:
        if engine is None:
            raise RuntimeError("the engine was closed")
        if stream:
            async for chunk in engine.stream(requests[0]):
                reply = chunk.reply and reply_to_json(chunk.reply)
                tell({"text": chunk.text, "reasoning": chunk.reasoning, "reply": reply})
        else:
            await engine.generate(requests, lambda reply: tell({"reply": reply_to_json(reply)}))
    except Exception as error:  # an engine's defect costs its requests, not the station
        tell({"failure": root_reason(error)})


async def _collect(
    parts: asyncio.Queue[dict[str, Any] | None],
) -> list[dict[str, Any] | None]:
    """What has arrived, after waiting for the first of it no longer than until the next beat."""
    try:
        async with asyncio.timeout(_BEAT_SECONDS):
            news = [await parts.get()]
    except TimeoutError:
        return []
    while len(news) < _FRAME and not parts.empty():
        news.append(parts.get_nowait())
    return news


def _vitals(engine: Engine | None) -> dict[str, Any]:
    """How long ago the engine made progress, how much, and the memory that is left here.

    An engine that does not tell is as alive as the actor that holds it.
    """
    vitals: dict[str, Any] = {"age": 0.0, "tokens": None, "free_bytes": _free_bytes()}
    if isinstance(engine, Pulsed):
        vitals |= {"age": time.monotonic() - engine.pulse, "tokens": engine.generated_tokens}
    return vitals


def _free_bytes() -> int:
    return psutil.virtual_memory().available
