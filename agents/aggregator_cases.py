"""Questions with one right draft and some wrong ones, to see who picks the right one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..retrieval import InputError, Question
from .answers import is_correct, same_answer
from .drafts import clean_draft
from .reason import Answer, derive_seed

__all__ = ["Case", "Cases", "build_cases"]


class Case(NamedTuple):
    """A question with exactly one right draft, in the order drawn."""

    question: Question
    drafts: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """What candidates are asked, and how many questions gave no case."""

    cases: tuple[Case, ...]
    wrong: int
    """Wrong drafts in each case."""
    dropped: Mapping[str, int]
    """Reason to number of questions; the reasons are `no gold answer`, `no right draft` and `too few
    wrong drafts`, and the first that applies counts."""

    @property
    def chance(self) -> float:
        """Expected share right of a candidate that copies a draft at random."""
        return 1 / (1 + self.wrong)

    def crowd(self, case: Case) -> str | None:
        """The (wrong) answer that more than one draft of a case gives; None if all differ."""
        question, drafts = case
        for at, draft in enumerate(drafts):
            if any(same_answer(draft.answer, d.answer, question) for d in drafts[at + 1 :]):
                return draft.answer
        return None

    @property
    def vote(self) -> float:
        """Expected share right of a vote, ties drawn: one right draft never has the majority."""
        lone = sum(self.crowd(case) is None for case in self.cases)
        return lone * self.chance / len(self.cases) if self.cases else 0.0


def build_cases(
    questions: Sequence[Question], answers: Iterable[Answer], *, seed: int, wrong: int = 2
) -> Cases:
    """One case per question: one right draft, `wrong` wrong ones, all drawn and shuffled by the seed.

    A draft is a reply with text (more than thinking) out of which an answer was read. The wrong ones
    have different answers as far as there are any. The order of answers and questions does not matter.

    Args:
        questions: With gold answers; others are dropped and counted.
        answers: To any of the questions, by any experts; answers to other questions are not used.
        seed: Of the draws.
        wrong: Wrong drafts in each case.

    Raises:
        InputError: two questions have the same id, or `wrong` is below 1.
    """
    if wrong < 1:
        raise InputError(f"wrong is {wrong}; a case needs at least one wrong draft")
    twice = [qid for qid, times in Counter(q.id for q in questions).items() if times > 1]
    if twice:
        raise InputError(f'two questions have the id "{twice[0]}"; ids must differ')
    usable: dict[str, list[Answer]] = {question.id: [] for question in questions}
    for answer in answers:
        mine = usable.get(answer.question_id)
        if mine is not None and answer.error is None and answer.answer and clean_draft(answer.text):
            mine.append(answer)
    cases: list[Case] = []
    dropped: Counter[str] = Counter()
    for question in sorted(questions, key=lambda q: q.id):
        drafts = _draw_drafts(question, usable[question.id], seed, wrong)
        if isinstance(drafts, str):
            dropped[drafts] += 1
        else:
            cases.append(Case(question, drafts))
    return Cases(cases=tuple(cases), wrong=wrong, dropped=dict(dropped))


def _draw_drafts(
    question: Question, answers: Sequence[Answer], seed: int, wrong: int
) -> tuple[Answer, ...] | str:
    """The drafts of a case, or why there is none."""
    if question.gold is None:
        return "no gold answer"
    draw = random.Random(derive_seed(seed, "case", question.id))
    answers = sorted(answers, key=lambda a: (a.expert, a.sample, a.answer or "", a.text))
    draw.shuffle(answers)
    right = [answer for answer in answers if is_correct(answer.answer, question)]
    others = [answer for answer in answers if not is_correct(answer.answer, question)]
    if not right:
        return "no right draft"
    if len(others) < wrong:
        return "too few wrong drafts"
    chosen: list[Answer] = []
    for new in (True, False):  # first those that say something else than the ones before them
        for answer in others:
            known = any(same_answer(answer.answer, c.answer, question) for c in chosen)
            if len(chosen) < wrong and known is not new and answer not in chosen:
                chosen.append(answer)
    drafts = [right[0], *chosen]
    draw.shuffle(drafts)
    return tuple(drafts)
