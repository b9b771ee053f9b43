"""What the graph's nodes decide: whom to ask next, what the answers come to, who merges drafts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..agents import (
    Answer,
    Recruit,
    SkillWeights,
    Verdict,
    build_aggregation,
    choose_next,
    explain_recruit,
    gather_evidence,
    judge,
    needs_model,
    read_aggregation,
    recruit,
    trusts_drafts,
    vote,
)
from ..agents.engines import Failure, Reply, Usage
from ..retrieval import Question
from .events import GraphEvent
from .state import ExpertBatch, Json, PanelState, Resources

__all__ = [
    "announce",
    "decide_by_model",
    "extend_panels",
    "merge_answers_of",
    "read_answers_of",
    "recruit_first",
    "restore_answer",
]


def read_answers_of(state: PanelState) -> dict[str, list[Answer]]:
    """The answers of each question's recruits, in the order in which they were recruited."""
    found: dict[str, list[Answer]] = {}
    given = state.get("answers", {})
    for qid, recruits in state["recruits"].items():
        asked = found.setdefault(qid, [])
        for recruited in recruits:
            rows: Mapping[str, Json] = given.get(recruited["expert"], {})
            for sample in itertools.count():
                row = rows.get(f"{qid}#{sample}")
                if row is None:
                    break
                asked.append(restore_answer(row))
    return found


def recruit_first(
    context: Resources, questions: Sequence[Question], skills: Mapping[str, SkillWeights]
) -> dict[str, list[Recruit]]:
    """The experts that every question starts with."""
    k = context.k if context.adaptive is None else context.adaptive.first
    policy, seed = context.policy, context.seed
    if context.expertise is None:
        aliases = context.experts or tuple(context.pool.catalog)
        return recruit({q.id: {} for q in questions}, aliases, k=k, policy=policy, seed=seed)
    return context.expertise.recruit(
        questions, skills, k=k, policy=policy, seed=seed, cost=context.cost
    )


def announce(context: Resources, batches: Mapping[str, ExpertBatch]) -> list[str]:
    """Tell the pool what it will be asked, with what a profile predicts of it; gives the best order."""
    calls = {
        alias: context.samples * sum(batch["draws"].get(row["id"], 1) for row in batch["questions"])
        for alias, batch in batches.items()
    }
    table = None if context.expertise is None else context.expertise.table
    known = {} if table is None else {alias: at for at, alias in enumerate(table.experts)}
    return context.pool.announce(
        calls,
        last=() if context.aggregator is None else (context.aggregator,),
        tokens_per_call={a: float(table.tokens_E[at]) for a, at in known.items() if table},
        seconds_per_call={a: float(table.seconds_E[at]) for a, at in known.items() if table},
    )


def extend_panels(
    context: Resources,
    state: PanelState,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Answer]],
) -> dict[str, list[Json]]:
    """Recruits with one more expert for the questions where that is likeliest to help.

    The budget is a mean over the batch: agreement saves calls that a dispute may use. An expert that
    failed whenever it was asked is not asked about other questions.
    """
    assert context.expertise is not None
    assert context.adaptive is not None
    beliefs, table = context.expertise.beliefs, context.expertise.table
    recruits = {qid: list(chosen) for qid, chosen in state["recruits"].items()}
    evidence = gather_evidence(beliefs, questions, state["skills"], answers)
    calls = sum(row.get("draws", 1) for chosen in recruits.values() for row in chosen)
    replies = [answer for given in answers.values() for answer in given]
    broken = {a.expert for a in replies} - {a.expert for a in replies if a.error is None}
    further = choose_next(
        beliefs,
        evidence,
        context.adaptive,
        ids=[question.id for question in questions],
        left=context.adaptive.count(len(questions)) - calls,
        round_=state["round"] - 1,
        cost=context.cost,
        spent_E=table.tokens_E if context.cost.unit == "tokens" else table.seconds_E,
        broken=broken | set(state.get("barred", ())),
    )
    expected_QE = beliefs.expect([state["skills"].get(q.id, {}) for q in questions])
    for call in further:
        qid, expert = questions[call.row].id, beliefs.experts[call.expert]
        why = explain_recruit(beliefs, expert, state["skills"].get(qid, {}))
        told = f"round {state['round'] + 1}, expected gain {call.gain:.3f}; {why}"
        weight = float(expected_QE[call.row, call.expert])
        recruits[qid].append(Recruit(expert=expert, weight=weight, reason=told).to_json())
    return recruits


def merge_answers_of(
    context: Resources,
    state: PanelState,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Answer]],
) -> dict[str, Verdict]:
    """A verdict for each question, by id."""
    if context.expertise is not None and context.merging == "posterior":
        beliefs = context.expertise.beliefs
        judged = judge(beliefs, questions, state["skills"], answers)
        return {verdict.question_id: verdict for verdict in judged}
    voted: dict[str, Verdict] = {}
    for question in questions:
        recruits = state["recruits"].get(question.id, [])
        weights = {row["expert"]: float(row["weight"]) for row in recruits}
        voted[question.id] = vote(question, answers.get(question.id, ()), weights)
    return voted


async def decide_by_model(
    context: Resources,
    state: PanelState,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Answer]],
    verdicts: dict[str, Verdict],
    tell: Callable[[GraphEvent], None],
) -> None:
    """Replace the verdicts of disputed questions by those of the model that merges drafts."""
    disputed: dict[str, list[Question]] = {}
    for question in questions:
        alias = context.choose_aggregator(state["skills"].get(question.id, {}))
        if alias in state.get("barred", ()):
            continue
        verdict = verdicts[question.id]
        if alias is not None and needs_model(verdict, chance=_chance(verdict)):
            disputed.setdefault(alias, []).append(question)
    for alias in context.pool.order(disputed):
        requests = [
            build_aggregation(
                question,
                _show_drafts(verdicts[question.id], answers[question.id]),
                sampling=context.pool.catalog[alias].sampling.to_sampling(),
                seed=context.seed,
            )
            for question in disputed[alias]
        ]
        tell({"event": "aggregator_started", "expert": alias, "questions": len(requests)})
        try:
            async with asyncio.timeout(context.expert_seconds):
                replies = await context.pool.generate(alias, requests, stage="aggregate")
        except Exception as error:
            # Whatever went wrong there, the panel's votes stand and say what is missing.
            failure = Failure(kind="engine", message=f"{type(error).__name__}: {error}")
            replies = [Reply.failed(request, failure) for request in requests]
        failed = sum(reply.failure is not None for reply in replies)
        tell({"event": "aggregator_finished", "expert": alias, "failed": failed})
        for question, reply in zip(disputed[alias], replies, strict=True):
            verdict = verdicts[question.id]
            verdicts[question.id] = read_aggregation(reply, question, verdict, alias)


def _show_drafts(verdict: Verdict, answers: Sequence[Answer]) -> Sequence[Answer]:
    """The drafts, unless they differ so wildly that they would mislead."""
    return answers if trusts_drafts(verdict, chance=_chance(verdict)) else ()


def _chance(verdict: Verdict) -> float | None:
    return verdict.confidence if verdict.method == "posterior" else None


def restore_answer(row: Mapping[str, Any]) -> Answer:
    """An answer as the state and `answers.jsonl` keep it."""
    usage = Usage(prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"])
    return Answer(
        question_id=row["question_id"],
        expert=row["expert"],
        sample=row["sample"],
        answer=row["answer"],
        text=row["text"],
        usage=usage,
        error=row["error"],
        details=row.get("details", {}),
    )
