"""Our end of the zygote: starts it once, and asks it for one process after another.

See `zygote.py` for what it is and why. A launcher belongs to the event loop in which it was started
and may serve many engines; whoever made it closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .base import EngineError, Failure
from .reasons import exit_reason

__all__ = ["Launched", "Launcher"]

_PACKET = 1 << 16
_PATIENCE = 5.0  # seconds that a process may take to leave by itself

_ALWAYS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine already has a process of its own
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",  # its threads would not survive the fork
}
_UNLESS_SET = {
    "OMP_NUM_THREADS": "1",  # two busy-waiting threads on two shared cores are ten times slower
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launched:
    """A process that was forked for us."""

    pid: int
    connection: socket.socket
    """Our end; the process ends when this is closed."""
    exited: asyncio.Future[int | None]
    """The exit code once it has ended (negative: a signal); None when nobody saw how."""
    log: IO[bytes]
    kill: Callable[[], None]

    def last_words(self) -> str:
        """The last line that the process printed; empty if there is none."""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - 4096))
        lines = self.log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def release(self) -> None:
        """Close our end and the log."""
        self.connection.close()
        self.log.close()


class Launcher:
    """Starts processes that have vLLM imported, in hundredths of a second each.

    Args:
        logs: A folder that keeps what the processes print, one file each. Without it the output
            only serves to explain a failure and is gone afterwards.
    """

    def __init__(self, *, logs: Path | None = None) -> None:
        self.logs = logs
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._ready: asyncio.Future[Mapping[str, Any]] | None = None
        self._orders = 0
        self._pids: dict[int, asyncio.Future[int]] = {}
        self._exits: dict[int, asyncio.Future[int | None]] = {}

    async def start(self) -> float:
        """Start the zygote, unless it runs.

        Returns:
            Seconds that its imports took; they are paid once.

        Raises:
            EngineError: vLLM cannot be imported here.
        """
        async with self._lock:
            if self._ready is None:
                await self.close()  # whatever a zygote that died has left
                await self._spawn()
        ready = self._ready
        assert ready is not None
        report = await asyncio.shield(ready)
        if report["op"] == "ready":
            return float(report["seconds"])
        await self.close()
        raise EngineError(Failure(kind="load", message=_import_failure(report["message"])))

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                # Opening files and forking block; a loop, ours or a server's, had better not.
                opening = asyncio.ensure_future(
                    asyncio.to_thread(self._open_process, theirs.fileno())
                )
                try:
                    await asyncio.shield(opening)
                finally:  # a fork that has begun is waited for, so that `close` knows of it
                    self._log, self._process = await opening
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self._control = ours
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(ours, self._hear)

    def _open_process(self, theirs: int) -> tuple[IO[bytes], subprocess.Popen[bytes]]:
        log = self._open_log("zygote")
        module = f"{__package__}.zygote"
        process = subprocess.Popen(
            # -P: nothing in the current folder may shadow a module.
            [sys.executable, "-P", "-m", module, str(theirs), str(os.getpid())],
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_UNLESS_SET, **os.environ, **_ALWAYS},
            start_new_session=True,  # a terminal's Ctrl-C reaches us alone
        )
        return log, process

    def _open_log(self, name: str, number: int = 0) -> IO[bytes]:
        if self.logs is None:
            return tempfile.TemporaryFile()
        self.logs.mkdir(parents=True, exist_ok=True)
        return (self.logs / f"{name}-{os.getpid()}-{number}.log").open("w+b")

    def _hear(self) -> None:
        """Take one report of the zygote."""
        assert self._control is not None
        try:
            data = self._control.recv(_PACKET)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        report: dict[str, Any] = json.loads(data)
        if report["op"] == "launched":
            _resolve(self._pids.pop(report["id"]), report["pid"])
        elif report["op"] == "exited":
            _resolve(self._exits.pop(report["id"]), report["code"])
        elif self._ready is not None:
            _resolve(self._ready, report)

    def _lose(self) -> None:
        """The zygote has gone, and the kernel has killed its children."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        gone = EngineError(Failure(kind="load", message=self._obituary(), retryable=True))
        for pid in self._pids.values():
            if not pid.done():
                pid.set_exception(gone)
        for code in self._exits.values():
            _resolve(code, None)
        if self._ready is not None:
            _resolve(self._ready, {"op": "failed", "message": self._obituary()})
        self._pids, self._exits, self._ready = {}, {}, None

    def _obituary(self) -> str:
        code = self._process.poll() if self._process is not None else None
        return f"the process that starts engines is gone: {exit_reason(code)}"

    async def launch(self, name: str) -> Launched:
        """Fork a process; starts the zygote if need be.

        Args:
            name: For the name of its log file.

        Raises:
            EngineError: there is no zygote to fork from.
        """
        self._orders += 1
        number = self._orders
        log = await asyncio.to_thread(self._open_log, name, number)
        try:
            await self.start()
        except BaseException:
            log.close()
            raise
        assert self._control is not None  # nothing is awaited from here to the order
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._pids[number] = pid = loop.create_future()
        self._exits[number] = exited = loop.create_future()
        with theirs:
            order = json.dumps({"op": "launch", "id": number}).encode()
            socket.send_fds(self._control, [order], [theirs.fileno(), log.fileno()])
        try:
            forked = await asyncio.shield(pid)
        except BaseException:
            ours.close()  # a child that was forked after all sees this and leaves
            log.close()
            raise
        ours.setblocking(False)
        return Launched(
            pid=forked, connection=ours, exited=exited, log=log, kill=lambda: self._kill(number)
        )

    def _kill(self, number: int) -> None:
        """Have a child killed by the zygote, which knows whether its pid is still its own."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"op": "kill", "id": number}).encode())

    async def close(self) -> None:
        """End the zygote and every process it has forked. Safe to call twice."""
        process, self._process = self._process, None
        imported = self._ready is not None and self._ready.done()
        self._lose()
        if process is not None:
            if not imported:
                process.kill()  # it hears nothing while it imports
            try:
                await asyncio.to_thread(process.wait, _PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
        if self._log is not None:
            self._log.close()
            self._log = None


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _import_failure(reason: str) -> str:
    return (
        f"vLLM cannot be used here: {reason}; `pip install 'expertmix[vllm]'` (a CUDA GPU) or "
        "`pip install 'expertmix[cpu]'` installs it, and `expertmix doctor` says more"
    )
