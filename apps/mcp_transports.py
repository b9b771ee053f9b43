"""What carries the MCP server: the process's own streams, or HTTP on the loopback interface.

On the streams nothing but the protocol reaches stdout: descriptor 1 leads to stderr meanwhile, for this process
and for the engines that it starts. Over HTTP a browser's page is kept out (Host and Origin are checked), and
other machines need a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, MutableMapping
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import Any, TextIO

from .limits import check_host, is_loopback
from .mcp import PanelServer

__all__ = ["HttpSettings", "Wire", "create_http_app", "open_wire", "serve_http", "serve_stdio"]

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
MOST_CONNECTIONS = 512
MOST_SESSIONS = 256
LAST_SECONDS = 1
CHUNK = 1 << 16

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Where it listens, and what it lets in.

    Raises:
        InputError: an address that others can reach, without a key.
    """

    host: str = "127.0.0.1"
    api_key: str | None = field(default=None, repr=False)
    """Needed as a bearer token."""
    max_body: int = 1 << 20
    """Bytes of a request."""
    grace: float = 10.0
    """Seconds that running questions get after SIGTERM."""

    def __post_init__(self) -> None:
        check_host(self.host, self.api_key)


# Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The two ends of the protocol."""

    source: int
    """Descriptor to read from."""
    sink: TextIO


@contextlib.contextmanager
def open_wire() -> Generator[Wire]:
    """Keep stdin and stdout for the protocol: whatever else is read meets an end, what is printed goes to stderr."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        with TextIOWrapper(os.fdopen(sink, "wb", closefd=False), encoding="utf-8") as text:
            yield Wire(source=source, sink=text)
    finally:
        os.dup2(source, 0)
        os.dup2(sink, 1)
        os.close(source)
        os.close(sink)


async def serve_stdio(server: PanelServer, wire: Wire, *, max_line: int = 1 << 20) -> None:
    """Answer on the streams until the other side closes them. Cancelling ends it at once.

    Args:
        server: The panel.
        wire: From `open_wire`.
        max_line: Bytes of a message; a longer one is answered as one that cannot be read.
    """
    import anyio
    from mcp.server.stdio import stdio_server

    lines: Any = _Lines(wire.source, max_line)
    protocol = server.protocol
    async with stdio_server(lines, anyio.wrap_file(wire.sink)) as (reader, writer):
        await protocol.run(reader, writer, protocol.create_initialization_options())


class _Lines:
    """The lines of a descriptor. Unlike a thread that reads it can be cancelled, and its memory is bounded."""

    def __init__(self, source: int, most: int) -> None:
        self._source = source
        self._most = most
        self._can_wait = not stat.S_ISREG(os.fstat(source).st_mode)

    async def __aiter__(self) -> AsyncIterator[str]:
        buffer, is_too_long = bytearray(), False
        while data := await self._read():
            *whole, rest = data.split(b"\n")
            for line in whole:
                buffer += line
                if is_too_long or len(buffer) > self._most:
                    yield "a message that is too long"
                else:
                    yield buffer.decode("utf-8", "replace")
                buffer, is_too_long = bytearray(), False
            if len(buffer) + len(rest) > self._most:
                buffer, is_too_long = bytearray(), True
            else:
                buffer += rest

    async def _read(self) -> bytes:
        import anyio

        if self._can_wait:
            try:
                await anyio.wait_readable(self._source)
            except PermissionError:  # nothing that can be waited for, as the null device
                self._can_wait = False
        try:
            return os.read(self._source, CHUNK)
        except OSError:
            return b""


# HTTP


def create_http_app(server: PanelServer, settings: HttpSettings) -> App:
    """The server as an ASGI application, at `/mcp`."""
    from mcp.server.transport_security import TransportSecuritySettings

    is_local = is_loopback(settings.host)
    names = [*LOCAL_NAMES, settings.host if ":" not in settings.host else f"[{settings.host}]"]
    inner = server.protocol.streamable_http_app(
        max_request_body_size=settings.max_body,
        max_sessions=MOST_SESSIONS,
        transport_security=TransportSecuritySettings(
            # Elsewhere nobody knows by which names it is reached; there the key keeps pages out.
            enable_dns_rebinding_protection=is_local,
            allowed_hosts=[*names, *(f"{name}:*" for name in names)],
        ),
    )
    return _Guard(inner, settings.api_key)


class _Guard:
    """ASGI middleware: no key, no entry; and none for pages in a browser."""

    def __init__(self, app: App, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            refusal = self._refuse({name.lower(): value for name, value in scope["headers"]})
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse(self, headers: dict[bytes, bytes]) -> Any:
        from starlette.responses import JSONResponse

        if b"origin" in headers:
            return JSONResponse({"error": "this server is not for pages in a browser"}, 403)
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if self._key is not None and not (
            scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key.encode())
        ):
            told = {"error": "this server needs its API key as a bearer token"}
            return JSONResponse(told, 401, {"www-authenticate": "Bearer"})
        return None


async def serve_http(
    server: PanelServer,
    listener: socket.socket,
    settings: HttpSettings,
    ready: Callable[[], None] = lambda: None,
) -> tuple[int | None, int]:
    """Answer over HTTP until SIGTERM or Ctrl-C; in the main thread.

    Then nothing further is taken, for `grace` seconds what runs is finished, and the rest is given up. A
    second signal gives it up at once.

    Returns:
        The signal that ended it, and how many questions were given up.
    """
    import uvicorn

    class Quiet(uvicorn.Server):
        """Leaves signals to us, and says when it is ready."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

    web = Quiet(
        uvicorn.Config(
            create_http_app(server, settings),
            http="h11",
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
    )
    told, insisted = asyncio.Event(), asyncio.Event()
    heard: list[int] = []
    cut_off = 0

    def hear(number: int) -> None:
        heard.append(number)
        (insisted if told.is_set() else told).set()

    async def end() -> int:
        await told.wait()
        draining = asyncio.create_task(server.drain(settings.grace))
        again = asyncio.create_task(insisted.wait())
        await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        draining.cancel()
        left = await server.give_up()
        web.should_exit = True
        return left

    with _hearing(hear):
        ending = asyncio.create_task(end())
        try:
            await web.serve(sockets=[listener])
        finally:
            if ending.done():
                cut_off = ending.result()
            ending.cancel()
    return heard[0] if heard else None, cut_off


@contextlib.contextmanager
def _hearing(hear: Callable[[int], None]) -> Generator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, hear, int(number))
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
