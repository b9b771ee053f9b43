"""The table of answers: what counts as right, what is refused, and what a selection keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable
from expertmix.retrieval import InputError


def make_table(**changes: Any) -> OutcomeTable:
    """Three questions, two experts; `changes` replace what is given here."""
    given: dict[str, Any] = {
        "experts": ("ada", "cy"),
        "questions": ("q1", "q2", "q3"),
        "labels_NE": np.array([[0, 1], [UNREADABLE, 2], [MISSING, 3]], np.int16),
        "gold_N": np.array([0, 2, 1], np.int16),
        "options_N": np.array([4, 4, 0], np.int16),
        "skills": ({"law": 1.0}, {}, {"art": 0.5}),
        "tokens_E": np.array([10.0, 20.0]),
        "seconds_E": np.array([1.0, 2.0]),
    }
    return OutcomeTable(**(given | changes))


def test_right_needs_a_readable_reply_that_equals_gold() -> None:
    table = make_table()
    assert table.right_NE.tolist() == [[True, False], [False, True], [False, False]]
    assert table.asked_NE.tolist() == [[True, True], [True, True], [False, True]]
    assert len(table) == 3


@pytest.mark.parametrize("gold", [UNREADABLE, MISSING])
def test_no_reply_is_right_because_nobody_gave_the_right_answer(gold: int) -> None:
    nobody = make_table(gold_N=np.array([0, 2, gold], np.int16), labels_NE=np.full((3, 2), gold))
    assert not nobody.right_NE.any()


def test_a_selection_keeps_rows_experts_and_their_costs_together() -> None:
    part = make_table().select([2, 0], ["cy"])
    assert part.experts == ("cy",)
    assert part.questions == ("q3", "q1")
    assert part.labels_NE.tolist() == [[3], [1]]
    assert part.gold_N.tolist() == [1, 0]
    assert part.options_N.tolist() == [0, 4]
    assert part.skills == ({"art": 0.5}, {"law": 1.0})
    assert (part.tokens_E.tolist(), part.seconds_E.tolist()) == ([20.0], [2.0])


def test_a_selection_of_experts_is_sorted_whatever_the_order_of_their_names() -> None:
    table = make_table()
    assert table.select([0], ["cy", "ada", "cy"]).experts == ("ada", "cy")
    assert table.select([0], ["cy", "ada"]).labels_NE.tolist() == [[0, 1]]
    empty = table.select([])
    assert len(empty) == 0
    assert empty.labels_NE.shape == (0, 2)


def test_costs_are_zero_where_nobody_measured_them() -> None:
    nobody = np.zeros(0)
    table = make_table(tokens_E=nobody, seconds_E=nobody)
    assert table.tokens_E.tolist() == table.seconds_E.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_NE": np.zeros((3, 3), np.int16)}, r"shape \(3, 3\), expected \(3, 2\)"),
        ({"experts": ("cy", "ada")}, "must be sorted"),
        ({"experts": ("ada", "ada")}, "each named once"),
        ({"gold_N": np.zeros(2, np.int16)}, "gold_N has 2 rows, expected 3"),
        ({"options_N": np.zeros(4, np.int16)}, "options_N has 4 rows, expected 3"),
        ({"tokens_E": np.array([1.0])}, "tokens_E needs 2 finite numbers"),
        ({"seconds_E": np.array([1.0, np.nan])}, "seconds_E needs 2 finite numbers"),
        ({"skills": ({"law": 1.0},)}, "skills are given for 1 of 3 questions"),
        ({"gold_N": np.array([0, 4, 1])}, "question q2 has 4 options, .* is number 4"),
        ({"gold_N": np.array([-1, 2, 1])}, "question q1 has 4 options, .* is number -1"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_table(**changes)


def test_an_open_question_may_have_any_label_of_gold() -> None:
    assert make_table(gold_N=np.array([0, 2, 17])).gold_N[2] == 17


def test_an_expert_that_is_not_in_the_table_is_named_with_those_that_are() -> None:
    with pytest.raises(InputError, match='no expert "bob" in the table; it has ada, cy'):
        make_table().select([0], ["bob"])
