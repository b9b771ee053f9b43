"""Discussion until agreement, and the vote by confidence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.graph.baselines import ReConcile, Turn, read_confidence, recalibrate


def say(letter: str, confidence: str) -> str:
    return f"Because {letter}.\nConfidence: {confidence}\nAnswer: ({letter})"


async def test_agreement_ends_it_at_once(table: Any) -> None:
    lines = {x: [say("B", "0.6")] for x in "abcd"}
    solution = await table.talk(ReConcile(), lines)
    assert table.askings == ["a", "b", "c"]
    assert (solution.answer, solution.confidence) == ("B", 1.0)


async def test_everybody_reads_all_answers_grouped_with_confidences(table: Any) -> None:
    lines = {
        "a": [say("A", "0.9"), say("A", "0.9")],
        "b": [say("B", "70%"), say("A", "0.8")],
        "c": [say("B", "0.5"), say("A", "0.7")],
        "d": ["-"],
    }
    solution = await table.talk(ReConcile(), lines)
    assert table.askings == ["a", "b", "c"] * 2
    [(_, asked)] = table.turns(3)
    assert "2 of the agents answered B (confidence 0.70, 0.50)" in asked
    assert "1 of the agents answered A (confidence 0.90)" in asked
    assert asked.index("answered B") < asked.index("answered A") < asked.index("Which is red?")
    assert all(f"Because {x}." in asked for x in "AB")
    assert solution.answer == "A"


async def test_one_who_is_sure_outvotes_two_who_are_not(table: Any) -> None:
    lines = {"a": [say("A", "1.0")], "b": [say("B", "0.75")], "c": [say("B", "0.6")], "d": ["-"]}
    solution = await table.talk(ReConcile(discussions=0), lines)
    assert solution.answer == "A"  # 1.0 against 0.3 + 0.1
    assert solution.confidence == pytest.approx(1.0 / 1.4)


async def test_it_ends_after_two_discussions_and_a_tie_goes_to_more_votes(table: Any) -> None:
    lines = {"a": [say("A", "0.7")], "b": [say("B", "0.5")], "c": [say("B", "0.5")], "d": ["-"]}
    solution = await table.talk(ReConcile(), lines)
    assert len(table.said) == 9
    assert solution.answer == "A"  # 0.3 against 0.1 + 0.1
    lines = {"a": [say("A", "1")], "b": [say("B", "1")], "c": ["I pass."], "d": ["-"]}
    assert (await table.talk(ReConcile(discussions=0), lines)).answer == "A"


@pytest.mark.parametrize(
    ("confidence", "weight"),
    [
        (None, 0.1), (0.0, 0.1), (0.6, 0.1), (0.61, 0.3), (0.79, 0.3), (0.8, 0.5), (0.89, 0.5),
        (0.9, 0.8), (0.99, 0.8), (1.0, 1.0),
    ],
)  # fmt: skip
def test_stated_confidences_are_recalibrated_as_in_the_paper(
    confidence: float | None, weight: float
) -> None:
    assert recalibrate(confidence) == weight


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        ("Confidence: 0.8", 0.8),
        ("confidence level = 85%", 0.85),
        ('{"confidence_level": "0.7"}', 0.7),
        ("Confidence: 0.2 … no:\nConfidence: .9", 0.9),
        ("My confidence is 95", 0.95),
        ("Confidence: 400", None),
        ("Confidence: high", None),
        ("<think>Confidence: 0.1</think> I am sure.", None),
        ("", None),
    ],
)
def test_confidence_is_read_where_it_is_stated(text: str, confidence: float | None) -> None:
    turn = Turn(question_id="q", expert="a", agent=0, round=0, text=text)
    assert read_confidence(turn) == confidence


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    found = read_confidence(Turn(question_id="q", expert="a", agent=0, round=0, text=text))
    assert found is None or 0 <= found <= 1


async def test_whoever_scores_options_states_the_chosen_ones_probability(table: Any) -> None:
    lines = {"a": ["A"], "b": ["B"], "c": ["B"], "d": ["B"]}
    solution = await table.talk(ReConcile(discussions=0), lines, style="score")
    chances = [expert["chance"] for expert in solution.experts]
    assert chances == pytest.approx(
        [0.9, 0.9, 0.9]
    )  # what a scripted engine gives the named option
    assert solution.answer == "B"
