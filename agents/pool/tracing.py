"""OpenTelemetry spans of what a pool does: calls of experts, loads of weights, batches of engines.

A call's parent is OpenInference's span of the LangChain run that its caller is in (a graph's node, a chat model), also
where the caller has a current span of its own; else the current span. Loads and batches serve whoever waits for the
weights: they stand below the call that has waited longest and link to the others.

Nothing is imported here: only a program that has imported `opentelemetry.trace` can have configured a provider,
and without one no span is made. What was asked and answered is recorded only where
`OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` asks for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..engines import Reply, Request
from .events import PoolEvent
from .groups import Group
from .span_attributes import (
    count_usage,
    describe_sampling,
    mark_failed,
    set_error,
    write_messages,
    write_reply,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

__all__ = ["CallSpan", "PoolTracing"]

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
REQUESTS = "EXPERTMIX_TRACE_REQUESTS"
"""If set to 1, each request has a span of its own; with content each has one anyway."""
YES = frozenset({"1", "true", "span_only", "span_and_event"})


class CallSpan:
    """The span of one call: what one caller asks of one expert. Without a provider it does nothing.

    A context manager that ends it, as failed if something is raised. Made by `PoolTracing.begin`.
    """

    def __init__(self) -> None:
        self.span: Span | None = None
        self.waiting: list[CallSpan] = []
        """Where it stands while it waits for its weights."""
        self.replies: list[Reply] = []
        """What came of it."""
        self.asked: Mapping[str, Request] = {}
        """Requests by id, where each has a span of its own."""
        self._reused: frozenset[str] = frozenset()

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        with contextlib.suppress(ValueError):
            self.waiting.remove(self)
        span = self.span
        if span is None or not span.is_recording():
            return
        if error is not None:  # never its words: they may quote what was asked
            set_error(span, type(error).__name__, "the call did not end")
        else:
            self._describe(span)
        span.end()

    @contextlib.contextmanager
    def current(self) -> Generator[None]:
        """Make it the current span of what is started in here, in whichever thread that runs."""
        if self.span is None:
            yield
            return
        with _find_api().use_span(self.span, record_exception=False, set_status_on_exception=False):
            yield

    def reuse(self, replies: Mapping[str, Reply]) -> None:
        """These were known already, by request id; they cost nothing now."""
        self._reused = frozenset(replies)

    def hear(self, reply: Reply) -> None:
        """A reply came."""
        request, tracer = self.asked.get(reply.request_id), _find_tracer() if self.asked else None
        if request is None or tracer is None or self.span is None:
            return
        from opentelemetry.trace import set_span_in_context

        span = tracer.start_span(
            f"request {request.id}",
            context=set_span_in_context(self.span),
            start_time=getattr(self.span, "start_time", None),
            attributes={
                "expertmix.request": request.id,
                "expertmix.request.reused": request.id in self._reused,
                "gen_ai.response.finish_reasons": [reply.finish],
                **count_usage([reply]),
            },
        )
        if request.question_id is not None:
            span.set_attribute("expertmix.question", request.question_id)
        if _is_on(CONTENT):
            span.set_attribute("gen_ai.input.messages", write_messages(request.messages))
            span.set_attribute("gen_ai.output.messages", write_reply(reply))
        if reply.failure is not None:
            mark_failed(span, [reply.failure], 1)
        span.end()

    def _describe(self, span: Span) -> None:
        fresh = [reply for reply in self.replies if reply.request_id not in self._reused]
        span.set_attributes({**count_usage(fresh), "expertmix.requests.reused": len(self._reused)})
        finishes = sorted({reply.finish for reply in self.replies if reply.failure is None})
        if finishes:
            span.set_attribute("gen_ai.response.finish_reasons", finishes)
        failures = [reply.failure for reply in self.replies if reply.failure is not None]
        if failures:
            span.set_attribute("expertmix.requests.failed", len(failures))
            mark_failed(span, failures, len(self.replies))


class PoolTracing:
    """The spans of one pool. `hear` is called from the pool's thread, `begin` from the callers'."""

    def __init__(self) -> None:
        self._known: Tracer | None = None
        self._calls: dict[str, list[CallSpan]] = {}
        """Calls that wait, by the name of their weights, the longest-waiting first."""
        self._loads: dict[tuple[int, str], Span] = {}
        self._batches: dict[int, _Batch] = {}

    def begin(self, alias: str, group: Group, requests: Sequence[Request], stage: str) -> CallSpan:
        """A call of an expert begins, in the caller's context."""
        call, tracer = CallSpan(), self._tracer
        if tracer is None:
            return call
        from opentelemetry.trace import SpanKind

        span = tracer.start_span(
            f"chat {group.name}",
            context=_find_parent(),
            kind=SpanKind.INTERNAL if group.local else SpanKind.CLIENT,
        )
        if not span.get_span_context().is_valid:  # nobody has configured a provider
            return call
        call.span = span
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": group.specs[0].engine,
                    "gen_ai.request.model": group.name,
                    "gen_ai.agent.name": alias,
                    "expertmix.stage": stage,
                    "expertmix.requests": len(requests),
                    **describe_sampling(requests),
                }
            )
            if _is_on(CONTENT) or _is_on(REQUESTS):
                call.asked = {request.id: request for request in requests}
            call.waiting = self._calls.setdefault(group.name, [])
            call.waiting.append(call)
        return call

    @property
    def _tracer(self) -> Tracer | None:
        """Ours; it also serves where a provider is configured only later."""
        if self._known is None:
            self._known = _find_tracer()
        return self._known

    def hear(self, event: PoolEvent) -> None:
        """Something happened in the pool."""
        match event.kind:
            case "loading":
                self._begin_load(event)
            case "ready" | "failed" | "unloaded":
                self._end_load(event)
                if event.kind != "ready":
                    self._end_batch(event)
            case "working":
                self._begin_batch(event)
            case "resting" | "died":
                self._end_batch(event)
            case "finished" if self._batches:
                for batch in self._batches.values():
                    batch.count(event)
            case "tokens" if event.engine in self._batches:
                self._batches[event.engine].tokens += event.number
            case _:
                pass

    def close(self) -> None:
        """The pool has ended; so has whatever was still going on in it."""
        for span in self._loads.values():
            set_error(span, "closed", "the pool was closed")
            span.end()
        for batch in self._batches.values():
            batch.end("closed")
        self._loads.clear()
        self._batches.clear()

    def _begin_load(self, event: PoolEvent) -> None:
        span = self._start_below_calls("load", event)
        if span is None:
            return
        span.set_attributes({"expertmix.load.way": event.way})
        if event.previous:
            span.set_attribute("expertmix.load.previous", event.previous)
        self._loads[event.engine, event.weights] = span

    def _end_load(self, event: PoolEvent) -> None:
        span = self._loads.pop((event.engine, event.weights), None)
        if span is None:
            return
        if event.kind == "ready":
            span.set_attribute("expertmix.load.seconds", event.seconds)
        else:
            set_error(span, "load", event.message[:500])
        span.end()

    def _begin_batch(self, event: PoolEvent) -> None:
        span = self._start_below_calls("batch", event)
        if span is not None:
            self._batches[event.engine] = _Batch(span, event.weights)

    def _end_batch(self, event: PoolEvent) -> None:
        batch = self._batches.pop(event.engine, None) if event.engine else None
        if batch is not None:
            batch.end("" if event.kind == "resting" else event.kind)

    def _start_below_calls(self, what: str, event: PoolEvent) -> Span | None:
        waiting = tuple(self._calls.get(event.weights, ()))
        tracer = self._tracer if waiting else None
        if tracer is None:
            return None
        from opentelemetry.trace import Link, set_span_in_context

        spans = [call.span for call in waiting if call.span is not None]
        attributes = {"gen_ai.request.model": event.weights}
        if event.device:
            attributes["expertmix.device"] = event.device
        return tracer.start_span(
            f"{what} {event.weights}",
            context=set_span_in_context(spans[0]),
            links=[Link(span.get_span_context()) for span in spans[1:]],
            attributes=attributes,
        )


