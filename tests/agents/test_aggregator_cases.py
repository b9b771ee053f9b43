"""One right draft, the others wrong, none of them blank, whatever the order of what is given."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Answer, is_correct
from expertmix.agents.aggregator_cases import Case, Cases, build_cases
from expertmix.retrieval import InputError, Question

CHOICE = Question(id="c", text="Which?", options=tuple("wxyz"), gold="A", kind="choice")
NUMBER = Question(id="n", text="How many?", gold="1/2", kind="number")
TEXT = Question(id="t", text="Who?", gold="Ada Lovelace || Lovelace", kind="text")


def said(expert: str, answer: str | None, question: Question = CHOICE, **rest: str) -> Answer:
    return Answer(
        question_id=question.id,
        expert=expert,
        answer=answer,
        text=rest.get("text", f"{expert}: Answer: {answer}"),
        error=rest.get("error"),
    )


def panel(*answers: str | None, question: Question = CHOICE) -> list[Answer]:
    return [said(f"m{at}", answer, question) for at, answer in enumerate(answers)]


def given_by(case: Case) -> list[str]:
    return sorted(str(draft.answer) for draft in case.drafts)


def test_a_case_has_one_right_and_two_different_wrong_drafts() -> None:
    for seed in range(20):
        [case] = build_cases([CHOICE], panel("A", "A", "B", "B", "B", "C"), seed=seed).cases
        assert given_by(case) == ["A", "B", "C"]


def test_two_alike_are_taken_where_all_wrong_drafts_agree() -> None:
    cases = build_cases([CHOICE], panel("B", "A", "B", "B"), seed=0)
    assert given_by(cases.cases[0]) == ["A", "B", "B"]
    assert len({draft.expert for draft in cases.cases[0].drafts}) == 3
    assert cases.crowd(cases.cases[0]) == "B"
    assert (cases.chance, cases.vote) == (1 / 3, 0.0)


def test_numbers_and_texts_are_compared_as_everywhere() -> None:
    numbers = panel("0.5", "3", "3.0", "4", question=NUMBER)
    texts = panel("lovelace", "Babbage", "the babbage", "Hopper", question=TEXT)
    found = {
        case.question.id: case
        for case in build_cases([NUMBER, TEXT], numbers + texts, seed=1).cases
    }
    assert "0.5" in given_by(found["n"])
    assert "4" in given_by(found["n"]), "3 and 3.0 are one answer, so the other one is 4"
    assert {"lovelace", "Hopper"} < set(given_by(found["t"]))


def test_what_gives_no_case_is_dropped_and_counted() -> None:
    questions = [
        Question(id=name, text="?", options=tuple("wxyz"), gold=gold, kind="choice")
        for name, gold in (("none right", "A"), ("one wrong", "A"), ("silent", "A"), ("bare", None))
    ]
    answers = [
        *panel("B", "C", "D", question=questions[0]),
        *panel("A", "A", "B", question=questions[1]),
        *panel("A", "B", "C", question=questions[3]),
    ]
    cases = build_cases(questions, answers, seed=0)
    assert cases.cases == ()
    assert cases.dropped == {"no right draft": 2, "too few wrong drafts": 1, "no gold answer": 1}
    assert cases.vote == 0.0


@pytest.mark.parametrize(
    "blank",
    [
        said("x", "B", text=""),
        said("x", "B", text=" <think>never closed"),
        said("x", None, text="I cannot tell."),
        said("x", "B", error="it died"),
        said("x", "B", Question(id="elsewhere", text="?")),
    ],
)
def test_blanks_and_failures_are_no_drafts(blank: Answer) -> None:
    cases = build_cases([CHOICE], [*panel("A", "C"), blank], seed=0)
    assert cases.dropped == {"too few wrong drafts": 1}


@given(st.lists(st.sampled_from(["A", "B", "C", "D", None]), max_size=8), st.integers(0, 99))
def test_every_case_is_as_promised_and_no_order_matters(
    answers: list[str | None], seed: int
) -> None:
    questions = [
        Question(id=name, text="?", options=tuple("wxyz"), gold="A", kind="choice") for name in "pq"
    ]
    spoken = [a for question in questions for a in panel(*answers, question=question)]
    cases = build_cases(questions, spoken, seed=seed)
    for case in cases.cases:
        right = [is_correct(draft.answer, case.question) for draft in case.drafts]
        assert (len(right), sum(right)) == (3, 1)
        assert all(draft.text and draft.error is None for draft in case.drafts)
        assert len(set(case.drafts)) == 3
    assert len(cases.cases) + sum(cases.dropped.values()) == 2
    random.Random(seed).shuffle(spoken)
    assert build_cases(questions[::-1], spoken, seed=seed) == cases


def test_the_right_draft_stands_anywhere() -> None:
    places: Counter[int] = Counter()
    authors: Counter[str] = Counter()
    for seed in range(300):
        [case] = build_cases([CHOICE], panel("A", "A", "B", "C"), seed=seed).cases
        at = [draft.answer for draft in case.drafts].index("A")
        places[at] += 1
        authors[case.drafts[at].expert] += 1
    assert set(places) == {0, 1, 2}
    assert min(places.values()) > 70
    assert min(authors.values()) > 110


def test_a_vote_wins_only_ties() -> None:
    other = Question(id="d", text="Which?", options=tuple("wxyz"), gold="A", kind="choice")
    answers = [*panel("A", "B", "C"), *panel("A", "B", "B", question=other)]
    assert build_cases([CHOICE, other], answers, seed=0).vote == pytest.approx(1 / 6)


def test_more_wrong_drafts_make_chance_smaller() -> None:
    cases = build_cases([CHOICE], panel("A", "B", "B", "C", "D"), seed=0, wrong=3)
    assert given_by(cases.cases[0]) == ["A", "B", "C", "D"]
    assert cases.chance == 1 / 4


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match='two questions have the id "c"'):
        build_cases([CHOICE, CHOICE], [], seed=0)
    with pytest.raises(InputError, match="wrong is 0"):
        build_cases([CHOICE], [], seed=0, wrong=0)
    assert build_cases([], [], seed=0) == Cases(cases=(), wrong=2, dropped={})
