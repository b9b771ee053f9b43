"""Keys, hosts, sizes, places and times; what is logged; and what is told of an error of ours."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from expertmix.agents.engines.scripted import Faults
from expertmix.apps.server import ServerSettings
from expertmix.apps.server.panel import Panel
from expertmix.apps.server.settings import check_recursion
from expertmix.retrieval import InputError

SLOW = Faults(hang_ids={"*"})
KEY = "the-key"


@contextmanager
def asking(running: Any, model: str, number: int) -> Generator[None]:
    """Requests that nobody answers; they are given up after a second."""
    limits = httpx.Timeout(5, read=1)
    with httpx.Client(base_url=running.url, trust_env=False, verify=False, timeout=limits) as web:

        def ask(at: int) -> None:
            body = {"model": model, "messages": [{"role": "user", "content": f"{at}?"}]}
            with suppress(httpx.ReadTimeout):
                web.post("/v1/chat/completions", json=body)

        threads = [threading.Thread(target=ask, args=(at,)) for at in range(number)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join()


def test_every_path_but_health_needs_the_key(start: Any) -> None:
    running = start(api_key=KEY)
    paths = ("/v1/models", "/v1/models/expert/a", "/metrics", "/openapi.json", "/nowhere")
    for path in paths:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
            reply = running.web.get(path, headers=given)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
    assert running.post("expert/a", "Where?").status_code == 401
    assert running.web.get("/health").status_code == 200
    right = {"authorization": f"Bearer {KEY}"}
    assert running.web.get("/v1/models", headers=right).status_code == 200
    document = running.web.get("/openapi.json", headers=right).json()
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(InputError, match="--api-key-env"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_key=KEY).host == host
    assert KEY not in repr(ServerSettings(host=host, api_key=KEY))


def test_an_empty_key_is_none() -> None:
    with pytest.raises(InputError, match="API key is empty"):
        ServerSettings(api_key=" ")


def test_a_page_that_rebinds_its_name_is_not_answered(start: Any, server: Any) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "a]b"):
        reply = server.web.get("/v1/models", headers={"host": host})
        assert reply.status_code in (400, 403), host
    for host in ("localhost:1234", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert server.web.get("/v1/models", headers={"host": host}).status_code == 200, host
    right = {"host": "panel.example", "authorization": f"Bearer {KEY}"}
    assert start(api_key=KEY).web.get("/v1/models", headers=right).status_code == 200


def test_an_expert_may_not_be_the_server_itself() -> None:
    from expertmix.agents import Catalog

    def check(address: str, model: str = "m") -> None:
        spec = {"alias": "x", "engine": "openai", "address": address, "model": model}
        check_recursion(Catalog.from_dict({"experts": [spec]}).values(), "127.0.0.1", 8000)

    check("http://127.0.0.1:8001/v1")
    check("http://10.0.0.1:8000/v1")
    for address in ("http://127.0.0.1:8000/v1", "http://localhost:8000/v1"):
        with pytest.raises(InputError, match="cannot be an expert of itself"):
            check(address)
    with pytest.raises(InputError, match="cannot be an expert of itself"):
        check("https://example.org/v1", "expertmix/auto")


def test_a_body_that_is_too_large_is_refused_however_it_comes(start: Any) -> None:
    running = start(max_body=2000)
    assert running.post("expert/a", "x" * 1500).status_code == 200
    reply = running.post("expert/a", "x" * 5000)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    pieces = (b" " * 500 for _ in range(8))
    headers = {"content-type": "application/json"}
    assert (
        running.web.post("/v1/chat/completions", content=pieces, headers=headers).status_code == 413
    )


def test_a_body_that_does_not_come_is_not_waited_for(start: Any) -> None:
    running = start(body_seconds=0.05)
    port = int(running.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        )
        wire.settimeout(10)
        assert wire.recv(100).startswith(b"HTTP/1.1 408")


def test_too_many_requests_are_refused_and_the_others_keep_their_places(
    start: Any, expert: Any
) -> None:
    running = start({"a": expert("a", {"*": "x"}, faults=SLOW)}, running=1, waiting=1)
    with asking(running, "expert/a", 2):
        running.wait_until(lambda: running.app.gate.waiting == 1)
        reply = running.post("expert/a", "Where?")
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "too_many_requests")
        assert reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["type"] == "rate_limit_error"
        assert running.web.get("/health").status_code == 200


def test_a_server_that_ends_says_so(start: Any) -> None:
    running = start()
    running.app.gate.drain()
    reply = running.post("expert/a", "Where?")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "draining")
    assert running.web.get("/health").status_code == 503
    assert running.web.get("/health").json()["status"] == "draining"


@pytest.mark.parametrize("model", ["expert/a", "expertmix/auto"])
def test_an_answer_that_takes_too_long_is_given_up(start: Any, expert: Any, model: str) -> None:
    running = start({"a": expert("a", {"*": "x"}, faults=SLOW)}, seconds=0.3)
    reply = running.post(model, "Where?")
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    assert reply.headers["x-should-retry"] == "false"
    text = running.post(model, "Where?", stream=True).text
    assert '"code": "timeout"' in text
    engine = running.engines["a"]
    running.wait_until(lambda: engine.cancelled == engine.calls > 0)


def test_an_error_of_ours_is_told_by_a_number(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any, body: Any) -> None:
        raise RuntimeError(f"cannot read {body.messages[0].content}")

    monkeypatch.setattr(Panel, "read", fail)
    running = start()
    with caplog.at_level(logging.DEBUG):
        reply = running.post("expertmix/auto", "my secret words")
    assert reply.status_code == 500
    number = reply.headers["x-request-id"]
    assert number in reply.json()["error"]["message"]
    assert "secret" not in reply.text
    assert "secret" not in caplog.text
    assert f"{number} failed: RuntimeError at " in caplog.text


def test_nothing_that_is_asked_or_answered_is_logged(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    running = start({"a": "my secret answer"})
    with caplog.at_level(logging.DEBUG):
        for stream in (False, True):
            for model in ("expert/a", "expertmix/auto", "my secret model"):
                running.post(model, "my secret question", stream=stream, user="my secret name")
        running.web.get("/v1/models/my secret model")
    # The client is in this process too; and the real server has no access log of uvicorn's.
    theirs = ("httpx", "httpcore.http11", "httpcore.connection", "uvicorn.access")
    ours = [record for record in caplog.records if record.name not in theirs]
    assert any(" expert/a 200 " in record.getMessage() for record in ours)
    assert not [record for record in ours if "secret" in record.getMessage()]