class _Batch:
    """An engine that works, from its first request until it has none."""

    def __init__(self, span: Span, weights: str) -> None:
        self.tokens = 0
        """Generated so far."""
        self._span = span
        self._weights = weights
        self._replies: Counter[str] = Counter()

    def count(self, event: PoolEvent) -> None:
        """Replies came."""
        if event.weights == self._weights and event.alias is not None:
            self._replies[event.alias] += event.number

    def end(self, error: str) -> None:
        """It rests, or there is no engine any more."""
        self._span.set_attributes(
            {
                "expertmix.requests": self._replies.total(),
                "expertmix.experts": sorted(self._replies),
                "gen_ai.usage.output_tokens": self.tokens,
            }
        )
        if error:
            set_error(self._span, error, "the engine did not finish its work")
        self._span.end()


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in YES


def _find_api() -> Any:
    return sys.modules.get("opentelemetry.trace")


def _find_tracer() -> Tracer | None:
    api = _find_api()
    return None if api is None else api.get_tracer("expertmix")


def _find_parent() -> Any:
    """The context of the LangChain run that we are in, where OpenInference makes spans of them.

    It does not make them the current span, so that a node's would be passed over. A span that the node's own
    code has made current is passed over instead: which of the two is the inner one cannot be told.
    """
    module: Any = sys.modules.get("openinference.instrumentation.langchain")
    if module is None or not module.LangChainInstrumentor().is_instrumented_by_opentelemetry:
        return None
    span = module.get_current_span()
    return None if span is None else _find_api().set_span_in_context(span)
