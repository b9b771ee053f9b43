"""Votes and ties, and a verdict whatever happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Answer, read_aggregation, vote
from expertmix.agents.engines import Failure, Reply
from expertmix.retrieval import Question

CHOICE = Question(id="q", text="Which?", options=("x", "y", "z"), kind="choice")
NUMBER = Question(id="n", text="How many?", kind="number")


def said(expert: str, answer: str | None, question: Question = CHOICE, text: str = "") -> Answer:
    return Answer(question_id=question.id, expert=expert, answer=answer, text=text or f"{answer}")


def test_the_most_common_answer_wins_and_dissent_is_kept() -> None:
    verdict = vote(CHOICE, [said("a", "B"), said("b", "A"), said("c", "B")])
    assert (verdict.answer, verdict.confidence) == ("B", 2 / 3)
    assert verdict.dissent == {"A": ("b",)}


def test_a_tie_goes_to_the_better_experts_then_to_the_first_given() -> None:
    answers = [said("a", "B"), said("b", "A")]
    assert vote(CHOICE, answers, {"a": 0.4, "b": 0.6}).answer == "A"
    assert vote(CHOICE, answers).answer == "B"


def test_equal_numbers_are_one_answer() -> None:
    verdict = vote(
        NUMBER, [said("a", "1/2", NUMBER), said("b", "3", NUMBER), said("c", "0.5", NUMBER)]
    )
    assert verdict.votes == {"1/2": ("a", "c"), "3": ("b",)}


def test_unread_and_failed_experts_are_told_apart() -> None:
    failed = Answer(question_id="q", expert="c", error="out of memory")
    verdict = vote(CHOICE, [said("a", None), failed])
    assert (verdict.answer, verdict.method) == (None, "none")
    assert verdict.unread == ("a",)
    assert verdict.missing == {"c": "out of memory"}


@given(st.lists(st.sampled_from(["A", "B", "C", None]), max_size=7))
def test_votes_account_for_every_expert(answers: list[str | None]) -> None:
    verdict = vote(CHOICE, [said(str(i), a) for i, a in enumerate(answers)])
    counted = [e for who in verdict.votes.values() for e in who] + list(verdict.unread)
    assert sorted(counted) == sorted(str(i) for i in range(len(answers)))
    counts = [answers.count(letter) for letter in verdict.votes]
    assert counts == sorted(counts, reverse=True)


def test_a_model_that_cannot_be_read_leaves_the_vote() -> None:
    voted = vote(CHOICE, [said("a", "B"), said("b", "A"), said("c", "B")])
    for reply in (
        Reply(request_id="q#0", text="I cannot tell."),
        Reply(request_id="q#0", finish="error", failure=Failure(kind="engine", message="it died")),
    ):
        verdict = read_aggregation(reply, CHOICE, voted)
        assert (verdict.answer, verdict.method) == ("B", "vote")
        assert "vote kept" in verdict.note


def test_a_model_may_overrule_the_vote_and_that_shows() -> None:
    voted = vote(CHOICE, [said("a", "B"), said("b", "A"), said("c", "B")])
    verdict = read_aggregation(Reply(request_id="q#0", text="Answer: (A)"), CHOICE, voted)
    assert (verdict.answer, verdict.method, verdict.confidence) == ("A", "model", 1 / 3)
    assert verdict.dissent == {"B": ("a", "c")}


def test_contradicting_a_unanimous_panel_is_noted() -> None:
    voted = vote(CHOICE, [said("a", "B"), said("b", "B")])
    verdict = read_aggregation(Reply(request_id="q#0", text="Answer: (A)"), CHOICE, voted)
    assert "contradicts a unanimous panel" in verdict.note
