"""An engine that reads its lines from a script: a double for tests, never a fallback.

It costs next to nothing per request, so that what remains in a benchmark is the cost of whatever
stands around it, and it fails in every way in which a real engine can fail, on demand.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from .base import Chunk, EngineError, Failure, Load, Reply, Request
from .script import EVERY, Line, Script, find_line, key_of, read_script, say, score

__all__ = ["GARBAGE", "Faults", "Line", "ScriptedEngine"]

GARBAGE = '<|im_end|>\x1b[31m\x00\ufffd{"answer": [[[' + "}{" * 200
"""What a broken model may say: control tokens, terminal escapes, NUL, JSON that never ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is to go wrong. Ids are question ids (request ids where there are none), or `"*"`."""

    load: str | None = None
    """Starting raises `EngineError` with this sentence."""
    die_after: int | None = None
    """The engine dies after this many replies: the rest of the batch and all later calls fail."""
    fail_ids: Collection[str] = ()
    """Questions that fail with kind `engine`, while the rest of their batch goes on."""
    hang_ids: Collection[str] = ()
    """Questions that are never answered: their call hangs until it is cancelled or closed."""
    empty_ids: Collection[str] = ()
    """Questions that get an empty answer."""
    garbage_ids: Collection[str] = ()
    """Questions that get `GARBAGE`."""


class ScriptedEngine:
    """Answers from a script, in the time and with the faults it is told.

    The script is a function of the request, or a mapping from question id (request id, where a
    request has no question) to text; `"*"` stands for all others, and a question without a line
    is a failure of kind `missing`. A list of texts is taken by sample: sample 2 is a request id that
    ends in `#2`, `/2` or `:2` (after its question id); lists repeat from their start, and a request
    id without a number is sample 0. A function may say a `Line`, with tool calls and reasoning; whether
    tools are on offer is its business.

    Tokens are words. `stop`, `max_tokens` and the context length are respected, every generated
    token has log-probability 0, and JSON schemas are the script's business. With options, the line
    names the likeliest one, by its text or by its letter; it gets nine tenths of the probability,
    and if it names none all options are equally likely.

    Args:
        name: For messages.
        script: See above.
        latency: Seconds from a call to each of its replies, all at once as in continuous batching;
            a function gives every request its own, and the fast ones are reported first.
        load_seconds: How long starting takes.
        faults: What goes wrong.
        context_length: Words that prompt and answer may have together.
        memory_bytes: What `start` reports.
        keep_requests: Whether `requests` remembers what was asked; turn it off to measure memory.
    """

    def __init__(
        self,
        name: str,
        script: Script,
        *,
        latency: float | Callable[[Request], float] = 0.0,
        load_seconds: float = 0.0,
        faults: Faults | None = None,
        context_length: int | None = None,
        memory_bytes: int = 0,
        keep_requests: bool = True,
    ) -> None:
        self.name = name
        self.loads = 0
        """How often the model was really loaded."""
        self.calls = 0
        """How often `generate` or `stream` was called."""
        self.requests: list[Request] = []
        """Every request so far, in order."""
        self._script = script
        self._latency = latency
        self._load_seconds = load_seconds
        self._faults = faults or Faults()
        self._context_length = context_length
        self._memory_bytes = memory_bytes
        self._keep_requests = keep_requests
        self._load: Load | None = None
        self._starting = asyncio.Lock()
        self._end = asyncio.Event()
        self._replies = 0

    @classmethod
    def from_file(
        cls,
        name: str,
        path: str | Path,
        *,
        latency: float = 0.0,
        load_seconds: float = 0.0,
        faults: Faults | None = None,
        context_length: int | None = None,
    ) -> ScriptedEngine:
        """An engine whose script is a JSON object in a file.

        Raises:
            InputError: the file is missing, or not an object of texts or lists of texts.
        """
        return cls(
            name,
            read_script(Path(path)),
            latency=latency,
            load_seconds=load_seconds,
            faults=faults,
            context_length=context_length,
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._end.is_set()

    async def start(self) -> Load:
        """Pretend to load; a second call returns the first one's answer."""
        async with self._starting:
            if self._load is None:
                await asyncio.sleep(self._load_seconds)
                if self._faults.load is not None:
                    raise EngineError(Failure(kind="load", message=self._faults.load))
                self.loads += 1
                self._load = Load(
                    seconds=self._load_seconds,
                    memory_bytes=self._memory_bytes,
                    context_length=self._context_length,
                )
        return self._load

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Answer from the script; replies come in the order of the requests."""
        self._note(requests)
        replies: dict[int, Reply] = {}
        waited = 0.0
        for delay, places in self._order(requests):
            await self._pause(delay - waited)
            waited = delay
            for place in places:
                replies[place] = reply = self._reply(requests[place])
                if on_reply is not None:
                    on_reply(reply)
        return [replies[place] for place in range(len(requests))]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answer word by word."""
        self._note([request])
        [(delay, _)] = self._order([request])
        await self._pause(delay)
        reply = self._reply(request)
        if reply.reasoning:
            yield Chunk(reasoning=reply.reasoning)
        for piece in re.findall(r"\s*\S+|\s+$", reply.text):
            yield Chunk(text=piece)
            await asyncio.sleep(0)
        yield Chunk(reply=reply)

    async def close(self) -> None:
        """End; whatever still hangs fails. Safe to call twice."""
        self._end.set()

    def _note(self, requests: Sequence[Request]) -> None:
        self.calls += 1
        if self._keep_requests:
            self.requests.extend(requests)

    def _order(self, requests: Sequence[Request]) -> list[tuple[float, Sequence[int]]]:
        """Which requests are finished after how many seconds; a hanging one after infinitely many."""
        latency, hangs = self._latency, self._faults.hang_ids
        if not callable(latency) and not hangs:
            return [(latency, range(len(requests)))]
        groups: dict[float, list[int]] = {}
        for place, request in enumerate(requests):
            delay = latency(request) if callable(latency) else latency
            groups.setdefault(math.inf if _hit(hangs, request) else delay, []).append(place)
        return sorted(groups.items())

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0 or self.closed:
            await asyncio.sleep(0)  # a point at which the call can be cancelled
            return
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self._end.wait()
        except TimeoutError:
            return

    def _reply(self, request: Request) -> Reply:
        failure = self._failure(request)
        if failure is not None:
            return Reply.failed(request, failure)
        try:
            line = self._line(request)
        except Exception as error:  # the script is foreign code, and one question costs no batch
            message = f"the script raised {type(error).__name__}: {error}"
            return Reply.failed(request, Failure(kind="engine", message=message))
        if line is None:
            message = f'the script of "{self.name}" has no line for {key_of(request)!r}'
            return Reply.failed(request, Failure(kind="missing", message=message))
        prompt = sum(len(turn["content"].split()) for turn in request.messages)
        room = None if self._context_length is None else self._context_length - prompt
        if room is not None and room <= 0:
            message = f"the prompt has {prompt} tokens, the context window {self._context_length}"
            return Reply.failed(request, Failure(kind="context", message=message))
        self._replies += 1
        if request.options:
            return score(request, line, prompt=prompt)
        return say(request, line, prompt=prompt, room=room)

    def _failure(self, request: Request) -> Failure | None:
        faults = self._faults
        if self._load is None or self.closed:
            message = f'engine "{self.name}" is not running: not started, or closed'
            return Failure(kind="engine", message=message)
        if faults.die_after is not None and self._replies >= faults.die_after:
            message = f'engine "{self.name}" died after {faults.die_after} replies'
            return Failure(kind="engine", message=message)
        if _hit(faults.fail_ids, request):
            message = f'engine "{self.name}" was told to fail on {key_of(request)!r}'
            return Failure(kind="engine", message=message)
        return None

    def _line(self, request: Request) -> str | Line | None:
        if _hit(self._faults.empty_ids, request):
            return ""
        if _hit(self._faults.garbage_ids, request):
            return GARBAGE
        return find_line(self._script, request)


def _hit(ids: Collection[str], request: Request) -> bool:
    return bool(ids) and (EVERY in ids or key_of(request) in ids)
