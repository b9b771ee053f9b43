"""The pool as one batch of a panel sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ...agents.engines import Failure, Reply, Request
from ..drawing import Drawing, DrawnPool
from ..panel_answer import AGGREGATOR
from .errors import clean, tell_sentence
from .rendering import clean_calls

if TYPE_CHECKING:
    from ...agents import Pool

__all__ = ["BatchPool", "PanelEvent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelEvent:
    """An expert begins, or has finished, with a question."""

    event: Literal["expert_started", "expert_finished"]
    expert: str
    stage: str
    """`reason`, `aggregate` for the model that merges drafts, `close` for the one that has the last word."""
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """The event as plain JSON values."""
        told = {"event": self.event, "expert": self.expert, "stage": self.stage}
        return told if self.event == "expert_started" else told | {"failed": self.failed}


class BatchPool(DrawnPool):
    """Passes a batch's calls on to the pool, draws them as the batch wants, and tells who is asked what.

    Everything else is the pool's own. Replies come through fit to be shown to strangers: text that JSON
    can carry, and of a failure the kind alone.

    Args:
        pool: Open.
        drawing: Of every call.
        tell: Called with a question's id and what happens with it.
    """

    def __init__(
        self, pool: Pool, drawing: Drawing, tell: Callable[[str, PanelEvent], None]
    ) -> None:
        super().__init__(pool, drawing)
        self._tell = tell
        self.failures: dict[str, dict[str, Failure]] = {}
        """By question, then by expert, as the engines told them."""
        self.cut: set[tuple[str, str]] = set()
        """Question and expert (or `AGGREGATOR`) whose reply `max_tokens` ended."""

    async def generate(
        self,
        alias: str,
        requests: Sequence[Request],
        *,
        stage: str = "reason",
        on_reply: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """As `Pool.generate`."""
        question_of = {request.id: request.question_id or request.id for request in requests}
        owed: dict[str, int] = {}
        for qid in question_of.values():
            owed[qid] = owed.get(qid, 0) + 1
        for qid in owed:
            self._tell(qid, PanelEvent(event="expert_started", expert=alias, stage=stage))

        def hear(reply: Reply) -> None:
            qid = question_of[reply.request_id]
            owed[qid] -= 1
            if not owed[qid]:
                failed = reply.failure is not None
                event = PanelEvent(
                    event="expert_finished", expert=alias, stage=stage, failed=failed
                )
                self._tell(qid, event)
            if on_reply is not None:
                on_reply(reply)

        try:
            replies = await super().generate(alias, requests, stage=stage, on_reply=hear)
        except Exception as error:  # whatever it says may quote a prompt
            failure = Failure(kind="engine", message=type(error).__name__)
            replies = [Reply.failed(request, failure) for request in requests]
        return [self._receive(alias, question_of[r.request_id], stage, r) for r in replies]

    def _receive(self, alias: str, qid: str, stage: str, reply: Reply) -> Reply:
        if reply.failure is not None:
            self.failures.setdefault(qid, {})[alias] = reply.failure
            told = replace(reply.failure, message=tell_sentence(alias, reply.failure))
            return replace(reply, failure=told)
        if reply.finish == "length":
            self.cut.add((qid, alias if stage != "aggregate" else AGGREGATOR))
        return replace(reply, text=clean(reply.text), tool_calls=clean_calls(reply.tool_calls))
