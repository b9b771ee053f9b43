from __future__ import annotations

import pytest

from expertmix.agents.reference_answers import (
    read_boxed_like_reference,
    read_choice_like_reference,
)


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
    ],
)
def test_boxes_are_read_exactly_as_published(reply: str, content: str) -> None:
    assert read_boxed_like_reference(reply) == content
