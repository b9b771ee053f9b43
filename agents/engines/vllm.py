"""Local weights through vLLM, one child process for each engine.

The child (`worker.py`) batches continuously: a group of requests and single ones that arrive
meanwhile share its steps. This side turns calls into messages and makes sure that every request
ends: in a reply, or in the failure that says how the child died.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from .base import Chunk, EngineError, Failure, Load, Reply, Request
from .frames import reply_from_json, request_to_json
from .launcher import Launcher
from .vllm_child import Child

__all__ = ["VllmEngine"]

_FRAME = 256  # requests in one message, so that neither side holds a whole data set at once


class VllmEngine:
    """Answers requests with vLLM.

    An engine belongs to the event loop in which it was started. Text repeats across batch sizes in
    float32 only; in bfloat16 a near-tie may fall the other way in another batch.

    Args:
        name: For messages and logs.
        model: A folder of safetensors, or a Hugging Face id.
        revision: The commit of a Hugging Face id.
        dtype: As vLLM names them: `auto`, `float32`, `bfloat16`, …
        context_length: Tokens of prompt and answer together; None takes what the model allows.
        adapters: LoRA adapters by the name that `Request.adapter` uses: folders in peft's layout.
        chat_template: Jinja text, or the name of a template that ships with us, instead of the
            model's own.
        kv_cache_bytes: Memory for keys and values. None: 256 MiB on a CPU, vLLM's choice on a GPU.
        gpu_memory_utilization: The share of a GPU's memory that this engine may take.
        gpu: Index of the GPU to run on; None for vLLM's choice, or no GPU.
        sleeps: Start vLLM so that it can sleep, where the platform has that.
        max_batch: Most requests in one step; further ones wait.
        launcher: Starts the child; the engine makes, and closes, one of its own if none is given.
        start_timeout: Seconds that loading may take.
    """

    def __init__(
        self,
        name: str,
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        context_length: int | None = 2048,
        adapters: Mapping[str, Path] | None = None,
        chat_template: str | None = None,
        kv_cache_bytes: int | None = None,
        gpu_memory_utilization: float | None = None,
        gpu: int | None = None,
        sleeps: bool = False,
        max_batch: int = 64,
        launcher: Launcher | None = None,
        start_timeout: float = 600.0,
    ) -> None:
        self.name = name
        self.model = model
        self.start_timeout = start_timeout
        self._config: dict[str, Any] = {
            "model": str(model),
            "revision": revision,
            "dtype": dtype,
            "context_length": context_length,
            "adapters": {key: str(folder) for key, folder in (adapters or {}).items()},
            "chat_template": chat_template,
            "kv_cache_bytes": kv_cache_bytes,
            "gpu_memory_utilization": gpu_memory_utilization,
            "gpu": gpu,
            "sleeps": sleeps,
            "max_batch": max_batch,
        }
        self._launcher = launcher
        self._owned: Launcher | None = None
        self._lock = asyncio.Lock()
        self._load: Load | None = None
        self._failure: Failure | None = None
        """Why there can be no more answers; None while there can."""
        self._child = Child(self._hear, self._note_end)
        self._can_sleep = False
        self._startup = 0.0
        self._level: Literal[1, 2] = 1
        self._tokens = 0
        self._numbers = itertools.count()
        self._flights: dict[int, tuple[Request, asyncio.Queue[tuple[int, Chunk]]]] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the child; None when there is none."""
        return self._child.pid

    @property
    def pulse(self) -> float:
        """When the child last made progress (`time.monotonic`)."""
        return self._child.pulse

    @property
    def generated_tokens(self) -> int:
        """Tokens generated so far, as the child last told, those of unfinished replies included."""
        return self._tokens

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` frees memory; told after `start`."""
        return self._can_sleep

    async def start(self) -> Load:
        """Start the child and load the model. A second call returns the first call's answer.

        Raises:
            EngineError: the model could not be loaded; the message is one sentence with vLLM's
                own reason.
        """
        async with self._lock:
            if self._failure is not None and self._load is None:
                raise EngineError(self._failure)
            if self._load is None:
                self._load = await self._start()
            return self._load

    async def _start(self) -> Load:
        begun = time.monotonic()
        try:
            self._check_folders()
            async with asyncio.timeout(self.start_timeout):
                report = await self._load_in_child()
        except TimeoutError:
            failure = self._unloadable(f"it took longer than {self.start_timeout:g} s", True)
        except EngineError as error:
            failure = error.failure
        except BaseException:
            await self._end_child()
            raise
        else:
            self._can_sleep = report["can_sleep"]
            return replace(_read_report(report, begun), startup_seconds=self._startup)
        self._failure = self._failure or failure
        await self._end_child()
        raise EngineError(self._failure)

    def _check_folders(self) -> None:
        """Refuse a path that is none, before anybody takes it for the id of a model on the hub."""
        model = str(self.model)
        if (isinstance(self.model, Path) or model.startswith(("/", ".", "~"))) and not Path(
            model
        ).is_dir():
            raise EngineError(self._unloadable("there is no such folder"))

    def _unloadable(self, reason: str, retryable: bool = False) -> Failure:
        message = f"engine {self.name!r} could not load {self.model}: {reason}"
        return Failure(kind="load", message=message, retryable=retryable)

    async def _load_in_child(self) -> Mapping[str, Any]:
        """Launch the child and wait until it has loaded the model."""
        if self._launcher is None and self._owned is None:
            self._owned = Launcher()
        launcher = self._launcher or self._owned
        assert launcher is not None
        if self._failure is not None:  # closed meanwhile
            raise EngineError(self._failure)
        begun = time.monotonic()
        await launcher.start()  # its own failure is a sentence already
        self._startup = time.monotonic() - begun
        try:
            return await self._child.start(launcher, self.name, self._config)
        except EngineError as error:
            raise EngineError(
                self._unloadable(error.failure.message, error.failure.retryable)
            ) from None

    async def swap(self, model: str, name: str) -> Load:
        """Replace the weights by others of the same shape; see `Swapper`.

        Raises:
            EngineError: it did not work; the engine must be closed.
        """
        assert not self._flights, "weights are replaced while nothing is in flight"
        self.name, self.model = name, model
        return await self._change({"op": "reload", "model": str(model)})

    async def sleep(self, level: Literal[1, 2]) -> None:
        """Free the device's memory; see `Sleeper`.

        Raises:
            EngineError: it did not work; the engine must be closed.
        """
        self._level = level
        await self._change({"op": "sleep", "level": level})

    async def wake(self) -> Load:
        """Take the device's memory again; see `Sleeper`.

        Raises:
            EngineError: it did not work; the engine must be closed.
        """
        return await self._change({"op": "wake", "level": self._level})

    async def _change(self, order: Mapping[str, Any]) -> Load:
        begun = time.monotonic()
        if self._failure is not None:
            raise EngineError(self._failure)
        try:
            async with asyncio.timeout(self.start_timeout):
                return _read_report(await self._child.order(order), begun)
        except TimeoutError:
            reason, again = f"it took longer than {self.start_timeout:g} s", True
        except EngineError as error:
            reason, again = error.failure.message, error.failure.retryable
        self._failure = self._failure or self._unloadable(reason, again)
        raise EngineError(self._failure)

    def _hear(self, message: Mapping[str, Any]) -> None:
        match message["op"]:
            case "delta":
                self._deliver(message["id"], Chunk(text=message["text"]))
            case "reply":
                self._deliver(message["id"], Chunk(reply=reply_from_json(message["reply"])))
            case "beat":
                self._tokens = message["tokens"]
            case _:
                pass

    def _note_end(self, reason: str) -> None:
        message = f"engine {self.name!r} died: {reason}"
        self._fail_all(Failure(kind="engine", message=message, retryable=True))

    def _deliver(self, number: int, chunk: Chunk) -> None:
        if number in self._flights:
            _, arrivals = self._flights[number]
            arrivals.put_nowait((number, chunk))

    def _fail_all(self, failure: Failure) -> None:
        self._failure = self._failure or failure
        for number, (request, _) in list(self._flights.items()):
            self._deliver(number, Chunk(reply=Reply.failed(request, self._failure)))

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Answer all requests as one batch; replies come in the order of the requests.

        Args:
            requests: Their ids must differ.
            on_reply: Called with each reply as soon as it is finished.

        Raises:
            ValueError: two requests have the same id.
            RuntimeError: the engine was not started.
        """
        if len({request.id for request in requests}) < len(requests):
            raise ValueError("the requests of one call must have different ids")
        numbers, arrivals = self._enlist(requests)
        replies: dict[int, Reply] = {}
        try:
            await self._send(numbers, requests)
            while len(replies) < len(numbers):
                number, chunk = await arrivals.get()
                if chunk.reply is None or number in replies:
                    continue
                replies[number] = chunk.reply
                del self._flights[number]
                if on_reply is not None:
                    on_reply(chunk.reply)
        finally:
            self._forget(numbers)
        return [replies[number] for number in numbers]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answer one request piece by piece. Closing the iterator aborts the request.

        Raises:
            RuntimeError: the engine was not started.
        """
        numbers, arrivals = self._enlist([request])
        try:
            await self._send(numbers, [request], stream=True)
            while True:
                _, chunk = await arrivals.get()
                if chunk.reply is not None:
                    self._flights.pop(numbers[0], None)
                yield chunk
                if chunk.reply is not None:
                    return
        finally:
            self._forget(numbers)

    def _enlist(
        self, requests: Sequence[Request]
    ) -> tuple[list[int], asyncio.Queue[tuple[int, Chunk]]]:
        """Put requests in flight: their numbers, and where their chunks will arrive."""
        if self._load is None:
            raise RuntimeError(f"engine {self.name!r} must be started before it can answer")
        arrivals: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()
        numbers = [next(self._numbers) for _ in requests]
        pairs = zip(numbers, requests, strict=True)
        self._flights.update((number, (request, arrivals)) for number, request in pairs)
        if self._failure is not None:
            self._fail_all(self._failure)
        return numbers, arrivals

    async def _send(
        self, numbers: Sequence[int], requests: Sequence[Request], *, stream: bool = False
    ) -> None:
        """Give requests to the child, a frame at a time, as fast as it takes them."""
        for start in range(0, len(numbers), _FRAME):
            part = slice(start, start + _FRAME)
            entries = [
                {"id": number, "request": request_to_json(request), "stream": stream}
                for number, request in zip(numbers[part], requests[part], strict=True)
            ]
            self._child.send({"op": "generate", "requests": entries})
            await self._child.drain()

    def _forget(self, numbers: Iterable[int]) -> None:
        """Abort those of these requests that are still in flight."""
        unfinished = [number for number in numbers if self._flights.pop(number, None) is not None]
        if unfinished and self._failure is None:
            self._child.send({"op": "abort", "ids": unfinished})

    async def close(self) -> None:
        """End the child. Requests still in flight end in failures. Safe to call twice."""
        message = f"engine {self.name!r} was closed"
        self._fail_all(Failure(kind="engine", message=message))
        await self._end_child()

    async def _end_child(self) -> None:
        await self._child.end()
        if self._owned is not None:
            await self._owned.close()


def _read_report(report: Mapping[str, Any], begun: float) -> Load:
    return Load(
        seconds=time.monotonic() - begun,
        memory_bytes=report["memory_bytes"],
        context_length=report["context_length"],
        probe=tuple(report["probe"]),
    )
