"""An expert that failed gives its questions to whoever recruiting names next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..agents import Policy, Recruit, recruit
from ..retrieval import Question
from .state import Json, PanelState, Resources

__all__ = ["MOST_ROUNDS", "rank_experts", "replace_failed"]

MOST_ROUNDS = 3
"""Rounds of one batch, the first included: each may load further models."""

RANKING: Mapping[Policy, Policy] = {
    "paper": "top_k",
    "paper-trimmed": "top_k",
    "reference": "top_k",
}
"""What ranks the runners-up of policies that draw, and so have none."""


def replace_failed(context: Resources, state: PanelState) -> dict[str, list[Json]]:
    """Recruits, with the next best added wherever an expert failed to answer.

    An expert that failed on everything it was asked is broken and stands in for nobody. A question for
    which nobody is left keeps what it has; its verdict says what is missing.
    """
    recruits, answers = state["recruits"], state["answers"]
    if state["round"] >= MOST_ROUNDS or not context.substitute:
        return recruits
    failed = _find_failures(answers)
    owing = [
        Question.restore(state["questions"][qid])
        for qid in failed
        if _count_owed(recruits, failed, qid)
    ]
    if not owing:
        return recruits
    broken = {
        expert
        for expert, rows in answers.items()
        if all(row["error"] is not None for row in rows.values())
    }
    barred = set(state.get("barred", ()))
    ranked = rank_experts(context, state, owing)
    changed = dict(recruits)
    for question in owing:
        given = recruits[question.id]
        taken = {row["expert"] for row in given} | broken | barred
        spare = [r for r in ranked[question.id] if r.expert not in taken]
        lost = sorted({row["expert"] for row in given} & failed[question.id])
        changed[question.id] = [
            *given,
            *(
                {**chosen.to_json(), "replaces": ", ".join(lost)}
                for chosen in spare[: _count_owed(recruits, failed, question.id)]
            ),
        ]
    return changed


def _find_failures(answers: Mapping[str, Json]) -> dict[str, set[str]]:
    """Question id to the experts without a single answer to it."""
    failed: dict[str, set[str]] = {}
    for expert, rows in answers.items():
        owed = {row["question_id"] for row in rows.values() if row["error"] is not None}
        if owed:  # most often nobody fails
            owed -= {row["question_id"] for row in rows.values() if row["error"] is None}
        for qid in owed:
            failed.setdefault(qid, set()).add(expert)
    return failed


def _count_owed(
    recruits: Mapping[str, Sequence[Json]], failed: Mapping[str, Collection[str]], qid: str
) -> int:
    """How many answers fewer a question has than recruiting wanted for it."""
    if qid not in failed:
        return 0
    wanted = sum("replaces" not in row for row in recruits[qid])
    return wanted - sum(row["expert"] not in failed[qid] for row in recruits[qid])


def rank_experts(
    context: Resources, state: PanelState, questions: Sequence[Question]
) -> dict[str, list[Recruit]]:
    """Everybody, the most promising first, by the policy that recruited."""
    aliases = context.experts or tuple(context.pool.catalog)
    if context.expertise is None:
        ids = {question.id: {} for question in questions}
        return recruit(ids, aliases, k=len(aliases), seed=context.seed)
    return context.expertise.recruit(
        questions,
        state["skills"],
        k=len(context.expertise.table.experts),
        policy=RANKING.get(context.policy, context.policy),
        seed=context.seed,
        cost=context.cost,
    )
