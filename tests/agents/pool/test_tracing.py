"""What a pool tells OpenTelemetry, and that it costs nothing where nobody listens."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents import AnswerStore, Catalog, Pool
from expertmix.agents.engines import Message, Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.agents.pool.groups import group_experts
from expertmix.agents.pool.tracing import PoolTracing

sdk: Any = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")

SECRET = "my secret question"


class Spans:
    """What was recorded, and a tracer for those around it."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        self.provider = sdk.TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def all(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def named(self, start: str) -> list[Any]:
        return [span for span in self.all if span.name.startswith(start)]

    def text(self) -> str:
        return "".join(span.to_json() for span in self.all)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """A provider for this test alone: the real one can be set only once in a process."""
    from opentelemetry import trace

    recorded = Spans()

    def get_tracer(name: str, *_: Any, **__: Any) -> Any:
        return recorded.provider.get_tracer(name)

    monkeypatch.setattr(trace, "get_tracer", get_tracer)
    yield recorded
    recorded.provider.shutdown()


def ask(number: int = 1, text: str = SECRET) -> list[Request]:
    turn: Message = {"role": "user", "content": text}
    return [Request(id=f"q{n}#0", messages=(turn,), question_id=f"q{n}") for n in range(number)]


def make_pool(*engines: ScriptedEngine, local: bool = False, **settings: Any) -> Pool:
    memory = {"memory_gib": 1.0} if local else {}
    rows = [{"alias": engine.name, "engine": "given", **memory} for engine in engines]
    devices = [{"name": "cpu", "parallel": 1, "memory_gib": 1.5}]
    catalog = Catalog.from_dict({"experts": rows, **({"devices": devices} if local else {})})
    return Pool(catalog, engines={engine.name: engine for engine in engines}, **settings)


async def test_a_call_is_a_span_below_its_callers_with_what_it_cost(spans: Spans) -> None:
    pool = make_pool(ScriptedEngine("a", {"*": "one two"}))
    with pool, spans.tracer.start_as_current_span("node") as node:
        await pool.generate("a", ask(3), stage="reason")
    (call,) = spans.named("chat ")
    assert call.name == "chat a"
    assert call.parent.span_id == node.get_span_context().span_id
    assert call.context.trace_id == node.get_span_context().trace_id
    told = dict(call.attributes)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "given"
    assert (told["gen_ai.request.model"], told["gen_ai.agent.name"]) == ("a", "a")
    assert (told["expertmix.stage"], told["expertmix.requests"]) == ("reason", 3)
    assert told["gen_ai.usage.input_tokens"] == 9
    assert told["gen_ai.usage.output_tokens"] == 6
    assert told["gen_ai.request.max_tokens"] == 512
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert call.status.is_unset
    assert len(spans.named("request ")) == 0


def test_the_names_are_those_of_the_conventions(spans: Spans) -> None:
    semconv: Any = pytest.importorskip("opentelemetry.semconv._incubating.attributes")
    from opentelemetry.semconv._incubating.attributes import (
        gen_ai_attributes,  # pyright: ignore[reportMissingImports]
    )

    assert semconv
    known = {value for name, value in vars(gen_ai_attributes).items() if name.isupper()}
    with make_pool(ScriptedEngine("a", {"*": "x"}), local=True) as pool:
        asyncio.run(pool.generate("a", ask()))
    used = {key for span in spans.all for key in span.attributes if key.startswith("gen_ai.")}
    assert used <= known
    assert len(used) > 8


async def test_loads_and_batches_stand_below_the_call_that_waits(spans: Spans) -> None:
    engines = [ScriptedEngine(name, {"*": "x y"}, memory_bytes=1, latency=0.02) for name in "ab"]
    pool = make_pool(*engines, local=True)
    with pool, spans.tracer.start_as_current_span("node") as node:
        await asyncio.gather(pool.generate("a", ask(2)), pool.generate("b", ask(3)))
        await pool.generate("b", ask(1))
    calls = {span.context.span_id: span for span in spans.named("chat ")}
    assert len(calls) == 3
    assert {call.parent.span_id for call in calls.values()} == {node.get_span_context().span_id}
    loads, batches = spans.named("load "), spans.named("batch ")
    assert sorted(span.name for span in loads) == ["load a", "load b"]
    assert sorted(span.name for span in batches) == ["batch a", "batch b", "batch b"]
    for span in (*loads, *batches):
        assert calls[span.parent.span_id].name == span.name.replace(span.name.split()[0], "chat")
        assert span.attributes["expertmix.device"] == "cpu"
        assert span.start_time <= span.end_time
    first, second = sorted(loads, key=lambda span: span.start_time)
    assert first.attributes["expertmix.load.way"] == "fresh"
    assert second.attributes["expertmix.load.previous"] == first.name.removeprefix("load ")
    assert sorted(span.attributes["expertmix.requests"] for span in batches) == [1, 2, 3]
    assert {span.attributes["expertmix.experts"] for span in batches} == {("a",), ("b",)}


