"""Asking one expert everything it was recruited for: nothing finished is lost, whatever happens to the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from ..agents import Answer, build_requests, read_reply
from ..agents.engines import Failure, Reply, Request
from ..retrieval import Question
from .events import GraphEvent
from .listening import listen
from .state import ExpertBatch, Json, Resources

__all__ = [
    "RETRY",
    "ExpertFailed",
    "RetryableExpertError",
    "ask_batch",
    "build_batch",
    "fail_batch",
]

PASSING = frozenset({"address", "engine", "timeout"})
"""Kinds of failure that may have passed a moment later. A model that did not load is not among them: the
pool has tried it again already, and loading takes long."""


class ExpertFailed(RuntimeError):
    """Nothing came of an expert; `rows` says so of each question, as the state keeps answers."""

    def __init__(self, message: str, rows: Mapping[str, Json]) -> None:
        super().__init__(message)
        self.rows = dict(rows)


class RetryableExpertError(ExpertFailed):
    """As that, but what was wrong may have passed: LangGraph asks again."""


RETRY = RetryPolicy(max_attempts=2, retry_on=RetryableExpertError)
"""How often the graph asks an expert of which nothing came; the pool has its own retries before that."""


def build_batch(
    context: Resources, batch: ExpertBatch, questions: Sequence[Question]
) -> list[Request]:
    """The requests of a batch, those of a question side by side."""
    spec = context.pool.catalog[batch["expert"]]
    draws = batch["draws"]
    return [
        request
        for times in sorted({1, *draws.values()})
        for request in build_requests(
            [question for question in questions if draws.get(question.id, 1) == times],
            sampling=spec.sampling.to_sampling(),
            style=context.style or spec.style,
            samples=context.samples * times,
            seed=context.seed,
        )
    ]


async def ask_batch(batch: ExpertBatch, runtime: Runtime[Resources]) -> dict[str, Json]:
    """One expert's answers to all of its questions, as the state keeps them.

    Past `Resources.expert_seconds` what has not come counts as failed, and what has come stays.

    Raises:
        RetryableExpertError: nothing came, and asking again may help.
    """
    context, expert = runtime.context, batch["expert"]
    _tell_start(batch, runtime)
    questions = [Question.restore(row) for row in batch["questions"]]
    requests = build_batch(context, batch, questions)
    replies = await _generate(expert, requests, runtime)
    by_id = {question.id: question for question in questions}
    answers = (
        read_reply(reply, by_id[request.question_id or ""], expert)
        for request, reply in zip(requests, replies, strict=True)
    )
    rows = {f"{a.question_id}#{a.sample}": a.to_json() for a in answers}
    failures = [reply.failure for reply in replies if reply.failure is not None]
    if failures and len(failures) == len(replies) and all(map(_may_pass, failures)):
        raise RetryableExpertError(failures[0].message, rows)
    told: GraphEvent = {
        "event": "expert_finished",
        "expert": expert,
        "answers": len(rows),
        "failed": len(failures),
    }
    runtime.stream_writer(told)
    return rows


def fail_batch(batch: ExpertBatch, error: BaseException | str) -> dict[str, Json]:
    """The answers of an expert that crashed, timed out, or failed for good: all failed, with the reason.

    Of an error that was read back from a checkpoint LangGraph has the words alone.
    """
    if isinstance(error, ExpertFailed):
        return error.rows
    sentence = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return {
        f"{row['id']}#0": Answer(
            question_id=row["id"], expert=batch["expert"], error=sentence
        ).to_json()
        for row in batch["questions"]
    }


def _tell_start(batch: ExpertBatch, runtime: Runtime[Resources]) -> None:
    expert, told = batch["expert"], runtime.execution_info
    if told is not None and told.node_attempt > 1:
        again: GraphEvent = {
            "event": "expert_retried",
            "expert": expert,
            "attempt": told.node_attempt,
        }
        runtime.stream_writer(again)
        return
    started: GraphEvent = {
        "event": "expert_started",
        "expert": expert,
        "questions": len(batch["questions"]),
    }
    runtime.stream_writer(started)


async def _generate(
    expert: str, requests: Sequence[Request], runtime: Runtime[Resources]
) -> list[Reply]:
    """The replies in order; a failure in the place of each that did not come in time."""
    pool, seconds = runtime.context.pool, runtime.context.expert_seconds
    came: dict[str, Reply] = {}
    with listen(runtime, expert, len(requests)) as count:

        def keep(reply: Reply) -> None:
            came[reply.request_id] = reply
            count(reply)

        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await pool.generate(expert, requests, stage="reason", on_reply=keep)
        except TimeoutError:
            if not limit.expired():
                raise
    late = Failure(kind="timeout", message=f'expert "{expert}" gave no answer in {seconds:g} s')
    return [came.get(request.id) or Reply.failed(request, late) for request in requests]


def _may_pass(failure: Failure) -> bool:
    return failure.retryable and failure.kind in PASSING
