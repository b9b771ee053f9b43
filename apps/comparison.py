"""Other ways to use the very same answers: every policy replayed on a run's questions, next to the panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from ..agents import (
    MISSING,
    UNREADABLE,
    Answer,
    Expertise,
    OutcomeTable,
    SkillWeights,
    is_correct,
)
from ..agents.judgement import label_answers, name_labels
from ..graph import Result, Score
from ..graph.replay import Replay
from ..graph.study import replay_seed
from ..graph.trial import Trial
from ..retrieval import Question

__all__ = ["tabulate_comparison", "tabulate_outcomes"]

SEEDS = range(20)
DRAWN = ("random", "random_vote", "reference", "paper")
SHOWN = {
    "best_single": "best on the references",
    "top_k_vote": "vote of the best {k} on the references",
    "random_vote": "vote of {k} at random",
    "reference": "published code: {k} drawn, vote",
    "paper": "the paper's formula: {k} drawn, vote",
    "skill_vote": "{k} recruited by skill, vote",
    "skill": "{k} recruited by skill, weighed",
    "adaptive": "recruited by skill, at most {k} calls on average",
}

OURS = ("skill", "skill_vote", "adaptive")
"""Shown at every size; the others at the panel's own."""

Everyone = Mapping[str, Mapping[str, Answer]]


def tabulate_comparison(
    result: Result, everyone: Everyone, expertise: Expertise, *, k: int, calls: Sequence[int]
) -> Table:
    """Each expert alone, every policy with the same answers, chance and the oracle.

    Args:
        result: Of a panel of k; its questions have gold answers.
        everyone: Every expert's answer to every question, by alias and question id.
        expertise: What the panel recruited by.
        k: Experts per question of that panel.
        calls: Panel sizes at which recruiting by skill is replayed.
    """
    questions = [solution.question for solution in result]
    number = len(questions)
    table = Table(
        title=f"Right answers on {number} questions that no profile has seen", title_justify="left"
    )
    for column in ("who", "calls each", "right", "share", "95 % interval"):
        table.add_column(column, justify="left" if column == "who" else "right")
    for alias in sorted(everyone):
        right = sum(is_correct(everyone[alias][q.id].answer, q) for q in questions)
        _add(table, alias, "1", Score(right=right, total=number))
    table.add_section()
    skills = {solution.question.id: solution.skills for solution in result}
    for policy, size, replays in _replay(questions, everyone, skills, expertise, k, calls):
        told = SHOWN[policy].format(k=size)
        if len(replays) > 1:
            told += f", mean of {len(replays)} seeds"
        mean = sum(replay.calls_mean for replay in replays) / len(replays)
        right = sum(int(replay.right_Q.sum()) for replay in replays) / len(replays)
        score = Score(right=round(right), total=number)
        is_ours = policy == "skill" and size == k
        _add(table, f"[bold]{told}[/bold]" if is_ours else told, f"{mean:.3g}", score)
    table.add_section()
    if result.score is not None:
        _add(table, "[bold]the panel, as it answered above[/bold]", str(k), result.score)
    table.add_row("chance", "0", "", f"{result.chance or 0:.3f}", "")
    any_right = sum(
        any(is_correct(given[q.id].answer, q) for given in everyone.values()) for q in questions
    )
    _add(
        table, "oracle: any expert right", str(len(everyone)), Score(right=any_right, total=number)
    )
    return table


def tabulate_outcomes(
    questions: Sequence[Question], everyone: Everyone, skills: Mapping[str, SkillWeights]
) -> OutcomeTable:
    """Answers to questions with gold as a table that policies can be replayed on."""
    experts = tuple(sorted(everyone))
    labels_QE = np.full((len(questions), len(experts)), MISSING, np.int16)
    gold_Q = np.zeros(len(questions), np.int16)
    for row, question in enumerate(questions):
        given = [everyone[expert][question.id] for expert in experts]
        names = name_labels(question, given)
        labels = label_answers(question, given)
        right = [at for name, at in names.items() if is_correct(name, question)]
        gold_Q[row] = right[0] if right else len(names)
        for column, answer in enumerate(given):
            if answer.error is None:
                label = labels.get(answer.expert, UNREADABLE)
                # Golds may name alternatives: each of them is right, as in a profile.
                labels_QE[row, column] = gold_Q[row] if label in right else label
    return OutcomeTable(
        experts=experts,
        questions=tuple(question.id for question in questions),
        labels_NE=labels_QE,
        gold_N=gold_Q,
        options_N=np.array([len(question.options) for question in questions], np.int16),
        skills=tuple(dict(skills.get(question.id, {})) for question in questions),
    )


def _replay(
    questions: Sequence[Question],
    everyone: Everyone,
    skills: Mapping[str, SkillWeights],
    expertise: Expertise,
    k: int,
    calls: Sequence[int],
) -> list[tuple[str, int, list[Replay]]]:
    """Policy, size, and a replay for each seed, in the order of `SHOWN`."""
    test = tabulate_outcomes(questions, everyone, skills)
    trial = Trial(
        profile=expertise.table,
        test=test,
        learnt=(),
        asked=tuple(questions),
        tokens_QE=np.array(
            [
                [everyone[expert][q.id].usage.completion_tokens for expert in test.experts]
                for q in questions
            ],
            np.float64,
        ),
        mergeable=True,
    )
    found: dict[tuple[str, int], list[Replay]] = {}
    for seed in SEEDS:
        policies = [policy for policy in SHOWN if seed == 0 or policy in DRAWN]
        replays, _ = replay_seed(trial, policies=policies, calls=calls, skills="given", seed=seed)
        for replay in replays:
            found.setdefault((replay.policy, replay.calls), []).append(replay)
    order = list(SHOWN)
    ranked = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return [
        (policy, size, found[policy, size])
        for policy, size in ranked
        if policy == "best_single" or size in (calls if policy in OURS else (k,))
    ]


def _add(table: Table, name: str, calls: str, score: Score) -> None:
    low, high = score.interval
    table.add_row(name, calls, str(score.right), f"{score.share:.3f}", f"{low:.3f}–{high:.3f}")
