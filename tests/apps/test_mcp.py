"""The MCP server, asked by the SDK's own client: over streams, over HTTP, and in ways that nobody should."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from expertmix.agents import Pool, Profile
from expertmix.agents.engines.scripted import GARBAGE, Faults, ScriptedEngine
from expertmix.apps.consulting import Consultant
from expertmix.graph import make_resources
from expertmix.retrieval import InputError

if importlib.util.find_spec("mcp_types") is None:
    pytest.skip("needs mcp: pip install 'expertmix[mcp]'", allow_module_level=True)

from mcp import Client
from mcp.client.stdio import StdioServerParameters

from expertmix.apps.mcp import PanelServer, describe_experts
from expertmix.apps.mcp_commands import mcp
from expertmix.apps.mcp_transports import HttpSettings, create_http_app

PARIS = {"question": "What is the capital of France?"}
CHOICE = {**PARIS, "options": ["Lyon", "Paris"]}
SAID = {"a": "Answer: Paris", "b": "Answer: Paris", "c": "Answer: Lyon"}
COMMAND = [sys.executable, "-W", "error", "-m", "expertmix.apps.cli", "mcp"]
SECRET = "my-secret-question"


def write_pool(place: Path, said: Mapping[str, str], **more: Any) -> str:
    rows: list[dict[str, Any]] = []
    for alias, line in said.items():
        (place / f"{alias}.json").write_text(json.dumps({"*": line}))
        rows.append({"alias": alias, "engine": "scripted", "script": f"{alias}.json", **more})
    path = place / "pool.yaml"
    path.write_text(json.dumps({"experts": rows}))
    return str(path)


def wait_for(has_come: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not has_come():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


# In this process


def make_server(
    said: Mapping[str, Any] | None = None, *, running: int = 16, **settings: Any
) -> tuple[PanelServer, Pool]:
    engines = {
        alias: given if isinstance(given, ScriptedEngine) else ScriptedEngine(alias, {"*": given})
        for alias, given in (said or SAID).items()
    }
    pool = Pool.from_engines(engines).open()
    return PanelServer(Consultant(make_resources(pool), **settings), running=running), pool


@contextlib.asynccontextmanager
async def connected(
    said: Mapping[str, Any] | None = None, mode: str = "auto", **settings: Any
) -> AsyncGenerator[Client]:
    server, pool = make_server(said, **settings)
    with contextlib.closing(pool):
        async with Client(server.protocol, mode=mode) as client:
            yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_answer_comes_as_text_and_as_structure(mode: str) -> None:
    async with connected(mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        reply = await client.call_tool("ask_experts", CHOICE)
    assert tools.keys() == {"ask_experts", "list_experts"}
    for tool in tools.values():
        assert tool.output_schema is not None
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert not tool.annotations.open_world_hint
    assert tools["ask_experts"].input_schema["required"] == ["question"]
    assert not reply.is_error
    told: Any = reply.content[0]
    assert told.text.startswith('Answer: (B) "Paris"\nConfidence: 67%')
    content = reply.structured_content
    assert (content["answer"], content["option"]) == ("B", "Paris")
    assert sorted(content["agreed"]) == ["a", "b"]
    assert content["dissent"] == [{"answer": "A", "experts": ["c"]}]


async def test_a_client_may_follow_the_experts() -> None:
    heard: list[tuple[float, str]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    async with connected() as client:
        await client.call_tool("ask_experts", PARIS, progress_callback=hear)
    words = [message for _, message in heard]
    assert {f"{alias} is asked" for alias in SAID} <= set(words)
    assert {f"{alias} has answered" for alias in SAID} <= set(words)
    numbers = [progress for progress, _ in heard]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("ask_experts", {}, "question: Field required"),
        ("ask_experts", {"question": ["x"]}, "question: Input should be a valid string"),
        ("ask_experts", {"question": " \n"}, 'it has no "text"'),
        ("ask_experts", {"question": "x" * 30_000}, "at most 20000 characters"),
        ("ask_experts", {**PARIS, "options": ["x"] * 500}, "at most 26 items"),
        ("ask_experts", {**PARIS, "kind": {"$ref": "#"}}, "kind: Input should be"),
        ("ask_experts", {**PARIS, "kind": "choice"}, "but it has 0 options"),
        ("__class__", PARIS, "There is no such tool"),
        ("../../etc/passwd", {}, "There is no such tool"),
    ],
)
async def test_hostile_arguments_get_words(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    async with connected() as client:
        reply = await client.call_tool(name, arguments)
        told: Any = reply.content[0]
        assert reply.is_error
        assert words in told.text
        assert len(told.text) < 500
        assert not (await client.call_tool("ask_experts", PARIS)).is_error


async def test_failures_are_told_without_their_words() -> None:
    def broken() -> ScriptedEngine:
        return ScriptedEngine("c", {"*": "x"}, faults=Faults(load="/secret/path is missing"))

    async with connected({"a": "Answer: Paris", "b": GARBAGE, "c": broken()}) as client:
        reply = await client.call_tool("ask_experts", PARIS)
    told: Any = reply.content[0]
    assert not reply.is_error
    assert reply.structured_content["failed"] == ["c"]
    assert told.text.endswith("Failed: c")
    for part in ("secret", "\x1b", "\x00", "<|im_end|>"):
        assert part not in reply.model_dump_json() + told.text
    async with connected({"c": broken()}) as client:
        reply = await client.call_tool("ask_experts", PARIS)
    told = reply.content[0]
    assert reply.is_error
    assert "All experts failed (c)" in told.text


async def test_only_so_many_questions_run_at_one_time() -> None:
    slow = ScriptedEngine("a", {"*": "Answer: Paris"}, latency=0.2)
    async with connected({"a": slow}, running=2) as client:
        replies = await asyncio.gather(
            *(client.call_tool("ask_experts", {"question": f"Where is {n}?"}) for n in range(5))
        )
        busy: list[Any] = [reply.content[0] for reply in replies if reply.is_error]
        assert len(busy) == 3
        assert all("Ask again in a moment" in told.text for told in busy)
        assert not (await client.call_tool("ask_experts", PARIS)).is_error


async def test_time_is_limited_and_a_client_may_give_up() -> None:
    def slow() -> ScriptedEngine:
        return ScriptedEngine("a", {"*": "Answer: Paris"}, latency=300.0)

    async with connected({"a": slow()}, seconds=0.05) as client:
        reply = await client.call_tool("ask_experts", PARIS)
    told: Any = reply.content[0]
    assert "no answer within 0.05 seconds" in told.text
    server, pool = make_server({"a": slow()})
    with contextlib.closing(pool):
        async with Client(server.protocol, mode="legacy") as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.call_tool("ask_experts", PARIS)
            async with asyncio.timeout(10):
                while server.running:
                    await asyncio.sleep(0.01)


async def test_the_experts_are_listed_with_what_is_known_of_them(profiled: Any) -> None:
    async with connected() as client:
        reply = await client.call_tool("list_experts", {})
    cards = reply.structured_content["experts"]
    assert cards == [{"name": n, "accuracy": None, "good_at": []} for n in "abc"]
    known = describe_experts(profiled)
    assert [card.name for card in known.experts] == ["a", "b"]
    assert known.experts[0].accuracy is not None
    assert known.experts[0].good_at[0] == "sums"
    assert known.experts[1].good_at[0] == "towns"


@pytest.fixture
async def profiled() -> Any:
    from expertmix.agents import build_profile
    from expertmix.retrieval import Question

    questions = [
        Question(id=f"{skill}{n}", text=f"{skill} {n}", gold="yes", skills=(skill,))
        for skill in ("sums", "towns")
        for n in range(8)
    ]
    lines = {
        "a": {q.id: f"Answer: {'yes' if q.skills == ('sums',) else 'no'}" for q in questions},
        "b": {q.id: f"Answer: {'yes' if q.skills == ('towns',) else 'no'}" for q in questions},
    }
    engines = {alias: ScriptedEngine(alias, script) for alias, script in lines.items()}
    with Pool.from_engines(engines) as pool:
        skills = {q.id: {q.skills[0]: 1.0} for q in questions}
        profile: Profile = await build_profile(pool, questions, skills)
        yield make_resources(pool, profile=profile)


# Over streams


def stdio(pool: str, *options: str) -> StdioServerParameters:
    command, *arguments = [*COMMAND, "--pool", pool, *options]
    return StdioServerParameters(command=command, args=arguments, env={"HF_HUB_OFFLINE": "1"})


async def test_over_streams(tmp_path: Path) -> None:
    pool = write_pool(tmp_path, SAID)
    async with Client(stdio(pool, "--k", "3"), read_timeout_seconds=60) as client:
        reply = await client.call_tool("ask_experts", PARIS)
        assert reply.structured_content["answer"] == "Paris"
        assert (await client.call_tool("ask_experts", {"question": 3})).is_error
        assert len((await client.call_tool("list_experts", {})).structured_content["experts"]) == 3


class Streams:
    """The command with both its ends in our hands."""

    def __init__(self, pool: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--pool", pool, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )

    def send(self, *lines: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(line + b"\n" for line in lines))
        self.process.stdin.flush()

    def ask(self, method: str, number: int | None = None, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        self.send(json.dumps(message if number is None else {**message, "id": number}).encode())

    def greet(self) -> dict[str, Any]:
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}}
        self.ask("initialize", 0, **hello, clientInfo={"name": "test", "version": "1"})
        reply = self.hear()
        self.ask("notifications/initialized")
        return reply

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self) -> tuple[int, bytes, bytes]:
        """Close the client's end; the exit code, the rest of stdout, and stderr."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture
