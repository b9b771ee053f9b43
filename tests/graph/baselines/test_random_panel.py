"""Panels that are drawn, and the aggregator after them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph.baselines import Oracle, RandomPanel, SymbolicMoE
from expertmix.graph.methods import answer_with
from expertmix.retrieval import Question


async def test_different_experts_are_drawn_for_each_question(table: Any) -> None:
    engines = {x: ScriptedEngine(x, {"*": "Answer: 1"}) for x in "abcd"}
    questions = [Question(id=f"q{i}", text=f"{i}?", gold="1", kind="number") for i in range(200)]
    async with Pool.from_engines(engines) as pool:
        solutions = await answer_with(RandomPanel(k=2), questions, table.arrange(pool))
    drawn = Counter[str]()
    for solution in solutions:
        *panel, last = solution.experts
        assert last["expert"] == "a"  # the strongest merges
        assert last["merges"]
        assert len({expert["expert"] for expert in panel}) == 2
        drawn.update(expert["expert"] for expert in panel)
    assert all(70 < drawn[x] < 130 for x in "abcd")  # 100 each, 7 standard deviations of 4.3 … 30


async def test_symbolic_moe_draws_with_replacement_and_merges_always(table: Any) -> None:
    lines = {"a": ["Answer: (B)"], "b": ["Answer: (B)"], "c": ["Answer: (B)"], "d": ["Answer: (B)"]}
    solution = await table.talk(SymbolicMoE(), lines)
    assert len(table.said) == 4
    assert [expert["merges"] for expert in solution.experts] == [False, False, False, True]
    assert solution.row["method"] == "model"


async def test_an_expert_that_is_drawn_twice_is_sampled_twice(table: Any, everyone: Any) -> None:
    seen = Counter[bool]()
    for number in range(12):
        table.said.clear()
        question = Question(id=f"q{number}", text="?", options=("x", "y"), gold="B", kind="choice")
        await table.talk(SymbolicMoE(), everyone, question=question)
        asked = [(alias, request.sampling) for alias, request in table.said[:3]]
        twice = [s for alias, s in asked if sum(other == alias for other, _ in asked) > 1]
        seen[bool(twice)] += 1
        assert len({s.seed for s in twice}) == len(twice)
        assert all(s.temperature == 0.7 for s in twice)
    assert seen[True]
    assert seen[True] + seen[False] == 12


async def test_the_oracle_is_right_wherever_anybody_is(table: Any) -> None:
    lines = {"a": ["Answer: (A)"], "b": ["Answer: (A)"], "c": ["Answer: (A)"], "d": ["Answer: (B)"]}
    solution = await table.talk(Oracle(experts=4), lines)
    assert solution.answer == "B"
    lines["d"] = ["Answer: (C)"]
    assert (await table.talk(Oracle(experts=4), lines)).answer == "A"
