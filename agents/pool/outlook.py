"""What a plan said, beside what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .ledger import Ledger
from .plan import LoadPlan
from .timeline import Timeline

__all__ = ["Outlook", "check_forecast"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """One figure, predicted and real."""

    figure: str
    planned: float | None
    """None where nothing was known to predict it from."""
    real: float

    @property
    def error(self) -> float | None:
        """How far the prediction was off, as a share of what was real; None where that says nothing."""
        if self.planned is None or not self.real:
            return None
        return self.planned / self.real - 1

    def to_json(self) -> dict[str, Any]:
        """The figure as plain JSON values."""
        return {**asdict(self), "error": self.error}


def check_forecast(
    plans: Sequence[LoadPlan], ledger: Ledger, timeline: Timeline
) -> tuple[Outlook, ...]:
    """Compare plans (one for each window or round) with the ledger and the timeline of their run.

    Answers that were found in the store count as calls that were planned and not made.
    """
    local = {planned.group.key for plan in plans for planned in plan.groups if planned.group.local}
    generated = sum(span.seconds for span in timeline.spans if span.kind == "generate")
    loading = sum(load.seconds for load in ledger.loads)
    peak = max((load.memory_bytes for load in ledger.loads), default=0)
    wall = timeline.makespan
    return (
        Outlook(figure="loads", planned=len(local), real=len(ledger.first_loads)),
        Outlook(figure="calls", planned=sum(p.calls for p in plans), real=ledger.calls),
        Outlook(
            figure="generated tokens",
            planned=_add([plan.tokens for plan in plans]),
            real=ledger.usage.completion_tokens,
        ),
        Outlook(
            figure="seconds of loading",
            planned=sum(p.load_seconds for plan in plans for p in plan.groups),
            real=loading,
        ),
        Outlook(
            figure="seconds of generating",
            planned=_add([p.seconds for plan in plans for p in plan.groups if p.group.local]),
            real=generated,
        ),
        Outlook(figure="wall seconds", planned=_add([plan.makespan for plan in plans]), real=wall),
        Outlook(
            figure="largest model, GiB",
            planned=max((p.memory_bytes or 0 for plan in plans for p in plan.groups), default=0)
            / 2**30,
            real=peak / 2**30,
        ),
    )


def _add(figures: Sequence[float | None]) -> float | None:
    return None if None in figures else sum(figure or 0 for figure in figures)