def open_streams(tmp_path: Path) -> Iterator[Callable[..., Streams]]:
    opened: list[Streams] = []

    def begin(said: Mapping[str, str], *options: str, **more: Any) -> Streams:
        opened.append(Streams(write_pool(tmp_path, said, **more), *options))
        return opened[-1]

    yield begin
    for streams in opened:
        streams.process.kill()
        streams.process.communicate()


def test_noise_on_the_streams_harms_nobody(open_streams: Callable[..., Streams]) -> None:
    streams = open_streams(SAID, "--max-body", "4000")
    streams.send(b"\xff\xfe garbage", b"", b"[" * 3000, b"{}", b"null", b'{"jsonrpc": "2.0"}')
    streams.send(b"x" * 5_000_000)
    assert streams.greet()["result"]["serverInfo"]["name"] == "expertmix"
    streams.ask("tools/call", 1, name="ask_experts", arguments={"question": "\u202e\x00?"})
    streams.ask("tools/call", 2, name="ask_experts", arguments=None)
    streams.ask("no/such/method", 3)
    replies = {reply["id"]: reply for reply in (streams.hear() for _ in range(3))}
    assert replies[1]["result"]["structuredContent"]["answer"] == "Paris"
    assert replies[2]["result"]["isError"]
    assert "error" in replies[3]
    code, rest, told = streams.end()
    assert (code, rest) == (0, b"")
    assert b"Traceback" not in told


