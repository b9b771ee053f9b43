"""From the answers of panels to verdicts: each answer by the chance that it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..retrieval import Question
from .aggregate import Verdict, vote
from .answers import same_answer
from .beliefs import Beliefs
from .outcomes import MISSING, UNREADABLE, SkillWeights
from .posterior import Evidence, chances_of
from .reason import Answer

__all__ = ["abstain", "gather_evidence", "judge", "label_answers", "name_labels"]


def gather_evidence(
    beliefs: Beliefs,
    questions: Sequence[Question],
    skills: Mapping[str, SkillWeights],
    answers: Mapping[str, Sequence[Answer]],
) -> Evidence:
    """What the answers so far say, as numbers.

    An expert's several samples count as the answer most of them give, the first one in a tie. An expert
    that failed was asked and says nothing.

    Args:
        beliefs: About the experts; answers of others are left out.
        questions: The batch.
        skills: Question id to its skills.
        answers: Question id to its answers, in a fixed order.
    """
    place = {expert: at for at, expert in enumerate(beliefs.experts)}
    labels_QE = np.full((len(questions), len(place)), MISSING, np.intp)
    for row, question in enumerate(questions):
        given = [answer for answer in answers.get(question.id, ()) if answer.expert in place]
        for expert in dict.fromkeys(answer.expert for answer in given):
            labels_QE[row, place[expert]] = UNREADABLE
        for expert, label in label_answers(question, given).items():
            labels_QE[row, place[expert]] = label
    return Evidence(
        ability_QE=beliefs.foresee([skills.get(question.id, {}) for question in questions]),
        options_Q=np.array([len(question.options) for question in questions], np.intp),
        labels_QE=labels_QE,
    )


def judge(
    beliefs: Beliefs,
    questions: Sequence[Question],
    skills: Mapping[str, SkillWeights],
    answers: Mapping[str, Sequence[Answer]],
) -> list[Verdict]:
    """The likeliest of the answers given to each question; confidence is its chance to be right.

    Equal chances go to the answer that more experts gave, then to the one given first.
    """
    evidence = gather_evidence(beliefs, questions, skills, answers)
    chances_QM = chances_of(beliefs, evidence)
    verdicts: list[Verdict] = []
    for row, question in enumerate(questions):
        given = list(answers.get(question.id, ()))
        voted = vote(question, given)
        known = [answer for answer in given if answer.expert in beliefs.experts]
        named = name_labels(question, known)
        chances = {
            shown: float(chances_QM[row, named[shown]]) for shown in voted.votes if shown in named
        }
        if not chances:
            verdicts.append(voted)
            continue
        best = max(chances, key=lambda shown: round(chances[shown], 9))  # ties: as voted
        verdicts.append(
            replace(
                voted,
                answer=best,
                confidence=chances[best],
                method="posterior",
                chances=dict(sorted(chances.items(), key=lambda pair: -pair[1])),
            )
        )
    return verdicts


def abstain(verdict: Verdict, least: float) -> Verdict:
    """No answer where the confidence is below `least`; what the panel leaned to stays in the note."""
    if verdict.answer is None or verdict.confidence >= least:
        return verdict
    note = (
        f"abstained: the confidence {verdict.confidence:.2f} is below {least:.2f}; "
        f"the panel leaned to {verdict.answer}"
    )
    return replace(
        verdict, answer=None, abstained=True, note="; ".join(filter(None, (verdict.note, note)))
    )


def name_labels(question: Question, answers: Sequence[Answer]) -> dict[str, int]:
    """Each different answer, as first written, with its label."""
    if question.options:
        return {letter: at for at, letter in enumerate(question.letters)}
    names: list[str] = []
    for answer in answers:
        text = answer.answer
        if text is not None and not any(same_answer(name, text, question) for name in names):
            names.append(text)
    return {name: at for at, name in enumerate(names)}


def label_answers(question: Question, answers: Sequence[Answer]) -> dict[str, int]:
    """Each expert's label, see `OutcomeTable`; experts without a readable answer are left out."""
    names = name_labels(question, answers)
    votes: dict[str, list[int]] = {}
    for answer in answers:
        text = answer.answer
        label = None if text is None else names.get(text)
        if label is None and text is not None:
            label = next((at for n, at in names.items() if same_answer(n, text, question)), None)
        if label is not None:
            votes.setdefault(answer.expert, []).append(label)
    return {
        expert: max(dict.fromkeys(labels), key=labels.count) for expert, labels in votes.items()
    }
