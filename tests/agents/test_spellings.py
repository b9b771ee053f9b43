from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.spellings import differ_in_meaning, show_word, spell


@pytest.mark.parametrize(
    "spellings",
    [
        ["Number Theory", "number theory", "number  theories", "NUMBER-THEORY", "number theory."],
        ["non-linear algebra", "nonlinear algebra", "Non linear algebra"],
        ["Newton's laws", "Newton’s law", "newtons laws"],
        ["supply & demand", "Supply and Demand"],
        ["matrix", "matrices", "(Matrices)"],
        ["hypothesis", "hypotheses"],
        ["analysis", "Analyses"],
        ["C++", "c++"],
        ["class", "classes"],
        ["law", "laws", "Law", "«law»"],
        ["x²", "x2"],
    ],
)
def test_words_that_differ_in_writing_alone_are_spelled_alike(spellings: list[str]) -> None:
    assert len({spell(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C", "C++"),
        ("C#", "C"),
        ("version 1.5", "version 15"),
        ("physics", "physical"),
        ("ethics", "ethic codes"),
        ("algebra 1", "algebra 2"),
        ("gas", "ga"),
    ],
)
def test_other_words_are_not(one: str, other: str) -> None:
    assert spell(one) != spell(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("algebra 1", "algebra 2"),
        ("algebra", "algebra 2"),
        ("hepatitis b", "hepatitis c"),
        ("type ii error", "type i error"),
        ("c++ programming", "c programming"),
        ("linear equations", "nonlinear equations"),
        ("linear equations", "equations, non-linear"),
        ("unsupervised learning", "supervised machine learning"),
        ("organic chemistry", "inorganic chemistry"),
        ("parametric tests", "tests without parametric forms"),
        ("microeconomics", "macroeconomics"),
        ("hypertension", "hypotension"),
    ],
)
def test_a_number_a_letter_a_sign_or_a_negation_makes_another_meaning(one: str, other: str) -> None:
    assert differ_in_meaning(one, other)
    assert differ_in_meaning(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("contract law", "law of contracts"),
        ("antitrust law", "anti-trust laws"),
        ("algebra 2", "algebra no. 2".replace("no. ", "")),
        ("nonlinear algebra", "algebra, non-linear"),
        ("understanding", "understanding texts"),
    ],
)
def test_other_changes_of_words_do_not(one: str, other: str) -> None:
    assert not differ_in_meaning(one, other)


@given(st.text(), st.text())
def test_any_text_can_be_spelled_shown_and_compared(one: str, other: str) -> None:
    shown = show_word(one)
    assert shown.isprintable()
    assert shown == shown.strip() == show_word(shown)
    assert spell(one) == spell(shown) or not one.isprintable()
    assert differ_in_meaning(one, other) == differ_in_meaning(other, one)
    assert not differ_in_meaning(one, one)
