"""The spans of LangChain's runs and of the pool, as OpenInference and OpenTelemetry record them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["record_spans"]


@contextmanager
def record_spans(monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """Give an exporter that holds every finished span; without the packages, skip the test.

    The instrumentation is the process's, so it ends here.
    """
    pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")
    pytest.importorskip(
        "openinference.instrumentation.langchain",
        reason="needs openinference-instrumentation-langchain",
    )
    from openinference.instrumentation.langchain import LangChainInstrumentor
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    find = trace.get_tracer

    def get_tracer(name: str, version: Any = None, given: Any = None, *more: Any, **kw: Any) -> Any:
        return find(name, version, given or provider, *more, **kw)

    monkeypatch.setattr(trace, "get_tracer", get_tracer)
    LangChainInstrumentor().instrument(tracer_provider=provider)
    try:
        yield memory
    finally:
        LangChainInstrumentor().uninstrument()
        provider.shutdown()
