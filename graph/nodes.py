"""The four steps: tell the skills, recruit, let every expert answer all of its questions, merge."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from ..agents import Answer, abstain, build_requests, read_reply
from ..retrieval import Question
from .panels import (
    announce,
    decide_by_model,
    extend_panels,
    merge_answers_of,
    read_answers_of,
    recruit_first,
)
from .replacing import replace_failed
from .state import (
    FORGET,
    Answered,
    Asked,
    ExpertBatch,
    PanelState,
    Recruited,
    Resources,
    Started,
    check_questions,
    read_questions_of,
)

__all__ = [
    "aggregate",
    "ask_recruits",
    "extract_skills",
    "go_on",
    "keep_failure",
    "reason",
    "recruit_experts",
]


async def extract_skills(state: Asked, runtime: Runtime[Resources]) -> Started:
    """Work out which skills each question needs."""
    extractor = runtime.context.extractor
    questions = check_questions(state)
    found = {} if extractor is None else await extractor.extract(list(questions.values()))
    skills = {qid: dict(found.get(qid, {})) for qid in questions}
    # A checkpointed thread may hold recruits and answers of an earlier batch.
    return {
        "questions": {qid: question.to_json() for qid, question in questions.items()},
        "skills": skills,
        "recruits": {},
        "round": 0,
        "answers": {FORGET: {}},
    }


async def recruit_experts(state: PanelState, runtime: Runtime[Resources]) -> Recruited:
    """Choose experts for each question.

    In later rounds: of an adaptive panel one more for those still undecided, of any other the next best
    in place of experts that failed.
    """
    context = runtime.context
    if state["round"] and context.adaptive is None:
        recruits = await asyncio.to_thread(replace_failed, context, state)
        return {"recruits": recruits, "round": state["round"] + 1}
    questions = read_questions_of(state)
    if state["round"] and context.adaptive is not None and context.expertise is not None:
        recruits = await asyncio.to_thread(
            extend_panels, context, state, questions, read_answers_of(state)
        )
        return {"recruits": recruits, "round": state["round"] + 1}
    chosen = await asyncio.to_thread(recruit_first, context, questions, state["skills"])
    recruits = {qid: [r.to_json() for r in recruits] for qid, recruits in chosen.items()}
    return {"recruits": recruits, "round": 1}


async def ask_recruits(
    state: PanelState, runtime: Runtime[Resources]
) -> list[Send] | Literal["aggregate"]:
    """One `Send` per expert with all of its questions: this is what loads each model once.

    Experts go in the plan's order, so that those who share weights stand together and the
    aggregator's weights come last. Who has been asked is not asked again; with nobody left to ask the
    panel ends in `aggregate`.
    """
    context = runtime.context
    batches: dict[str, ExpertBatch] = {}
    given = state.get("answers", {})
    for qid, recruits in state["recruits"].items():
        for chosen in recruits:
            expert = chosen["expert"]
            if f"{qid}#0" in given.get(expert, {}):
                continue
            batch = batches.setdefault(expert, ExpertBatch(expert=expert, questions=[], draws={}))
            batch["questions"].append(state["questions"][qid])
            if chosen.get("draws", 1) > 1:
                batch["draws"][qid] = chosen["draws"]
    if not batches:
        return "aggregate"
    order = await asyncio.to_thread(announce, context, batches)
    return [Send("reason", batches[alias]) for alias in order]


def go_on(state: ExpertBatch, runtime: Runtime[Resources]) -> str:
    """Where an expert's answers go: to the verdict, or back to recruiting if the panel may change."""
    context = runtime.context
    return "recruit" if context.adaptive is not None or context.substitute else "aggregate"


async def reason(state: ExpertBatch, runtime: Runtime[Resources]) -> Answered:
    """One expert answers everything it was recruited for.

    Who streams the graph with `stream_mode="custom"` is told when it begins and when it has finished.
    """
    context = runtime.context
    expert = state["expert"]
    number = len(state["questions"])
    runtime.stream_writer({"event": "expert_started", "expert": expert, "questions": number})
    spec = context.pool.catalog[expert]
    questions = [Question.restore(row) for row in state["questions"]]
    draws = state["draws"]
    requests = [
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
    replies = await context.pool.generate(expert, requests, stage="reason")
    by_id = {question.id: question for question in questions}
    answers = (
        read_reply(reply, by_id[request.question_id or ""], expert)
        for request, reply in zip(requests, replies, strict=True)
    )
    rows = {f"{a.question_id}#{a.sample}": a.to_json() for a in answers}
    failed = sum(reply.failure is not None for reply in replies)
    runtime.stream_writer(
        {"event": "expert_finished", "expert": expert, "answers": len(rows), "failed": failed}
    )
    return {"answers": {expert: rows}}


def keep_failure(state: ExpertBatch, error: NodeError, runtime: Runtime[Resources]) -> Command[str]:
    """Turn an expert's crash into failed answers, and go on: the aggregator always runs."""
    sentence = f"{type(error.error).__name__}: {error.error}"
    failed = {
        f"{row['id']}#0": Answer(
            question_id=row["id"], expert=state["expert"], error=sentence
        ).to_json()
        for row in state["questions"]
    }
    return Command(update={"answers": {state["expert"]: failed}}, goto=go_on(state, runtime))


async def aggregate(state: PanelState, runtime: Runtime[Resources]) -> dict[str, Any]:
    """Merge each question's answers; ask an aggregating model where the panel disagrees."""
    context = runtime.context
    questions = read_questions_of(state)
    answers = read_answers_of(state)
    verdicts = await asyncio.to_thread(merge_answers_of, context, state, questions, answers)
    await decide_by_model(context, state, questions, answers, verdicts)
    return {
        "verdicts": {
            qid: abstain(verdict, context.abstain_below).to_json()
            for qid, verdict in verdicts.items()
        }
    }
