"""What every request passes before anything is done for it, and what is noted when it leaves.

In this order: the host it names, its key, its size, a free place. Nothing of what is asked or answered is
logged: ids, models, statuses and seconds are.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, ClientGone
from .gate import Gate
from .settings import ServerSettings, is_loopback
from .streaming import DONE

__all__ = [
    "CHAT_PATH",
    "OPEN_PATHS",
    "VISIT",
    "Doorway",
    "Visit",
    "explain_error",
    "while_connected",
]

T = TypeVar("T")
CHAT_PATH = "/v1/chat/completions"
OPEN_PATHS = ("/health",)
"""Paths that need no key."""
VISIT = "expertmix.visit"
"""Key of the `Visit` in an ASGI scope."""
MOST_DRAINED = 8
"""Times the largest body that are read of one that is too large, so that its sender can hear why."""


@dataclass(slots=True)
class Visit:
    """One request, as far as it is noted."""

    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    model: str = ""
    """Empty until it is known to exist."""
    status: int = 499
    """Nobody waited for an answer, until there is one."""
    failed: int | None = None
    """The status that a stream would have had, had it not begun before it failed."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it arrived."""
        return time.monotonic() - self.begun


class Doorway:
    """ASGI middleware: see above.

    Args:
        app: What is behind it.
        settings: Key and limits.
        gate: Places for requests that ask something.
        note: Called with every request that has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        gate: Gate,
        note: Callable[[Visit], None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._gate = gate
        self._note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = scope[VISIT] = Visit()
        has_begun, is_stream = False, False

        async def answer(message: Message) -> None:
            nonlocal has_begun, is_stream
            if message["type"] == "http.response.start":
                has_begun = True
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = visit.id
                is_stream = headers.get("content-type", "").startswith("text/event-stream")
            await send(message)

        try:
            await self._let_through(scope, receive, answer)
        except ClientGone:
            visit.status = 499
        except Exception as error:
            refusal = explain_error(visit, error)
            visit.failed = refusal.status
            if not has_begun:
                await refusal.to_response()(scope, receive, answer)
            elif is_stream:
                last = refusal.to_event() + DONE
                await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            visit.status = visit.failed or visit.status
            self._note(visit)
            told = (visit.id, visit.model or "-", visit.status, visit.seconds)
            logging.getLogger("expertmix.server").info("%s %s %d %.3f s", *told)

    async def _let_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_key(scope["path"], headers)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        body = await self._read(receive)
        if scope["path"] != CHAT_PATH:
            await self._app(scope, _replay(body, receive), send)
            return
        await self._enter(receive)
        async with self._gate.hold():
            await self._app(scope, _replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        """Without a key, only this machine's own names: a page in a browser can have any other lead here."""
        if self._settings.api_key is not None:
            return
        try:
            host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        except ValueError:
            host = ""
        if host != self._settings.host.lower() and not is_loopback(host):
            raise ApiError(403, "this server answers to local names only", code="unknown_host")

    def _check_key(self, path: str, headers: Headers) -> None:
        key = self._settings.api_key
        if key is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("latin-1"),
            key.encode(),  # as the header's bytes were decoded
        ):
            raise ApiError(
                401,
                "this server needs its API key as a bearer token",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    async def _read(self, receive: Receive) -> bytes:
        limit = self._settings.max_body
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    size += len(message.get("body", b""))
                    if size <= limit:
                        body += message.get("body", b"")
                    if not message.get("more_body") or size > MOST_DRAINED * limit:
                        break
        except TimeoutError:
            raise ApiError(408, "the request did not arrive in time", code="timeout") from None
        if size > limit:
            raise ApiError(
                413, f"the request is larger than {limit} bytes", code="request_too_large"
            )
        return bytes(body)

    async def _enter(self, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._settings.seconds):
                await while_connected(receive, self._gate.enter())
        except TimeoutError:
            raise ApiError(503, "no place became free in time", code="overloaded") from None


def explain_error(visit: Visit, error: Exception) -> ApiError:
    """What a client is told of an error.

    Of an error of ours the kind and the place go to the log, its words, which may quote a prompt, nowhere.
    """
    if isinstance(error, ApiError):
        return error
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    log = logging.getLogger("expertmix.server")
    log.error("%s failed: %s at %s", visit.id, type(error).__name__, place)
    return ApiError(500, f"an error of the server's own ({visit.id})", code="internal_error")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, unless the client leaves before: then it is cancelled.

    Args:
        receive: Of a request whose body has been read.
        work: Anything.

    Raises:
        ClientGone: nobody waits any more.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_leaving(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for other in (task, leaving):
            other.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _wait_for_leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives the body once, and then what happens next."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return parts.pop() if parts else await receive()

    return replayed
