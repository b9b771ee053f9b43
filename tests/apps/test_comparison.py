"""Answers as a table: what the demo replays policies on equals a table made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from expertmix.agents import MISSING, UNREADABLE, Answer
from expertmix.apps.comparison import tabulate_outcomes
from expertmix.retrieval import InputError, Question

QUESTIONS = [
    Question(id="choice", text="?", options=("x", "y", "z"), gold="C", kind="choice"),
    Question(id="number", text="?", gold="42", kind="number"),
    Question(id="nobody", text="?", gold="Oslo"),
    Question(id="either", text="?", gold="Rome || Roma"),
]
GIVEN = {
    "b": {"choice": "C", "number": "42", "nobody": "Bergen", "either": "Rome"},
    "a": {"choice": "A", "number": "7", "nobody": "Bodo", "either": "Roma"},
    "c": {"choice": None, "number": "42.0", "nobody": "bergen", "either": "Milan"},
}


def answer(expert: str, qid: str, *, failed: bool = False) -> Answer:
    return Answer(
        question_id=qid,
        expert=expert,
        answer=None if failed else GIVEN[expert][qid],
        error="it broke" if failed else None,
    )


def test_choices_and_open_questions_become_labels() -> None:
    everyone = {e: {q.id: answer(e, q.id) for q in QUESTIONS} for e in GIVEN}
    everyone["d"] = {q.id: Answer(question_id=q.id, expert="d", error="broke") for q in QUESTIONS}
    table = tabulate_outcomes(QUESTIONS, everyone, {"number": {"sums": 1.0}})
    assert table.experts == ("a", "b", "c", "d")
    assert table.labels_NE.tolist() == [
        [0, 2, UNREADABLE, MISSING],
        [0, 1, 1, MISSING],
        [0, 1, 1, MISSING],
        [0, 0, 2, MISSING],
    ]
    assert table.gold_N.tolist() == [2, 1, 2, 0], "a gold that nobody named is a label of its own"
    assert table.options_N.tolist() == [3, 0, 0, 0]
    assert table.skills == ({}, {"sums": 1.0}, {}, {})
    assert np.array_equal(
        table.right_NE,
        [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]],
    )


def test_the_order_of_experts_changes_nothing() -> None:
    tables = [
        tabulate_outcomes(
            QUESTIONS, {e: {q.id: answer(e, q.id) for q in QUESTIONS} for e in order}, {}
        )
        for order in ("abc", "cba")
    ]
    assert np.array_equal(tables[0].labels_NE, tables[1].labels_NE)
    assert np.array_equal(tables[0].gold_N, tables[1].gold_N)


def test_a_gold_beyond_the_options_is_refused() -> None:
    odd = Question.from_json({"id": "choice", "text": "?", "options": ["x", "y"], "gold": "A"})
    object.__setattr__(odd, "gold", "D")
    with pytest.raises(InputError, match="2 options, but its right answer"):
        tabulate_outcomes([odd], {"b": {"choice": answer("b", "choice")}}, {})