def test_what_is_printed_never_reaches_the_protocol(tmp_path: Path) -> None:
    script = """
import os, subprocess, sys
from expertmix.apps.mcp_transports import open_wire
with open_wire() as wire:
    print("printed")
    os.write(1, b"written\\n")
    subprocess.run(["sh", "-c", "echo child; cat"], check=True)
    wire.sink.write("protocol\\n")
print("after")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], input="never read\n", capture_output=True, text=True
    )
    assert done.stdout == "protocol\nafter\n"
    assert sorted(done.stderr.split()) == ["child", "printed", "written"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_a_question_runs(
    open_streams: Callable[..., Streams], number: signal.Signals
) -> None:
    streams = open_streams({"a": "Answer: Paris"}, latency=300.0)
    streams.greet()
    asked = {"name": "ask_experts", "arguments": {"question": SECRET}}
    streams.ask("tools/call", 1, **asked, _meta={"progressToken": 1})
    assert streams.hear()["method"] == "notifications/progress"
    streams.process.send_signal(number)
    assert streams.process.wait(10) == 128 + number  # with its stdin still open
    _, _, told = streams.end()
    assert b"Traceback" not in told
    assert SECRET.encode() not in told


def test_a_client_that_leaves_while_a_question_runs_ends_it(
    open_streams: Callable[..., Streams],
) -> None:
    streams = open_streams({"a": "Answer: Paris"}, latency=300.0)
    streams.greet()
    streams.ask("tools/call", 1, name="ask_experts", arguments=PARIS)
    assert streams.end()[0] == 0


# Over HTTP


@contextlib.contextmanager
def serving(
    said: Mapping[str, Any] | None = None, settings: HttpSettings | None = None, **more: Any
) -> Generator[tuple[str, PanelServer]]:
    import socket

    import uvicorn

    server, pool = make_server(said, **more)
    app: Any = create_http_app(server, settings or HttpSettings())
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=1
    )
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: web.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", server
    finally:
        web.should_exit = True
        thread.join()
        listener.close()
        pool.close()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_http(mode: str) -> None:
    heard: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    with serving() as (url, _):
        async with Client(url, mode=mode) as client:
            reply = await client.call_tool("ask_experts", PARIS, progress_callback=hear)
            assert reply.structured_content["answer"] == "Paris"
            assert (await client.call_tool("ask_experts", {})).is_error
    assert "a has answered" in heard


HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}
HEADERS = {"accept": "application/json, text/event-stream"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost:1"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"content-type": "text/plain"}, 400),
    ],
)
def test_pages_in_a_browser_stay_outside(headers: dict[str, str], status: int) -> None:
    with serving() as (url, _), httpx.Client(trust_env=False, verify=False) as web:
        assert web.post(url, json=HELLO, headers={**HEADERS, **headers}).status_code == status


def test_large_and_broken_bodies_are_refused() -> None:
    with (
        serving(settings=HttpSettings(max_body=2000)) as (url, _),
        httpx.Client(trust_env=False, verify=False) as web,
    ):
        headers = {**HEADERS, "content-type": "application/json"}
        assert web.post(url, content=b"x" * 3000, headers=headers).status_code == 413
        chunks = (b"x" * 500 for _ in range(10))
        assert web.post(url, content=chunks, headers=headers).status_code == 413
        assert web.post(url, content=b"{", headers=headers).status_code == 400
        assert web.post(url, content=b"[" * 1500, headers=headers).status_code == 400
        assert web.get(url.replace("/mcp", "/metrics"), headers=headers).status_code == 404
        assert web.post(url, json=HELLO, headers=HEADERS).status_code == 200


@pytest.mark.parametrize(
    ("given", "status"),
    [(None, 401), ("Bearer wrong", 401), ("key", 401), ("bearer key", 200), ("Bearer \xe9", 401)],
)
def test_with_a_key_only_who_has_it_comes_in(given: str | None, status: int) -> None:
    headers = {**HEADERS, **({} if given is None else {"authorization": given})}
    raw: Any = {name: value.encode("latin-1") for name, value in headers.items()}
    with (
        serving(settings=HttpSettings(api_key="key")) as (url, _),
        httpx.Client(trust_env=False, verify=False) as web,
    ):
        assert web.post(url, json=HELLO, headers=raw).status_code == status


async def test_a_client_that_disconnects_leaves_the_others_alone() -> None:
    def latency(request: Any) -> float:
        return 300.0 if "slow" in request.messages[-1]["content"] else 0.0

    slow = ScriptedEngine("a", {"*": "Answer: Paris"}, latency=latency)
    with serving({"a": slow}) as (url, server):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                async with Client(url) as client:
                    await client.call_tool("ask_experts", {"question": "Be slow?"})
        await asyncio.to_thread(wait_for, lambda: not server.running)
        async with Client(url) as client:
            assert not (await client.call_tool("ask_experts", PARIS)).is_error


async def test_clients_that_give_up_leave_no_work_behind_and_do_not_pass_the_limit() -> None:
    """The SDK cancels again and again; two experts work side by side."""

    class Counting(ScriptedEngine):
        now = most = 0

        async def generate(self, requests: Any, on_reply: Any = None) -> Any:
            type(self).now += 1
            type(self).most = max(self.most, self.now)
            try:
                return await super().generate(requests, on_reply)
            finally:
                type(self).now -= 1

    engines = {name: Counting(name, {"*": "Answer: Paris"}, latency=60) for name in "ab"}
    with serving(engines, running=2) as (url, server):
        async with Client(url) as client:
            for number in range(8):
                with contextlib.suppress(Exception):
                    await client.call_tool(
                        "ask_experts", {"question": f"Question {number}?"}, read_timeout_seconds=0.2
                    )
            await asyncio.to_thread(wait_for, lambda: not server.running)
            await asyncio.to_thread(wait_for, lambda: not Counting.now)
    assert Counting.most <= 4, "two questions of two experts"


@pytest.mark.parametrize(("latency", "grace", "code"), [(1.0, "60", 0), (300.0, "0.2", 143)])
def test_sigterm_lets_running_questions_finish(
    tmp_path: Path, latency: float, grace: str, code: int
) -> None:
    pool = write_pool(tmp_path, {"a": "Answer: Paris"}, latency=latency)
    options = ["--transport", "http", "--port", "0", "--grace", grace, "--pool", pool]
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    url = process.stdout.readline().decode().strip().removeprefix("serving on ")
    replies: list[Any] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        if not replies:
            replies.append(None)
            process.send_signal(signal.SIGTERM)

    async def ask() -> None:
        with contextlib.suppress(Exception):
            async with Client(url, read_timeout_seconds=20) as client:
                asked = {"question": SECRET}
                replies.append(await client.call_tool("ask_experts", asked, progress_callback=hear))

    try:
        asyncio.run(ask())
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert b"Traceback" not in told
    assert SECRET.encode() not in told
    if code == 0:
        assert replies[1].structured_content["answer"] == "Paris"
        assert told.endswith(b"has been answered\n")
    else:
        assert b"questions given up: 1" in told
        assert "The server is ending" in replies[1].content[0].text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--transport", "http", "--host", "0.0.0.0"], "0.0.0.0 can be reached from other"),
        (["--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is empty or not set"),
        (["--transport", "http", "--port", "0", "--k", "7"], "k is 7"),
        (["--transport", "http", "--port", "0", "--samples", "20"], "may make 20 calls"),
        (["--pool", "nowhere.yaml"], "no pool file at nowhere.yaml"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_sentence(
    tmp_path: Path, options: list[str], words: str
) -> None:
    app = typer.Typer()
    app.command()(mcp)
    pool = write_pool(tmp_path, {"a": "Answer: Paris"})
    result = CliRunner().invoke(app, ["--pool", pool, *options])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_without_the_package_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec

    def find(name: str, *more: Any) -> Any:
        return None if name == "mcp" else found(name, *more)

    monkeypatch.setattr("importlib.util.find_spec", find)
    app = typer.Typer()
    app.command()(mcp)
    result = CliRunner().invoke(app, [])
    assert 'pip install "expertmix[mcp]"' in str(result.exception)
