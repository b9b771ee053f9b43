"""A person looks at the plan before anybody is asked: LangGraph's interrupt, with a schema for the answer."""

from __future__ import annotations

from collections import Counter
from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field

from ..retrieval import InputError, Question
from .replacing import rank_experts
from .state import Decided, Json, PanelState, Resources

__all__ = ["PlanDecision", "Planned", "approve_plan", "describe_plan"]


class PlanDecision(BaseModel):
    """What a person says of a plan: `Command(resume={"approved": true, "without": ["slow-expert"]})`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    approved: bool
    """Whether anybody is to be asked."""
    without: list[str] = Field(default_factory=list[str])
    """Experts that are not to be asked; the next best stand in for them."""
    reason: str = ""
    """Goes into the verdicts' notes where the plan is refused."""


class Planned(Decided):
    """The recruits, as they may have been changed."""

    recruits: dict[str, list[Json]]


def approve_plan(state: PanelState, runtime: Runtime[Resources]) -> Planned:
    """Show the plan of the first round and wait; later rounds keep to what was said.

    Needs a checkpointer. An answer that names an expert who is not in the pool is asked again, with a
    sentence under `problem`.
    """
    if state["round"] > 1:
        return {"recruits": state["recruits"], "barred": state["barred"], "refusal": ""}
    plan = describe_plan(runtime.context, state)
    decision = interrupt(plan, response_schema=PlanDecision)
    while problem := _find_problem(decision, runtime.context):
        decision = interrupt({**plan, "problem": problem}, response_schema=PlanDecision)
    if not decision.approved:
        nobody: dict[str, list[Json]] = {qid: [] for qid in state["recruits"]}
        note = "the plan was not approved"
        refusal = f"{note}: {decision.reason}" if decision.reason else note
        return {"recruits": nobody, "barred": [], "refusal": refusal}
    barred = sorted(set(decision.without))
    recruits = _do_without(runtime.context, state, set(barred)) if barred else state["recruits"]
    return {"recruits": recruits, "barred": barred, "refusal": ""}


def describe_plan(context: Resources, state: PanelState) -> dict[str, Any]:
    """What the panel is about to do, as plain JSON: who is asked how often, and what that loads.

    `experts` has calls and the reason of the first recruiting; `most_calls` counts what an adaptive panel
    may ask in all; `tokens` and `seconds` are predictions, None without a profile.
    """
    calls: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for recruits in state["recruits"].values():
        for row in recruits:
            calls[row["expert"]] += row.get("draws", 1) * context.samples
            reasons.setdefault(row["expert"], row["reason"])
    adaptive, number = context.adaptive, len(state["questions"])
    plan: dict[str, Any] = {
        "kind": "approve_plan",
        "questions": number,
        "experts": {
            alias: {"calls": count, "reason": reasons[alias]}
            for alias, count in calls.most_common()
        },
        "calls": calls.total(),
        "most_calls": calls.total()
        if adaptive is None
        else adaptive.count(number) * context.samples,
        "aggregator": context.aggregator,
    }
    try:
        loads = context.pool.plan(calls)
    except InputError as error:
        return {**plan, "loads": None, "tokens": None, "seconds": None, "problem": str(error)}
    return {**plan, "loads": loads.loads, "tokens": loads.tokens, "seconds": loads.makespan}


def _find_problem(decision: PlanDecision, context: Resources) -> str | None:
    unknown = sorted(set(decision.without) - set(context.pool.catalog))
    if not unknown:
        return None
    there = ", ".join(context.pool.catalog)
    return f'there is no expert "{unknown[0]}" to do without; there are {there}'


def _do_without(context: Resources, state: PanelState, barred: set[str]) -> dict[str, list[Json]]:
    """Recruits without those experts, the next best in their place."""
    touched = [
        Question.restore(state["questions"][qid])
        for qid, recruits in state["recruits"].items()
        if any(row["expert"] in barred for row in recruits)
    ]
    ranked = rank_experts(context, state, touched) if touched else {}
    changed = dict(state["recruits"])
    for question in touched:
        before = state["recruits"][question.id]
        kept = [row for row in before if row["expert"] not in barred]
        taken = {row["expert"] for row in kept} | barred
        spare = [r.to_json() for r in ranked[question.id] if r.expert not in taken]
        # An expert may have been drawn several times; each of its calls goes to somebody else.
        lost = sum(row.get("draws", 1) for row in before if row["expert"] in barred)
        changed[question.id] = [*kept, *spare[:lost]]
    return changed
