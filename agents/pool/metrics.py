"""What a pool does, counted for Prometheus."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...retrieval import InputError
from .events import PoolEvent

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry

__all__ = ["MetricsServer", "PoolMetrics"]

LOAD_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
"""From waking up to fetching a large model from a slow disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsServer:
    """Metrics over HTTP, in a thread of its own. Use it as a context manager, or call `close`."""

    server: WSGIServer
    thread: threading.Thread

    @property
    def url(self) -> str:
        """Where Prometheus finds the metrics."""
        host, port = str(self.server.server_address[0]), self.server.server_port
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def close(self) -> None:
        """Stop answering. Safe to call twice."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PoolMetrics:
    """Counts while a pool works: hand its `show` to the pool as `on_event`.

    Every instance has a registry of its own, so two pools do not add up and nothing is global. Names
    of experts, stages, weights and devices become labels; what a model or an error says never does.

    Args:
        registry: Where the metrics go instead, next to others of the program. Not two pools' into
            one: the names would clash.

    Raises:
        InputError: prometheus-client is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError:
            raise InputError(
                'metrics need prometheus-client: pip install "expertmix[serve]"'
            ) from None
        self.registry = CollectorRegistry() if registry is None else registry

        def count(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"expertmix_{name}", told, labels, registry=self.registry)

        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(f"expertmix_{name}", told, labels, registry=self.registry)

        self._queued = count("requests_queued", "Requests that arrived.", "expert", "stage")
        self._finished = count("requests_finished", "Replies that came.", "expert", "stage")
        self._waiting = gauge("requests_waiting", "Requests without reply.", "expert", "stage")
        self._tokens = count("generated_tokens", "Generated tokens.", "weights", "device")
        self._loads = count("loads", "Loads that succeeded.", "weights", "device", "way")
        self._load_seconds = Histogram(
            "expertmix_load_seconds",
            "Seconds that a load took.",
            ["way"],
            registry=self.registry,
            buckets=LOAD_SECONDS,
        )
        self._swaps = count("swaps", "Loads for which other weights had to go.", "device")
        self._failures = count("failures", "Failed loads, and deaths.", "weights", "kind")
        self._warnings = count("warnings", "Things that nobody has to act on now.")
        self._resident = gauge("engines_resident", "Engines that hold weights.", "device")
        self._working = count(
            "working_seconds", "Seconds in which at least one engine generated.", "device"
        )
        # Touched by `show` alone, which the pool calls from one thread.
        self._unanswered: dict[tuple[str, str], int] = {}
        self._holding: dict[str, set[int | str]] = {}
        self._at_work: dict[str, set[int | str]] = {}
        self._counted_until: dict[str, float] = {}

    def show(self, event: PoolEvent) -> None:
        """Take in one event; called from the pool's thread."""
        match event.kind:
            case "queued" | "finished":
                self._count_requests(event)
            case "warning":
                self._warnings.inc()
            case _:
                self._count_work(event)
                self._follow(event)

    def render(self) -> str:
        """Everything in Prometheus's text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file at once, for node_exporter's textfile collector.

        Args:
            path: The collector reads only files that end in `.prom`.

        Raises:
            InputError: it cannot be written.
        """
        from prometheus_client import write_to_textfile

        try:
            write_to_textfile(os.fspath(path), self.registry)
        except OSError as error:
            raise InputError(f"metrics cannot be written to {path}: {error.strerror}") from None

    def serve(self, port: int, address: str = "127.0.0.1") -> MetricsServer:
        """Answer Prometheus over HTTP until the result is closed.

        Args:
            port: 0 takes a free one; `MetricsServer.url` says which.
            address: Only this machine can ask by default: there is no password.

        Raises:
            InputError: the address cannot be used.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, address, self.registry)
        except (OSError, OverflowError) as error:
            raise InputError(f"metrics cannot be served on {address}:{port}: {error}") from None
        return MetricsServer(server=server, thread=thread)

    def _count_requests(self, event: PoolEvent) -> None:
        key = (_label(event.alias or ""), _label(event.stage or ""))
        number = max(0, event.number)
        waiting = self._unanswered.get(key, 0)
        if event.kind == "queued":
            self._queued.labels(*key).inc(number)
            waiting += number
        else:
            self._finished.labels(*key).inc(number)
            waiting = max(0, waiting - number)
        self._unanswered[key] = waiting
        self._waiting.labels(*key).set(waiting)

    def _count_work(self, event: PoolEvent) -> None:
        """Count time while it passes, not when work ends: rates over a long batch stay true."""
        device = _device(event)
        since = self._counted_until.get(device, 0.0)
        if self._at_work.get(device):
            self._working.labels(device).inc(max(0.0, event.at - since))
            self._counted_until[device] = max(since, event.at)
        else:  # not the later one: in a pool that was opened again, time has begun anew
            self._counted_until[device] = event.at

    def _follow(self, event: PoolEvent) -> None:
        """One engine goes from one state to another."""
        device, weights = _device(event), _label(event.weights)
        holding = self._holding.setdefault(device, set())
        at_work = self._at_work.setdefault(device, set())
        engine = (
            event.engine or weights
        )  # where engines have no numbers there is one for each weights
        match event.kind:
            case "tokens":
                self._tokens.labels(weights, device).inc(max(0, event.number))
            case "working":
                at_work.add(engine)
            case "resting":
                at_work.discard(engine)
            case "ready":
                holding.add(engine)
                self._count_load(event, weights, device)
            case _:  # it loads, sleeps or ended
                at_work.discard(engine)
                holding.discard(engine)
        if event.kind in ("died", "failed"):
            self._failures.labels(weights, event.kind).inc()
        self._resident.labels(device).set(len(holding))

    def _count_load(self, event: PoolEvent, weights: str, device: str) -> None:
        self._loads.labels(weights, device, event.way).inc()
        self._load_seconds.labels(event.way).observe(event.seconds)
        self._swaps.labels(device).inc(1 if event.previous else 0)


def _device(event: PoolEvent) -> str:
    # To Prometheus an empty label is none.
    return _label(event.device or "remote")


def _label(text: str) -> str:
    # Half a surrogate pair in one name would make the whole page unreadable.
    return text.encode(errors="replace").decode()
