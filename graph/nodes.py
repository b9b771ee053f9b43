"""The four steps: tell the skills, recruit, let every expert answer all of its questions, merge."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Literal

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from ..agents import abstain
from ..retrieval import InputError
from .asking import ask_batch, fail_batch
from .caching import find_key
from .events import GraphEvent
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
    NO_RESOURCES,
    Answered,
    Asked,
    Begun,
    ExpertBatch,
    PanelState,
    Recruited,
    Resources,
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


async def extract_skills(state: Asked, runtime: Runtime[Resources]) -> Begun:
    """Work out which skills each question needs.

    Raises:
        InputError: as `check_questions`; the run has no resources.
    """
    if runtime.context is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise InputError(NO_RESOURCES)
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
        "barred": [],
        "refusal": "",
        "answers": {FORGET: {}},
        "verdicts": {},
    }


async def recruit_experts(state: PanelState, runtime: Runtime[Resources]) -> Recruited:
    """Choose experts for each question.

    In later rounds: of an adaptive panel one more for those still undecided, of any other the next best
    in place of experts that failed.
    """
    context = runtime.context
    if state["round"] and context.adaptive is None:
        recruits = await asyncio.to_thread(replace_failed, context, state)
    elif state["round"] and context.expertise is not None:
        questions, answers = read_questions_of(state), read_answers_of(state)
        recruits = await asyncio.to_thread(extend_panels, context, state, questions, answers)
    else:
        questions = read_questions_of(state)
        chosen = await asyncio.to_thread(recruit_first, context, questions, state["skills"])
        recruits = {qid: [r.to_json() for r in recruits] for qid, recruits in chosen.items()}
    return {"recruits": recruits, "round": state["round"] + 1}


async def ask_recruits(
    state: PanelState, runtime: Runtime[Resources], *, cached: bool = False
) -> list[Send] | Literal["aggregate"]:
    """One `Send` per expert with all of its questions: this is what loads each model once.

    Experts go in the plan's order, so that those who share weights stand together and the
    aggregator's weights come last. Who has been asked is not asked again; with nobody left to ask the
    panel ends in `aggregate`.

    Args:
        state: With the recruits.
        runtime: The graph's.
        cached: Whether batches need a key for a cache.
    """
    context = runtime.context
    batches = _gather_batches(state)
    if not batches:
        return "aggregate"
    order = await asyncio.to_thread(announce, context, batches)
    if cached:
        for batch in batches.values():
            batch["key"] = await asyncio.to_thread(find_key, context, batch)
    told: GraphEvent = {
        "event": "experts_recruited",
        "round": state["round"],
        "questions": len(state["questions"]),
        "calls": {alias: len(batches[alias]["questions"]) for alias in order},
    }
    runtime.stream_writer(told)
    return [Send("reason", batches[alias]) for alias in order]


def go_on(state: ExpertBatch, runtime: Runtime[Resources]) -> str:
    """Where an expert's answers go: to the verdict, or back to recruiting if the panel may change."""
    context = runtime.context
    return "recruit" if context.adaptive is not None or context.substitute else "aggregate"


async def reason(state: ExpertBatch, runtime: Runtime[Resources]) -> Answered:
    """One expert answers everything it was recruited for.

    Who streams the graph with `stream_mode="custom"` is told what happens meanwhile, see `GraphEvent`.

    Raises:
        RetryableExpertError: nothing came, and asking again may help.
    """
    return {"answers": {state["expert"]: await ask_batch(state, runtime)}}


def keep_failure(state: ExpertBatch, error: NodeError, runtime: Runtime[Resources]) -> Command[str]:
    """Turn an expert's crash into failed answers, and go on: the aggregator always runs."""
    failed = fail_batch(state, error.error)
    told: GraphEvent = {
        "event": "expert_failed",
        "expert": state["expert"],
        "questions": len(state["questions"]),
        "message": str(error.error),
    }
    runtime.stream_writer(told)
    return Command(update={"answers": {state["expert"]: failed}}, goto=go_on(state, runtime))


async def aggregate(state: PanelState, runtime: Runtime[Resources]) -> dict[str, Any]:
    """Merge each question's answers; ask an aggregating model where the panel disagrees."""
    context = runtime.context
    questions = read_questions_of(state)
    answers = read_answers_of(state)
    verdicts = await asyncio.to_thread(merge_answers_of, context, state, questions, answers)
    await decide_by_model(context, state, questions, answers, verdicts, runtime.stream_writer)
    refusal = state.get("refusal", "")
    if refusal:
        verdicts = {qid: replace(verdict, note=refusal) for qid, verdict in verdicts.items()}
    told: GraphEvent = {
        "event": "questions_merged",
        "questions": len(questions),
        "answered": sum(verdict.answer is not None for verdict in verdicts.values()),
        "disputed": sum(len(verdict.votes) > 1 for verdict in verdicts.values()),
    }
    runtime.stream_writer(told)
    return {
        "verdicts": {
            qid: abstain(verdict, context.abstain_below).to_json()
            for qid, verdict in verdicts.items()
        }
    }


def _gather_batches(state: PanelState) -> dict[str, ExpertBatch]:
    """What each expert owes, by alias."""
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
    return batches
