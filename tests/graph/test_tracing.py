"""Traces of the graph: OpenInference's spans with the pool's below them, and LangSmith's runs if they are wanted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from langchain_spans import record_spans

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import asolve

SAID = {"a": "Answer: 2", "b": "Answer: 2", "c": "Answer: 3"}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with record_spans(monkeypatch) as memory:
        yield memory


async def test_the_pools_spans_stand_below_the_graphs_nodes(exporter: Any) -> None:
    from opentelemetry import trace

    engines = {alias: ScriptedEngine(alias, {"*": said}) for alias, said in SAID.items()}
    with (
        Pool.from_engines(engines) as pool,
        trace.get_tracer("test").start_as_current_span("application"),
    ):
        await asolve(["What is 1 + 1?", "What is 2 + 0?"], pool, aggregator="a")
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}

    def ancestors(span: Any) -> list[str]:
        names: list[str] = []
        while span.parent is not None:
            span = spans[span.parent.span_id]
            names.append(span.name)
        return names

    calls = [span for span in spans.values() if span.name.startswith("chat ")]
    found = sorted((span.name, ancestors(span)[0]) for span in calls)
    assert found == [
        ("chat a", "aggregate"),
        ("chat a", "reason"),
        ("chat b", "reason"),
        ("chat c", "reason"),
    ]
    assert all(
        ancestors(span) == [ancestors(span)[0], "LangGraph", "application"] for span in calls
    )
    nodes = [span for span in spans.values() if span.name == "reason"]
    assert len({span.context.span_id for span in nodes}) == 3
    loads = [span for span in spans.values() if span.name.startswith("load ")]
    assert {ancestors(span)[0] for span in loads} == {"chat a", "chat b", "chat c"}
    text = "".join(span.to_json() for span in spans.values())
    assert "ScriptedEngine" not in text
    assert "Resources(" not in text


SCRIPT = """
import asyncio, json, sys
import langsmith
from expertmix.agents import Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import asolve
made = []
init = langsmith.Client.__init__
def spy(self, *given, **more):
    made.append(1)
    init(self, *given, **more)
langsmith.Client.__init__ = spy
engines = {alias: ScriptedEngine(alias, {"*": said}) for alias, said in json.loads(sys.argv[1]).items()}
with Pool.from_engines(engines) as pool:
    result = asyncio.run(asolve("What is 1 + 1?", pool))
from langchain_core.tracers.langchain import wait_for_all_tracers
wait_for_all_tracers()
print(json.dumps([result[0].answer, len(made)]))
"""


class Collector(ThreadingHTTPServer):
    """An address that takes whatever LangSmith's client sends."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Taker)


class Taker(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        limits = {
            "use_multipart_endpoint": False,
            "size_limit": 100,
            "size_limit_bytes": 20_971_520,
            "scale_up_nthreads_limit": 16,
            "scale_up_qsize_trigger": 1000,
        }
        self.answer(json.dumps({"version": "1", "batch_ingest_config": limits}).encode())

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"] or 0)))
        self.answer(b"{}")

    do_PATCH = do_POST

    def answer(self, body: bytes) -> None:
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_with(collector: Collector, place: Path, **variables: str) -> list[Any]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LANGSMITH", "LANGCHAIN"))}
    settings = {
        "LANGSMITH_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "LANGSMITH_API_KEY": "none",
        "LANGSMITH_DISABLE_RUN_COMPRESSION": "true",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(SAID)],
        env={**kept, **settings, **variables},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("langsmith") is None, reason="needs langsmith"
)


def test_langsmith_hears_nothing_unless_the_environment_says_so(
    collector: Collector, tmp_path: Path
) -> None:
    assert run_with(collector, tmp_path) == ["2", 0]
    assert not collector.paths


def test_langsmith_gets_the_nodes_runs_and_nothing_that_is_live(
    collector: Collector, tmp_path: Path
) -> None:
    answer, clients = run_with(collector, tmp_path, LANGSMITH_TRACING="true")
    assert answer == "2"
    assert clients
    sent = b"".join(collector.bodies).decode()
    for node in ("extract_skills", "recruit", "reason", "aggregate"):
        assert f'"{node}"' in sent
    assert "What is 1 + 1?" in sent
    for live in ("ScriptedEngine", "Resources(", "pool.Pool", "Expertise", "extractor="):
        assert live not in sent