async def test_callers_that_share_a_load_are_linked(spans: Spans) -> None:
    engine = ScriptedEngine("a", {"*": "x"}, load_seconds=0.05)
    with make_pool(engine, local=True) as pool:
        await asyncio.gather(*(pool.generate("a", ask()) for _ in range(3)))
    (load,) = spans.named("load ")
    ids = {load.parent.span_id, *(link.context.span_id for link in load.links)}
    assert ids <= {span.context.span_id for span in spans.named("chat ")}
    assert len(ids) >= 1


async def test_failures_are_marked_without_their_words(spans: Spans) -> None:
    faults = Faults(fail_ids={"q1"})
    with make_pool(ScriptedEngine("a", {"*": "x"}, faults=faults)) as pool:
        await pool.generate("a", ask(3))
    (call,) = spans.named("chat ")
    assert not call.status.is_ok
    assert call.status.description == "1 of 3 requests failed: engine"
    assert call.attributes["error.type"] == "engine"
    assert call.attributes["expertmix.requests.failed"] == 1


async def test_a_failed_load_is_marked(spans: Spans) -> None:
    broken = ScriptedEngine("a", {"*": "x"}, faults=Faults(load="no such weights"))
    with make_pool(broken, local=True) as pool:
        await pool.generate("a", ask())
    (load,), (call,) = spans.named("load "), spans.named("chat ")
    assert load.attributes["error.type"] == call.attributes["error.type"] == "load"
    assert "no such weights" in load.status.description


async def test_a_call_that_is_cancelled_ends_its_span(spans: Spans) -> None:
    pool = make_pool(ScriptedEngine("a", {"*": "x"}, latency=300.0))
    with pool, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pool.generate("a", ask())
    (call,) = spans.named("chat ")
    assert call.attributes["error.type"] == "CancelledError"


async def test_a_stream_is_a_call(spans: Spans) -> None:
    pool = make_pool(ScriptedEngine("a", {"*": "one two"}))
    with pool, spans.tracer.start_as_current_span("node") as node:
        chunks = [chunk async for chunk in pool.stream("a", ask()[0])]
    assert chunks[-1].reply is not None
    (call,) = spans.named("chat ")
    assert call.parent.span_id == node.get_span_context().span_id
    assert call.attributes["expertmix.stage"] == "stream"
    assert call.attributes["gen_ai.usage.output_tokens"] == 2


async def test_what_an_engine_does_stands_below_the_call(spans: Spans) -> None:
    class Calling(ScriptedEngine):
        async def generate(self, *arguments: Any, **more: Any) -> Any:
            with spans.tracer.start_as_current_span("http request"):
                return await super().generate(*arguments, **more)

    with make_pool(Calling("a", {"*": "x"})) as pool:
        for _ in range(2):
            await pool.generate("a", ask())
    parents = [span.parent.span_id for span in spans.named("http request")]
    assert parents == [span.context.span_id for span in spans.named("chat ")]


async def test_stored_replies_cost_nothing(spans: Spans, tmp_path: Path) -> None:
    script = tmp_path / "a.json"
    script.write_text(json.dumps({"*": "one two"}))
    row = {"alias": "a", "engine": "scripted", "script": str(script)}
    catalog = Catalog.from_dict({"experts": [row]}, base=tmp_path)
    with Pool(catalog, store=AnswerStore(tmp_path / "store")) as pool:
        await pool.generate("a", ask(2))
        await pool.generate("a", ask(3))
    first, second = (dict(span.attributes) for span in spans.named("chat "))
    assert (first["expertmix.requests.reused"], second["expertmix.requests.reused"]) == (0, 2)
    assert first["gen_ai.usage.output_tokens"] == 4
    assert second["gen_ai.usage.output_tokens"] == 2


