"""A server over scripted experts, on the loopback interface, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines import Chunk, Reply, Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.apps.session import PanelSettings

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "openai")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, NEEDED)) else ["test_*.py"]

SAID = {"a": "Answer: Paris", "b": "Surely.\nAnswer: Paris", "c": "Answer: Lyon"}


class Expert(ScriptedEngine):
    """A scripted engine that remembers how often a call was cancelled."""

    cancelled = 0

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        try:
            return await super().generate(requests, on_reply)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        is_complete = False
        try:
            async with contextlib.aclosing(super().stream(request)) as chunks:
                async for chunk in chunks:
                    is_complete = chunk.reply is not None
                    yield chunk
        finally:
            self.cancelled += not is_complete


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    engines: Mapping[str, Expert]
    app: Any
    web: httpx.Client
    """Plain HTTP."""

    def post(self, model: str, *turns: object, **more: Any) -> httpx.Response:
        """Send a chat request; a text is a user's turn."""
        messages = [
            {"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns
        ]
        body = {"model": model, "messages": messages, **more}
        return self.web.post("/v1/chat/completions", json=body)

    def wait_until(self, has_come: Callable[[], bool]) -> None:
        """Wait for something that another thread does."""
        end = time.monotonic() + 10
        while not has_come():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.005)


Start = Callable[..., Any]


@contextlib.contextmanager
def _serving(pool: Pool, panel: PanelSettings, settings: Mapping[str, Any]) -> Generator[Any]:
    import uvicorn

    from expertmix.apps.server import ServerSettings, create_app, open_socket

    listener = open_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    try:
        app = create_app(pool, panel, ServerSettings(port=port, **settings))
    except BaseException:
        listener.close()
        raise
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield app, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def _serve_experts(
    experts: Mapping[str, Any] | None = None,
    *,
    panel: PanelSettings | None = None,
    file: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Generator[Running]:
    """A server over experts: a text says what one always says, an `Expert` is taken as it is.

    Args:
        experts: By alias.
        panel: How the panel answers.
        file: More of the pool file; `experts` in it add to those keys.
        settings: Of the server.
    """
    engines = {
        alias: given if isinstance(given, Expert) else Expert(alias, {"*": given})
        for alias, given in (SAID if experts is None else experts).items()
    }
    more: dict[str, Any] = dict(file or {})
    keys = more.pop("experts", {})
    rows = [{"alias": a, "engine": "given", **keys.get(a, {})} for a in engines]
    catalog = Catalog.from_dict({"experts": rows, **more})
    with (
        Pool(catalog, engines=engines) as pool,
        _serving(pool, panel or PanelSettings(), settings) as (app, url),
        # Without certificates to read, a client is made in no time.
        httpx.Client(base_url=url, trust_env=False, verify=False, timeout=20) as web,
    ):
        yield Running(url, engines, app, web)


@pytest.fixture(scope="session")
def serving() -> Start:
    """Makes servers for fixtures: a context manager."""
    return _serve_experts


@pytest.fixture(scope="session")
def serving_pool() -> Callable[..., Any]:
    """Serves an open pool: a context manager of the application and its address."""
    return _serving


@pytest.fixture(scope="session")
def expert() -> type[Expert]:
    """The class of scripted engines that count their cancellations."""
    return Expert


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(_serve_experts(*given, **more))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Three experts: two say Paris, one says Lyon."""
    with _serve_experts() as running:
        yield running
