"""Questions as the page's script reads them: an index for its list, and chunks that it opens on demand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from ...agents import is_correct
from ...graph import Solution
from ...retrieval import Question
from .choices import Choice, Names, compare_marks, tell_disputes, tell_results
from .content import ReportContent
from .curtain import HIDDEN, Curtain
from .pathways import embed_remix, read_remix
from .wording import clean, keep_end, keep_start, read_number

__all__ = ["CHUNK", "LAST", "Embedded", "embed_questions"]

CHUNK = 100
"""Questions in a chunk."""
LAST = 1500
"""Characters kept of an expert's text: its end, where the answer stands."""
LONGEST = 8000
"""Characters kept of a question."""
EXCERPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Everything about questions that the page needs; JSON is escaped for a script element."""

    index: Markup
    chunks: Sequence[Markup]
    total: int
    marks: str
    """A letter per question, see `choices.MARKS`."""
    results: Sequence[Choice]
    disputes: Sequence[Choice]
    gained: Sequence[Choice]
    """Others that are right where the main method is not, by place."""
    lost: Sequence[Choice]
    """The other way round."""
    skills: Sequence[Choice]
    experts: Sequence[Choice]


def embed_questions(content: ReportContent, curtain: Curtain) -> Embedded | None:
    """Make the index and the chunks; None where there are no questions.

    Of an expert's text the last `LAST` characters are kept. Whatever is hidden stays out of both.
    """
    if not content.solutions:
        return None
    solutions = content.solutions
    graders = [_Grader(solution) for solution in solutions]
    marks = "".join(grader.mark for grader in graders)
    labels = list(content.others)
    beside = [
        "".join(_others_mark(content.others[a].get(s.question.id)) for s in solutions)
        for a in labels
    ]
    disputed = "".join("1" if _is_disputed(solution) else "0" for solution in solutions)
    skills = Names()
    experts = Names()
    index = {
        "main": clean(content.main),
        "chunk": CHUNK,
        "last": LAST,
        "marks": marks,
        "disputed": disputed,
        "beside": beside,
        "ids": [keep_start(s.question.id, 200) for s in solutions],
        "texts": [_excerpt(curtain.words(s.question.text, s.question)) for s in solutions],
        "answers": [_tell_choice(s.row.get("answer"), s.question, curtain) for s in solutions],
        "golds": [_tell_choice(s.question.gold, s.question, curtain) for s in solutions],
        "sure": [_hundredths(s.row.get("confidence")) for s in solutions],
        "skills": [skills.places(curtain.skills(s)) for s in solutions],
        "experts": [experts.places(_recruited(s)) for s in solutions],
        "hidden": [at for at, s in enumerate(solutions) if curtain.covers(s.question)],
    }
    names = {
        "labels": [clean(label) for label in labels],
        "skillNames": [keep_start(name, 80) for name in skills.names],
        "expertNames": [keep_start(name, 80) for name in experts.names],
    }
    told = [
        _tell(
            solution, grader, [content.others[a].get(solution.question.id) for a in labels], curtain
        )
        for solution, grader in zip(solutions, graders, strict=True)
    ]
    gained, lost = compare_marks(marks, beside, names["labels"], clean(content.main))
    return Embedded(
        index=_dump(index | names),
        chunks=[_dump(told[first : first + CHUNK]) for first in range(0, len(told), CHUNK)],
        total=len(told),
        marks=marks,
        results=tell_results(marks),
        disputes=tell_disputes(disputed),
        gained=gained,
        lost=lost,
        skills=skills.choices(),
        experts=experts.choices(),
    )


class _Grader:
    """Tells which answers to one question are right, each looked at once: comparing formulas is slow."""

    def __init__(self, solution: Solution) -> None:
        self._question = solution.question
        self._known: dict[str, bool] = {}
        self.mark = self._judge(solution)

    def right(self, answer: str | None) -> bool | None:
        """None where there is no answer or no gold."""
        if answer is None or self._question.gold is None:
            return None
        if answer not in self._known:
            self._known[answer] = is_correct(answer, self._question)
        return self._known[answer]

    def _judge(self, solution: Solution) -> str:
        answer = solution.row.get("answer")
        if answer is None:
            return "a" if solution.row.get("abstained") else "n"
        return {True: "r", False: "w", None: "u"}[self.right(answer)]


def _tell(
    solution: Solution,
    grader: _Grader,
    others: Sequence[tuple[str | None, bool | None] | None],
    curtain: Curtain,
) -> dict[str, Any]:
    """One question in full, as the script shows it when it is opened."""
    question, row = solution.question, solution.row
    covered = curtain.covers(question)
    aggregation, long = keep_end(curtain.words(row.get("aggregation"), question), LAST)
    return {
        "text": keep_start(curtain.words(question.text, question), LONGEST),
        "options": [] if covered else [keep_start(option, LONGEST) for option in question.options],
        "gold": _brief(curtain.answer(question.gold, question)),
        "answer": _brief(curtain.answer(row.get("answer"), question)),
        "confidence": read_number(row.get("confidence")),
        "method": keep_start(row.get("method") or "", 40),
        "abstained": bool(row.get("abstained")),
        "note": keep_start(curtain.words(row.get("note"), question), 500),
        "skills": [
            [keep_start(n, 80), read_number(v)] for n, v in curtain.skills(solution).items()
        ],
        "experts": [_tell_expert(e, question, grader, curtain) for e in row.get("experts") or ()],
        "votes": _tell_votes(row, question, grader, curtain),
        "unread": [keep_start(name, 80) for name in row.get("unread") or ()],
        "missing": [
            [keep_start(name, 80), keep_start(curtain.words(why, question), 500)]
            for name, why in (row.get("missing") or {}).items()
        ],
        "aggregation": aggregation,
        "aggregationLength": long,
        "others": [
            None if pair is None else [_brief(curtain.answer(pair[0], question)), pair[1]]
            for pair in others
        ],
    }


def _tell_expert(
    row: Mapping[str, Any], question: Question, grader: _Grader, curtain: Curtain
) -> dict[str, Any]:
    text, long = keep_end(curtain.words(row.get("text"), question), LAST)
    error = row.get("error")
    told: dict[str, Any] = {
        "expert": keep_start(row.get("expert") or "?", 80),
        "weight": read_number(row.get("weight")),
        "reason": keep_start(curtain.words(row.get("reason"), question), 500),
        "answer": _brief(curtain.answer(row.get("answer"), question)),
        "right": grader.right(row.get("answer")),
        "text": text,
        "length": long,
        "error": None
        if error is None
        else keep_start(curtain.words(error, question) or HIDDEN, 500),
        "sample": row.get("sample") if isinstance(row.get("sample"), int) else 0,
        "tokens": [read_number(row.get(f"{kind}_tokens")) for kind in ("prompt", "completion")],
    }
    for key in ("round", "agent"):
        if row.get(key) is not None:
            told[key] = keep_start(row[key], 40)
    if (remix := read_remix(row)) is not None:
        told["remix"] = embed_remix(curtain.remix(remix, question))
    return told


def _tell_votes(
    row: Mapping[str, Any], question: Question, grader: _Grader, curtain: Curtain
) -> list[list[Any]]:
    """Each answer with who gave it, its chance, whether it is right, whether it is the verdict; that first."""
    votes: dict[str, Sequence[str]] = dict(row.get("votes") or {})
    verdict = row.get("answer")
    if verdict is not None:
        votes.setdefault(verdict, ())  # a model that merges may say what nobody said
    chances: Mapping[str, Any] = row.get("chances") or {}
    return [
        [
            _brief(curtain.answer(answer, question)),
            [keep_start(name, 80) for name in who],
            read_number(chances.get(answer)),
            grader.right(answer),
            answer == verdict,
        ]
        for answer, who in sorted(votes.items(), key=lambda vote: vote[0] != verdict)
    ]


def _is_disputed(solution: Solution) -> bool:
    """Whether experts contradict each other, or a model that merged them; abstaining is no dispute."""
    row = solution.row
    contradicts = row.get("answer") is not None and bool(row.get("dissent"))
    return len(row.get("votes") or ()) > 1 or contradicts


def _recruited(solution: Solution) -> list[str]:
    named = (str(row.get("expert") or "?") for row in solution.row.get("experts") or ())
    return list(dict.fromkeys(named))


def _others_mark(pair: tuple[str | None, bool | None] | None) -> str:
    return "-" if pair is None or pair[1] is None else "1" if pair[1] else "0"


def _excerpt(text: str) -> str:
    return keep_start(" ".join(text[: 4 * EXCERPT].split()), EXCERPT)


def _brief(answer: str | None) -> str | None:
    return None if answer is None else keep_start(answer, 300)


def _tell_choice(answer: str | None, question: Question, curtain: Curtain) -> str | None:
    """An answer for the list; a letter with its option."""
    shown = curtain.answer(answer, question)
    if shown is None or curtain.covers(question) or len(shown) != 1:
        return None if shown is None else keep_start(shown, 90)
    place = question.letters.find(shown)
    return keep_start(shown if place < 0 else f"{shown} {question.options[place]}", 90)


def _hundredths(value: Any) -> int | None:
    number = read_number(value)
    return None if number is None else round(100 * number)


def _dump(value: Any) -> Markup:
    # Escapes `<`, `>` and `&`, and everything that is not ASCII: nothing in it can end the element.
    return htmlsafe_json_dumps(value, dumps=json.dumps, allow_nan=False, separators=(",", ":"))
