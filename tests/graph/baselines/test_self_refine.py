"""Answer, criticism, refinement: in this order, and no longer than needed."""

from __future__ import annotations

from typing import Any

import pytest

from expertmix.graph.baselines import SelfRefine

A, B = "Grass.\nAnswer: (A)", "Blood.\nAnswer: (B)"
OTHERS: dict[str, list[str]] = {"b": [A], "c": [A], "d": [A]}


async def test_the_refinement_reads_the_answer_and_its_criticism(table: Any) -> None:
    solution = await table.talk(
        SelfRefine(iterations=1), {"a": [A, "Grass is green.", B], **OTHERS}
    )
    assert table.askings == ["a"] * 3
    assert solution.answer == "B"
    assert solution.confidence == 1.0
    [(_, criticise)] = table.turns(1)
    assert "Which is red?" in criticise
    assert A in criticise
    (_, _), (role, said), (_, improve) = table.turns(2)
    assert (role, said) == ("assistant", A)
    assert "Grass is green." in improve
    assert [e["kind"] for e in solution.experts] == ["answer", "feedback", "answer"]


@pytest.mark.parametrize("feedback", ["No changes needed.", "All right: no changes needed"])
async def test_content_feedback_ends_it(table: Any, feedback: str) -> None:
    solution = await table.talk(SelfRefine(iterations=4), {"a": [B, feedback], **OTHERS})
    assert len(table.said) == 2
    assert solution.answer == "B"


async def test_it_ends_after_its_iterations(table: Any) -> None:
    lines = {"a": [A, "Wrong.", B, "Still wrong.", A], **OTHERS}
    solution = await table.talk(SelfRefine(iterations=2), lines)
    assert len(table.said) == 5
    assert solution.answer == "A"


async def test_feedback_holds_no_answer_whatever_it_says(table: Any) -> None:
    lines = {"a": [A, "Answer: (C)", "I cannot."], **OTHERS}
    solution = await table.talk(SelfRefine(iterations=1), lines)
    assert solution.answer == "A"
    assert solution.row["votes"] == {"A": ["a"]}


async def test_whoever_scores_options_reads_its_answer_and_the_criticism(table: Any) -> None:
    lines = {"a": ["A", "Grass is green.", "B"], **OTHERS}
    solution = await table.talk(SelfRefine(iterations=1), lines, style="score")
    (_, asked), (role, lead) = table.turns(2)
    words = ("each option: A", "Grass is green.", "Which is red?")
    places = [asked.index(part) for part in words]
    assert places == sorted(places)
    assert (role, lead) == ("assistant", "Answer:")
    assert solution.answer == "B"
