"""Running the server until it is told to end, and ending it in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from ...retrieval import InputError
from .app import Api

__all__ = ["Ending", "open_socket", "run_server"]

MOST_CONNECTIONS = 2048
LAST_SECONDS = 1
"""Within which connections must close once what ran is finished or given up."""


class Ending:
    """How a server ended."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """Which signal told it to."""
        self.cut_off = 0
        """Requests that were given up."""


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be listened on: {error}") from None


def run_server(app: Api, listener: socket.socket, ready: Callable[[], None]) -> Ending:
    """Answer requests until SIGTERM or Ctrl-C; in the main thread.

    Then nothing further is taken, for `grace` seconds what runs is finished, and the rest is given up. A
    second signal gives it up at once.

    Args:
        app: From `create_app`.
        listener: From `open_socket`; closed in the end.
        ready: Called once requests are answered.
    """
    return asyncio.run(_serve(app, listener, ready))


async def _serve(app: Api, listener: socket.socket, ready: Callable[[], None]) -> Ending:
    ending = Ending()
    told, insisted = asyncio.Event(), asyncio.Event()

    def hear(number: signal.Signals) -> None:
        (insisted if told.is_set() else told).set()
        ending.signal = ending.signal or number

    server = _Server(_configure(app), ready)
    with _hearing(hear):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await _wait_for_any(serving, asyncio.create_task(told.wait()))
        if told.is_set():
            app.gate.drain()
            empty = asyncio.create_task(app.gate.wait_until_empty())
            again = asyncio.create_task(insisted.wait())
            await _wait_for_any(empty, again, seconds=app.settings.grace)
            ending.cut_off = app.gate.give_up()
            await _wait_for_any(empty, seconds=LAST_SECONDS)
            server.should_exit = True
        await serving
    return ending


async def _wait_for_any(*tasks: asyncio.Task[Any], seconds: float | None = None) -> None:
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


def _configure(app: Api) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",  # bounds headers, and is there wherever uvicorn is
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=LAST_SECONDS,
    )


class _Server(uvicorn.Server):
    """Says when it is ready, and leaves signals to whoever runs it."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@contextlib.contextmanager
def _hearing(hear: Callable[[signal.Signals], None]) -> Generator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, hear, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
