"""Layers that read the layer before, and who decides."""

from __future__ import annotations

from typing import Any

from expertmix.graph.baselines import MixtureOfAgents, SelfMoA

A, B, C = "Grass.\nAnswer: (A)", "Blood.\nAnswer: (B)", "Sky.\nAnswer: (C)"


async def test_the_strongest_merges_the_drafts_of_different_experts(table: Any) -> None:
    solution = await table.talk(MixtureOfAgents(), {"a": [A, B], "b": [A], "c": [C], "d": [C]})
    assert table.askings == ["a", "b", "c", "a"]
    [(_, asked)] = table.turns(3)
    assert all(draft in asked for draft in (A, C))
    assert asked.count("Draft ") == 3
    # It decides against the majority, and the row says how many agreed.
    assert solution.answer == "B"
    assert solution.row["method"] == "model"
    assert solution.confidence == 0.0
    assert solution.row["votes"] == {"A": ["a", "b"], "C": ["c"]}


async def test_every_further_layer_reads_the_one_before(table: Any) -> None:
    lines = {"a": [A, B, C], "b": [A, B], "c": [A, B], "d": [C]}
    solution = await table.talk(MixtureOfAgents(proposers=3, layers=3), lines)
    assert table.askings == ["a", "b", "c", "a", "b", "c", "a"]
    assert "Draft 3" in table.turns(3)[0][1]
    assert A in table.turns(3)[0][1]
    assert B in table.turns(6)[0][1]
    assert A not in table.turns(6)[0][1]
    assert solution.answer == "C"


async def test_where_the_aggregator_says_nothing_the_last_layer_votes(table: Any) -> None:
    lines = {"a": [A, "Who knows?"], "b": [B], "c": [B], "d": [C]}
    solution = await table.talk(MixtureOfAgents(), lines)
    assert solution.answer == "B"
    assert "could not decide" in solution.row["note"]


async def test_one_expert_merges_its_own_samples(table: Any) -> None:
    solution = await table.talk(SelfMoA(), {"a": [A, B, B, B], "b": [A], "c": [A], "d": [A]})
    assert table.askings == ["a"] * 4
    assert table.temperatures() == [0.7, 0.7, 0.7, 0.0]
    assert solution.answer == "B"


async def test_an_aggregator_that_scores_options_reads_the_drafts_first(table: Any) -> None:
    lines = {"a": ["B"], "b": ["A"], "c": ["A"], "d": ["A"]}
    solution = await table.talk(MixtureOfAgents(), lines, style="score")
    (_, asked), _ = table.turns(3)
    assert "Draft 3" in asked
    assert solution.answer == "B"
