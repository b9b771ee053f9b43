"""Local weights through vLLM, one child process for each engine.

The child (`worker.py`) batches continuously: a group of requests and single ones that arrive
meanwhile share its steps. This side turns calls into messages and makes sure that every request
ends: in a reply, or in the failure that says how the child died.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Chunk, EngineError, Failure, Load, Reply, Request
from .frames import pack, read_frame, reply_from_json, request_to_json
from .launcher import Launched, Launcher
from .reasons import exit_reason

__all__ = ["VllmEngine"]

_PATIENCE = 5.0  # seconds that the child may take to leave by itself


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
            "max_batch": max_batch,
        }
        self._launcher = launcher
        self._owned: Launcher | None = None
        self._lock = asyncio.Lock()
        self._load: Load | None = None
        self._failure: Failure | None = None
        """Why there can be no more answers; None while there can."""
        self._child: Launched | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._flights: dict[int, tuple[Request, asyncio.Queue[tuple[int, Chunk]]]] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the child; None when there is none."""
        return self._child.pid if self._child is not None else None

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
            return Load(
                seconds=time.monotonic() - begun,
                memory_bytes=report["memory_bytes"],
                context_length=report["context_length"],
            )
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

    async def _load_in_child(self) -> dict[str, Any]:
        """Launch the child and wait until it has loaded the model."""
        if self._launcher is None and self._owned is None:
            self._owned = Launcher()
        launcher = self._launcher or self._owned
        assert launcher is not None
        self._child = child = await launcher.launch(self.name)
        if self._failure is not None:  # closed meanwhile
            raise EngineError(self._failure)
        reader, self._writer = await asyncio.open_connection(sock=child.connection)
        self._writer.write(pack({"op": "load", "config": self._config}))
        report = await read_frame(reader)
        if report is None:
            raise EngineError(self._unloadable(await self._ending(child), True))
        if report["op"] == "failed":
            raise EngineError(self._unloadable(report["message"]))
        self._listener = asyncio.create_task(self._listen(reader, child))
        return report

    async def _ending(self, child: Launched) -> str:
        """How the child ended, once its end of the connection is closed."""
        with contextlib.suppress(TimeoutError):
            code = await asyncio.wait_for(asyncio.shield(child.exited), _PATIENCE)
            words = child.last_words() if code is not None and code > 0 else ""
            return exit_reason(code) + (f" ({words})" if words else "")
        return exit_reason(None)

    async def _listen(self, reader: asyncio.StreamReader, child: Launched) -> None:
        """Take the child's messages until it goes; then fail what is still in flight."""
        reason: str | None = None
        while (message := await read_frame(reader)) is not None:
            if message["op"] == "died":
                reason = message["message"]
            elif message["op"] == "delta":
                self._deliver(message["id"], Chunk(text=message["text"]))
            elif message["op"] == "reply":
                self._deliver(message["id"], Chunk(reply=reply_from_json(message["reply"])))
        message = f"engine {self.name!r} died: {reason or await self._ending(child)}"
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
        numbers, arrivals = self._send(requests, stream=False)
        replies: dict[int, Reply] = {}
        try:
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
        numbers, arrivals = self._send([request], stream=True)
        try:
            while True:
                _, chunk = await arrivals.get()
                if chunk.reply is not None:
                    self._flights.pop(numbers[0], None)
                yield chunk
                if chunk.reply is not None:
                    return
        finally:
            self._forget(numbers)

    def _send(
        self, requests: Sequence[Request], *, stream: bool
    ) -> tuple[list[int], asyncio.Queue[tuple[int, Chunk]]]:
        """Put requests in flight: their numbers, and where their chunks will arrive."""
        if self._load is None:
            raise RuntimeError(f"engine {self.name!r} must be started before it can answer")
        arrivals: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()
        numbers = [next(self._numbers) for _ in requests]
        pairs = list(zip(numbers, requests, strict=True))
        self._flights.update((number, (request, arrivals)) for number, request in pairs)
        if self._failure is not None:
            self._fail_all(self._failure)
        elif self._writer is not None and pairs:
            entries = [
                {"id": number, "request": request_to_json(request), "stream": stream}
                for number, request in pairs
            ]
            self._writer.write(pack({"op": "generate", "requests": entries}))
        return numbers, arrivals

    def _forget(self, numbers: Iterable[int]) -> None:
        """Abort those of these requests that are still in flight."""
        unfinished = [number for number in numbers if self._flights.pop(number, None) is not None]
        if unfinished and self._failure is None and self._writer is not None:
            self._writer.write(pack({"op": "abort", "ids": unfinished}))

    async def close(self) -> None:
        """End the child. Requests still in flight end in failures. Safe to call twice."""
        message = f"engine {self.name!r} was closed"
        self._fail_all(Failure(kind="engine", message=message))
        await self._end_child()

    async def _end_child(self) -> None:
        child, self._child = self._child, None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.write(pack({"op": "close"}))
        if child is not None:
            await self._see_off(child)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        if child is not None:
            child.release()
        if self._owned is not None:
            await self._owned.close()

    async def _see_off(self, child: Launched) -> None:
        """Wait for the child to leave, and help it after a while."""
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(child.exited), _PATIENCE)
                return
            child.kill()