@pytest.mark.parametrize("wanted", ["", "false", "no_content", "event_only", "true", "SPAN_ONLY"])
async def test_content_is_recorded_only_where_it_is_wanted(
    spans: Spans, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", wanted)
    with make_pool(ScriptedEngine("a", {"*": "my secret answer"}), local=True) as pool:
        await pool.generate("a", ask(2))
    if wanted not in ("true", "SPAN_ONLY"):
        assert "secret" not in spans.text()
        assert not spans.named("request ")
        return
    one, two = spans.named("request ")
    assert one.parent.span_id == two.parent.span_id == spans.named("chat ")[0].context.span_id
    (turn,) = json.loads(one.attributes["gen_ai.input.messages"])
    assert turn == {"role": "user", "parts": [{"type": "text", "content": SECRET}]}
    (turn,) = json.loads(one.attributes["gen_ai.output.messages"])
    assert turn["parts"] == [{"type": "text", "content": "my secret answer"}]


async def test_requests_have_spans_without_content_if_that_is_asked_for(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERTMIX_TRACE_REQUESTS", "1")
    faults = Faults(fail_ids={"q1"})
    with make_pool(ScriptedEngine("a", {"*": "my secret answer"}, faults=faults)) as pool:
        await pool.generate("a", ask(2))
    told = {span.attributes["expertmix.question"]: span for span in spans.named("request ")}
    assert told.keys() == {"q0", "q1"}
    assert told["q1"].attributes["error.type"] == "engine"
    assert told["q0"].attributes["gen_ai.usage.output_tokens"] == 3
    assert "secret" not in spans.text()


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_processor_that_breaks_costs_only_the_call_whose_span_it_was(
    spans: Spans, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_kept: bool
) -> None:
    class Broken(sdk.SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if span.name == "request q3#0":
                raise OSError("the queue is gone")

    spans.provider.add_span_processor(Broken())
    monkeypatch.setenv("EXPERTMIX_TRACE_REQUESTS", "1")
    store = AnswerStore(tmp_path / "replies.sqlite") if is_kept else None
    pool = Pool.from_engines({"a": ScriptedEngine("a", {"*": "x"})}, store=store)
    async with asyncio.timeout(10), pool:
        done = await asyncio.gather(
            *(pool.generate("a", ask(number)) for number in (2, 5)), return_exceptions=True
        )
        assert isinstance(done[0], list)
        assert isinstance(done[1], OSError)
        assert len(await pool.generate("a", ask(2))) == 2


async def test_a_sampler_that_drops_the_trace_drops_ours(spans: Spans) -> None:
    from opentelemetry import trace

    dropped = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    with make_pool(ScriptedEngine("a", {"*": "x"}), local=True) as pool, trace.use_span(dropped):
        await pool.generate("a", ask())
    assert not spans.all


def test_without_opentelemetry_nothing_is_imported(tmp_path: Path) -> None:
    script = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from expertmix.agents import Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import ScriptedEngine
with Pool.from_engines({"a": ScriptedEngine("a", {"*": "x"})}) as pool:
    turn = {"role": "user", "content": "?"}
    (reply,) = asyncio.run(pool.generate("a", [Request(id="1", messages=(turn,))]))
print(reply.text, "opentelemetry.trace" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "x False\n", done.stderr


def test_without_a_provider_it_costs_next_to_nothing() -> None:
    """10,000 requests, each a call of its own (the worst case): less than 5 % of the pool's CPU time."""
    number = 10_000
    requests = [ask(1)[0] for _ in range(number)]

    def ask_pool() -> float:
        engine = ScriptedEngine("a", {"*": "x"}, keep_requests=False)

        async def all_of_them(pool: Pool) -> None:
            for request in requests:
                await pool.generate("a", [request])

        with make_pool(engine) as pool:
            begun = time.process_time()
            asyncio.run(all_of_them(pool))
            return time.process_time() - begun

    catalog = Catalog.from_dict({"experts": [{"alias": "a", "engine": "given"}]})
    tracing, (group,) = PoolTracing(), group_experts(catalog)

    def trace() -> float:
        begun = time.process_time()
        for request in requests:
            with tracing.begin("a", group, [request], "reason") as call, call.current():
                pass
        return time.process_time() - begun

    share = min(trace() for _ in range(5)) / ask_pool()
    print(f"{share:.1%}")
    assert share < 0.05
