"""Requests, counted for Prometheus beside what the pool does."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from ...agents.pool.metrics import PoolMetrics
from .doorway import Visit
from .gate import Gate

__all__ = ["ServerMetrics"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """Counts requests and batches into the registry of the pool's metrics.

    Labels are names of models that exist, and statuses: nothing that a client could make up.

    Args:
        pool: Gives the registry.
        gate: Whose places are shown.
    """

    def __init__(self, pool: PoolMetrics, gate: Gate) -> None:
        self.pool = pool
        registry = pool.registry
        self._requests = Counter(
            "expertmix_server_requests",
            "Requests answered, by model and status.",
            ["model", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "expertmix_server_request_seconds",
            "Seconds from a request's arrival to the end of its answer.",
            ["model"],
            registry=registry,
            buckets=SECONDS,
        )
        self._batches = Histogram(
            "expertmix_server_batch_questions",
            "Questions that were asked together.",
            registry=registry,
            buckets=BATCHES,
        )
        for name, told, read in (
            ("running", "Requests that are worked on.", lambda: gate.running),
            ("waiting", "Requests that wait for a place.", lambda: gate.waiting),
        ):
            gauge = Gauge(f"expertmix_server_{name}", told, registry=registry)
            gauge.set_function(read)

    def note(self, visit: Visit) -> None:
        """Count a request that has ended."""
        self._requests.labels(visit.model or "none", str(visit.status)).inc()
        if visit.model:
            self._seconds.labels(visit.model).observe(visit.seconds)

    def note_batch(self, questions: int) -> None:
        """Count a batch."""
        self._batches.observe(questions)
