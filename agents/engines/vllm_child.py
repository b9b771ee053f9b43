"""The process of one vLLM engine: started, listened to, ordered about and seen off."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from .base import EngineError, Failure
from .frames import pack, read_frame
from .launcher import Launched, Launcher
from .reasons import exit_reason

__all__ = ["Child"]

_PATIENCE = 5.0  # seconds that the child may take to leave by itself


class Child:
    """Our side of `worker.py`.

    Args:
        on_message: Called with every message that is no answer to `order`.
        on_end: Called once, with the reason, when the process has gone by itself.
    """

    def __init__(
        self, on_message: Callable[[Mapping[str, Any]], None], on_end: Callable[[str], None]
    ) -> None:
        self.pulse = time.monotonic()
        """When the process was last heard of."""
        self._on_message = on_message
        self._on_end = on_end
        self._process: Launched | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[Mapping[str, Any]] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None when there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self, launcher: Launcher, name: str, config: Mapping[str, Any]) -> Any:
        """Launch the process, have it load a model, and return its report.

        Raises:
            EngineError: it ended, or could not load; the message is the bare reason.
        """
        self._process = process = await launcher.launch(name)
        reader, self._writer = await asyncio.open_connection(sock=process.connection)
        self._listener = asyncio.create_task(self._listen(reader, process))
        return await self.order({"op": "load", "config": config})

    async def order(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send an order of which there is one at a time, and wait until it is carried out.

        Raises:
            EngineError: it could not be, or the process ended; the message is the bare reason.
        """
        assert self._answer is None, "orders come one after the other"
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self.send(message)
            return await self._answer
        finally:
            self._answer = None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; nothing happens once the process has gone."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(message))

    async def drain(self) -> None:
        """Wait until the process has taken most of what was sent."""
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def _listen(self, reader: asyncio.StreamReader, process: Launched) -> None:
        reason: str | None = None
        while (message := await read_frame(reader)) is not None:
            self.pulse = time.monotonic()
            match message["op"]:
                case "died":
                    reason = message["message"]
                case "done":
                    self._resolve(message)
                case "failed":
                    self._fail(message["message"], retryable=False)
                case _:
                    self._on_message(message)
        reason = reason or await self._ending(process)
        self._fail(reason, retryable=True)
        self._on_end(reason)

    def _resolve(self, report: Mapping[str, Any]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(report)

    def _fail(self, reason: str, *, retryable: bool) -> None:
        if self._answer is not None and not self._answer.done():
            failure = Failure(kind="load", message=reason, retryable=retryable)
            self._answer.set_exception(EngineError(failure))

    async def _ending(self, process: Launched) -> str:
        """How the process ended, once its end of the connection is closed."""
        with contextlib.suppress(TimeoutError):
            code = await asyncio.wait_for(asyncio.shield(process.exited), _PATIENCE)
            words = process.last_words() if code is not None and code > 0 else ""
            return exit_reason(code) + (f" ({words})" if words else "")
        return exit_reason(None)

    async def end(self, *, patience: float = _PATIENCE) -> None:
        """Ask the process to go, and kill it after `patience` seconds. Safe to call twice."""
        process, self._process = self._process, None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.write(pack({"op": "close"}))
        if process is not None:
            await self._see_off(process, patience)
        self._fail("the engine was closed", retryable=False)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        if writer is not None:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        if process is not None:
            process.release()

    async def _see_off(self, process: Launched, patience: float) -> None:
        for seconds in (patience, _PATIENCE):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.exited), seconds)
                return
            process.kill()
