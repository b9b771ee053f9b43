"""Answers become verdicts by the chance that they are right, and nothing that was said gets lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import (
    MISSING,
    UNREADABLE,
    Answer,
    Beliefs,
    OutcomeTable,
    abstain,
    gather_evidence,
    judge,
)
from expertmix.retrieval import Question

CHOICE = Question(id="q", text="Which?", options=("w", "x", "y", "z"), kind="choice")
NUMBER = Question(id="n", text="How many?", kind="number")


def make_beliefs(*shares: float) -> Beliefs:
    """Experts a, b, c … that are right with these shares, independently."""
    chance = np.random.default_rng(1)
    gold_N = chance.integers(0, 4, 300)
    right_NE = chance.random((300, len(shares))) < np.array(shares)
    wrong_NE = (gold_N[:, None] + chance.integers(1, 4, right_NE.shape)) % 4
    table = OutcomeTable(
        experts=tuple("abcdefgh"[: len(shares)]),
        questions=tuple(map(str, range(300))),
        labels_NE=np.where(right_NE, gold_N[:, None], wrong_NE).astype(np.int16),
        gold_N=gold_N.astype(np.int16),
        options_N=np.full(300, 4, np.int16),
    )
    return Beliefs.fit(table)


def says(question: Question, **answers: str | None) -> list[Answer]:
    return [
        Answer(question_id=question.id, expert=expert, answer=answer)
        for expert, answer in answers.items()
    ]


def test_the_trusted_expert_beats_a_majority_of_poor_ones() -> None:
    beliefs = make_beliefs(0.95, 0.3, 0.3)
    [verdict] = judge(beliefs, [CHOICE], {}, {"q": says(CHOICE, a="A", b="B", c="B")})
    assert verdict.answer == "A"
    assert verdict.method == "posterior"
    assert verdict.confidence == verdict.chances["A"] > verdict.chances["B"]
    assert verdict.dissent == {"B": ("b", "c")}


def test_equals_outvote_one_of_their_own() -> None:
    beliefs = make_beliefs(0.6, 0.6, 0.6)
    [verdict] = judge(beliefs, [CHOICE], {}, {"q": says(CHOICE, a="A", b="B", c="B")})
    assert verdict.answer == "B"


def test_agreement_makes_confident_and_dissent_does_not() -> None:
    beliefs = make_beliefs(0.6, 0.6, 0.6)
    both = {"one": "AAA", "two": "AAB", "three": "ABC"}
    found = [
        judge(beliefs, [CHOICE], {}, {"q": says(CHOICE, **dict(zip("abc", letters, strict=True)))})[
            0
        ].confidence
        for letters in both.values()
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.75


def test_equal_numbers_are_one_answer_however_they_are_written() -> None:
    beliefs = make_beliefs(0.6, 0.6, 0.6)
    [verdict] = judge(beliefs, [NUMBER], {}, {"n": says(NUMBER, a="3", b="1/2", c="0.5")})
    assert verdict.answer == "1/2"
    assert verdict.votes == {"1/2": ("b", "c"), "3": ("a",)}
    assert sum(verdict.chances.values()) < 1, "nobody may have named the right one"


def test_without_any_readable_answer_there_is_no_verdict() -> None:
    failed = Answer(question_id="q", expert="b", error="it broke")
    [verdict] = judge(make_beliefs(0.6, 0.6), [CHOICE], {}, {"q": [*says(CHOICE, a=None), failed]})
    assert (verdict.answer, verdict.method, verdict.confidence) == (None, "none", 0.0)
    assert (verdict.unread, verdict.missing) == (("a",), {"b": "it broke"})


def test_an_expert_that_nobody_profiled_is_shown_but_decides_nothing() -> None:
    beliefs = make_beliefs(0.6, 0.5)
    [verdict] = judge(beliefs, [CHOICE], {}, {"q": says(CHOICE, stranger="D", a="A")})
    assert verdict.answer == "A"
    assert verdict.votes["D"] == ("stranger",)
    [alone] = judge(beliefs, [CHOICE], {}, {"q": says(CHOICE, stranger="A")})
    assert alone.answer == "A"


def test_samples_of_one_expert_are_one_voice() -> None:
    samples = [
        Answer(question_id="q", expert="a", sample=at, answer=letter)
        for at, letter in enumerate("ABB")
    ]
    evidence = gather_evidence(make_beliefs(0.6, 0.6), [CHOICE], {}, {"q": samples})
    assert evidence.labels_QE.tolist() == [[1, MISSING]]


def test_who_failed_was_asked_and_says_nothing() -> None:
    given_ = [Answer(question_id="q", expert="a", error="it broke"), *says(CHOICE, b=None)]
    evidence = gather_evidence(make_beliefs(0.6, 0.6, 0.6), [CHOICE], {}, {"q": given_})
    assert evidence.labels_QE.tolist() == [[UNREADABLE, UNREADABLE, MISSING]]


@given(st.permutations(["a", "b", "c"]), st.lists(st.sampled_from("ABCD"), min_size=3, max_size=3))
def test_the_order_of_answers_changes_no_chance(order: list[str], letters: list[str]) -> None:
    beliefs = make_beliefs(0.7, 0.6, 0.5)
    answers = dict(zip("abc", letters, strict=True))
    [first] = judge(beliefs, [CHOICE], {}, {"q": says(CHOICE, **answers)})
    [second] = judge(beliefs, [CHOICE], {}, {"q": says(CHOICE, **{e: answers[e] for e in order})})
    assert first.chances == pytest.approx(second.chances)
    if len(set(letters)) != 3:
        assert first.answer == second.answer


def test_abstaining_keeps_what_was_leaned_to() -> None:
    [verdict] = judge(make_beliefs(0.6, 0.6), [CHOICE], {}, {"q": says(CHOICE, a="A", b="B")})
    silent = abstain(verdict, 0.99)
    assert (silent.answer, silent.abstained) == (None, True)
    assert "leaned to" in silent.note
    assert silent.votes == verdict.votes
    assert abstain(verdict, 0.0) == verdict
    assert abstain(dataclasses.replace(verdict, confidence=0.99), 0.99).answer == verdict.answer
