"""The four steps: tell the skills, recruit, let every expert answer all of its questions, merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from ..agents import (
    Answer,
    Verdict,
    build_aggregation,
    build_requests,
    read_aggregation,
    read_reply,
    recruit,
    vote,
)
from ..agents.engines import Failure, Reply, Usage
from ..retrieval import Question
from .state import (
    FORGET,
    Answered,
    Asked,
    ExpertBatch,
    PanelState,
    Recruited,
    Resources,
    Skilled,
    Started,
    read_questions_of,
)

__all__ = [
    "aggregate",
    "ask_recruits",
    "extract_skills",
    "keep_failure",
    "reason",
    "recruit_experts",
]


async def extract_skills(state: Asked, runtime: Runtime[Resources]) -> Started:
    """Work out which skills each question needs."""
    extractor = runtime.context.extractor
    found = {} if extractor is None else await extractor.extract(read_questions_of(state))
    skills = {qid: list(found.get(qid, ())) for qid in state["questions"]}
    # A checkpointed thread may hold answers to an earlier batch.
    return {"skills": skills, "answers": {FORGET: {}}}


async def recruit_experts(state: Skilled, runtime: Runtime[Resources]) -> Recruited:
    """Choose experts for each question."""
    context = runtime.context
    chosen = recruit(
        state["skills"],
        context.experts or tuple(context.pool.catalog),
        k=context.k,
        profile=context.profile,
        policy=context.policy,
        seed=context.seed,
    )
    return {"recruits": {qid: [r.to_json() for r in recruits] for qid, recruits in chosen.items()}}


def ask_recruits(state: PanelState, runtime: Runtime[Resources]) -> list[Send] | str:
    """One `Send` per expert with all of its questions: this is what loads each model once.

    Experts go in the plan's order, so that those who share weights stand together and the
    aggregator's weights come last. Without any recruit the panel still ends in `aggregate`.
    """
    context = runtime.context
    batches: dict[str, list[dict[str, Any]]] = {}
    for qid, recruits in state["recruits"].items():
        for chosen in recruits:
            batches.setdefault(chosen["expert"], []).append(state["questions"][qid])
    last = () if context.aggregator is None else (context.aggregator,)
    order = context.pool.order(batches, last=last)
    sends = [Send("reason", ExpertBatch(expert=a, questions=batches[a])) for a in order]
    return sends or "aggregate"


async def reason(state: ExpertBatch, runtime: Runtime[Resources]) -> Answered:
    """One expert answers everything it was recruited for."""
    context = runtime.context
    expert = state["expert"]
    spec = context.pool.catalog[expert]
    questions = [Question.from_json(row) for row in state["questions"]]
    requests = build_requests(
        questions,
        sampling=spec.sampling.to_sampling(),
        style=context.style or spec.style,
        samples=context.samples,
        seed=context.seed,
    )
    replies = await context.pool.generate(expert, requests, stage="reason")
    by_id = {question.id: question for question in questions}
    answers = (
        read_reply(reply, by_id[request.question_id or ""], expert)
        for request, reply in zip(requests, replies, strict=True)
    )
    return {"answers": {expert: {f"{a.question_id}#{a.sample}": a.to_json() for a in answers}}}


def keep_failure(state: ExpertBatch, error: NodeError) -> Command[str]:
    """Turn an expert's crash into failed answers, and go on: the aggregator always runs."""
    sentence = f"{type(error.error).__name__}: {error.error}"
    failed = {
        f"{row['id']}#0": Answer(
            question_id=row["id"], expert=state["expert"], error=sentence
        ).to_json()
        for row in state["questions"]
    }
    return Command(update={"answers": {state["expert"]: failed}}, goto="aggregate")


async def aggregate(state: PanelState, runtime: Runtime[Resources]) -> dict[str, Any]:
    """Merge each question's answers; ask the aggregating model where the panel disagrees."""
    context = runtime.context
    answers = _by_question(state)
    verdicts: dict[str, Verdict] = {}
    disputed: list[Question] = []
    for question in read_questions_of(state):
        recruits = state["recruits"].get(question.id, [])
        weights = {row["expert"]: float(row["weight"]) for row in recruits}
        rank = {row["expert"]: place for place, row in enumerate(recruits)}
        asked = [a for a in answers.get(question.id, []) if a.expert in rank]
        given = sorted(asked, key=lambda a: (rank[a.expert], a.sample))
        answers[question.id] = given
        verdicts[question.id] = vote(question, given, weights)
        if len(verdicts[question.id].votes) != 1 and any(a.error is None for a in given):
            disputed.append(question)
    if context.aggregator is not None and disputed:
        await _let_model_decide(context, context.aggregator, disputed, answers, verdicts)
    return {"verdicts": {qid: verdict.to_json() for qid, verdict in verdicts.items()}}


async def _let_model_decide(
    context: Resources,
    aggregator: str,
    disputed: Sequence[Question],
    answers: dict[str, list[Answer]],
    verdicts: dict[str, Verdict],
) -> None:
    sampling = context.pool.catalog[aggregator].sampling.to_sampling()
    requests = [
        build_aggregation(question, answers[question.id], sampling=sampling, seed=context.seed)
        for question in disputed
    ]
    try:
        replies = await context.pool.generate(aggregator, requests, stage="aggregate")
    except Exception as error:
        # Whatever went wrong there, the panel's votes stand and say what is missing.
        failure = Failure(kind="engine", message=f"{type(error).__name__}: {error}")
        replies = [Reply.failed(request, failure) for request in requests]
    for question, reply in zip(disputed, replies, strict=True):
        verdict = verdicts[question.id]
        verdicts[question.id] = read_aggregation(reply, question, verdict, aggregator)


def _by_question(state: PanelState) -> dict[str, list[Answer]]:
    """Every answer of the batch, by question. Sorted by expert, so arrival order cannot matter."""
    found: dict[str, list[Answer]] = {}
    for _, answers in sorted(state.get("answers", {}).items()):
        for row in answers.values():
            usage = Usage(
                prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]
            )
            answer = Answer(
                question_id=row["question_id"],
                expert=row["expert"],
                sample=row["sample"],
                answer=row["answer"],
                text=row["text"],
                usage=usage,
                error=row["error"],
            )
            found.setdefault(answer.question_id, []).append(answer)
    return found
