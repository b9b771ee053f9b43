from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from expertmix.agents.answers import is_correct
from expertmix.agents.reference_answers import (
    is_correct_like_reference,
    read_boxed_like_reference,
    read_choice_like_reference,
)
from expertmix.retrieval import Question


@pytest.mark.parametrize(
    ("reply", "of_four", "of_ten"),
    [
        ("The answer is (C)", "C", "C"),
        ("The answer is C", "C", "C"),
        (r"\boxed{C}", "C", "C"),
        ("the answer is (c)", "N/A", "N/A"),
        (r"\boxed{C}. Done", "D", "D"),
        ("(A) is wrong, so the answer is (B).", "B", "B"),
        ("It is DNA (not RNA)", "A", "A"),
        ("(B) because of RNA)", "A", "A"),
        ("Answer: none", "A", "A"),
        ("I think it is H", "N/A", "H"),
        ("I am not sure", "N/A", "I"),
        ("E)", "N/A", "E"),
        ("answer is **(D)**", "D", "D"),
        ("|)", "|", "|"),
        ("J) or I)", "N/A", "I"),
        ("", "N/A", "N/A"),
        (None, "N/A", "N/A"),
    ],
)
def test_choices_are_misread_exactly_as_published(
    reply: str | None, of_four: str, of_ten: str
) -> None:
    assert read_choice_like_reference(reply, 4) == of_four
    assert read_choice_like_reference(reply, 10) == of_ten


@pytest.mark.parametrize(
    ("reply", "content"),
    [
        (r"The answer is \boxed{33}", "33"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a}\boxed{b}", "b"),
        ("no box here", "no box here"),
        (r"\boxed{unclosed", r"\boxed{unclosed"),
        (r"\fbox{7}", r"\fbox{7}"),
        (r"\boxed 7", r"\boxed 7"),
        ("", "N/A"),
        (r"\boxed{{204}}", "{204}"),
        (r"first \boxed{5} and then some words", "5"),
        (None, "N/A"),
    ],
)
def test_boxes_are_read_exactly_as_published(reply: str | None, content: str) -> None:
    assert read_boxed_like_reference(reply) == content


TWO_VALUES = "080 or 081"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("33", "33"),
        ("033", "33"),
        ("33", "033"),
        ("1/2", r"\frac{1}{2}"),
        ("(A)", "A"),
        ("A", "(A)"),
        ("N/A", "N/A"),
        (TWO_VALUES, "081"),
        ("204", "The answer is 204"),
        ("2,025", "2025"),
        ("25.0", "25"),
        ("$25$", "25"),
        (r"73^\circ", "73"),
        ("So the sum of both is 113", "113"),
        (r"\text{A}", "A"),
    ],
)
def test_answers_are_right_that_the_published_code_finds_right(gold: str, answer: str) -> None:
    assert is_correct_like_reference(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("N/A", "A"),
        ("|", "A"),
        (TWO_VALUES, "080"),
        (TWO_VALUES, "80"),
        ("113", "114"),
        ("A and B", "A"),
        ("33", 33),
        (33, "33"),
        ("33", None),
    ],
)
def test_answers_are_wrong_that_the_published_code_finds_wrong(gold: Any, answer: Any) -> None:
    assert not is_correct_like_reference(gold, answer)


def test_faults_of_the_published_comparison_are_not_ours() -> None:
    two_values = Question(id="q", text="How many?", kind="number", gold=TWO_VALUES)
    for answer in ("080", "80"):
        assert is_correct(answer, two_values)
        assert not is_correct_like_reference(TWO_VALUES, answer)


def test_letters_are_equal_to_themselves_alone() -> None:
    for gold in "ABCDEFGHIJ":
        assert [a for a in "ABCDEFGHIJ" if is_correct_like_reference(gold, a)] == [gold]


@pytest.mark.parametrize(
    "bomb",
    ["9^9^9", "9^{9^{9}}", "9**9**9", "(9^{99})^{999}", "9^{99*99*99*99}", "2 ^ 999999999999", r"9^{9\cdot 9^9}", "9^{10,000,000,000}",
     "99999999!", "(99!)!", "9!!!!", r"\binom{99999999}{5000000}", "it is 9^{9^{9}} so it is 9"],
)  # fmt: skip
def test_what_would_take_for_ever_is_compared_as_text(bomb: str) -> None:
    start = time.thread_time()
    assert not is_correct_like_reference("3", bomb)
    assert is_correct_like_reference(bomb, bomb)
    assert time.thread_time() - start < 1


def test_powers_that_are_cheap_are_still_compared() -> None:
    assert is_correct_like_reference("1024", "2^{10}")
    assert is_correct_like_reference("16", "As 2^{10} = 1024 and 4^5 = 1024 the answer is 16")


def test_a_comparison_outside_the_main_thread_is_refused() -> None:
    raised: list[RuntimeError] = []

    def compare() -> None:
        try:
            is_correct_like_reference("33", "33")
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])
