"""The benchmark of aggregators: it reuses the profile's drafts, and its winner merges only disputes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from expertmix.agents import AggregatorScores, Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import ProfileFolder, make_resources, rank_aggregators, run_batch
from expertmix.retrieval import InputError, Question

REFERENCES = [
    Question(id=f"r{at}", text=f"{at}?", options=("x", "y", "z"), gold="A", kind="choice")
    for at in range(6)
]


def is_merging(request: Request) -> bool:
    return "Their drafts are quoted" in request.messages[-1]["content"]


def expert(alone: str, merged: str, *, faults: Faults | None = None) -> ScriptedEngine:
    """Gives one letter when asked alone, another when it merges drafts."""
    script: Callable[[Request], str] = lambda request: (  # noqa: E731
        f"Answer: ({merged if is_merging(request) else alone})"
    )
    return ScriptedEngine("", script, faults=faults)


def make_engines() -> dict[str, ScriptedEngine]:
    """Who is right alone merges badly, and the other way round."""
    return {"a": expert("A", "B"), "b": expert("B", "A"), "c": expert("C", "C")}


async def build(folder: ProfileFolder) -> None:
    async with Pool.from_engines(make_engines(), store=folder.store) as pool:
        await folder.build(pool, REFERENCES)


async def test_drafts_cost_no_call_and_the_scores_are_kept(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path)
    await build(folder)
    engines = make_engines()
    async with Pool.from_engines(engines, store=folder.store) as pool:
        scores = await rank_aggregators(folder, pool)
    asked = [request for engine in engines.values() for request in engine.requests]
    assert len(asked) == 3 * len(REFERENCES)
    assert all(map(is_merging, asked))
    assert scores.choose() == "b"
    assert AggregatorScores.load(tmp_path) == scores
    assert json.loads((tmp_path / "aggregators.json").read_text())["number"] == len(REFERENCES)
    again = make_engines()
    async with Pool.from_engines(again, store=folder.store) as pool:
        assert await rank_aggregators(folder, pool) == scores
    assert not any(engine.requests for engine in again.values())


async def test_candidates_and_references_can_be_limited(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path)
    await build(folder)
    engines = make_engines()
    async with Pool.from_engines(engines, store=folder.store) as pool:
        scores = await rank_aggregators(folder, pool, candidates=["c"], samples=2, limit=3)
    assert (list(scores.candidates), scores.number) == (["c"], 3)
    assert [len(engine.requests) for engine in engines.values()] == [0, 0, 6]


async def test_the_best_merges_disputed_questions_only(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path)
    await build(folder)
    async with Pool.from_engines(make_engines(), store=folder.store) as pool:
        await rank_aggregators(folder, pool)
    engines = make_engines()
    questions = [Question(id="q", text="?", options=("x", "y", "z"), kind="choice")]
    async with Pool.from_engines(engines) as pool:
        alone = make_resources(pool, profile=tmp_path, aggregator="best", k=1)
        assert [row.row["method"] for row in await run_batch(questions, alone)] != ["model"]
        assert not any(is_merging(r) for engine in engines.values() for r in engine.requests)
        several = make_resources(pool, profile=tmp_path, aggregator="best", k=3)
        [solution] = await run_batch(questions, several)
    merging = {n: sum(map(is_merging, engine.requests)) for n, engine in engines.items()}
    assert merging == {"a": 0, "b": 1, "c": 0}
    assert solution.answer == "A"


async def test_best_without_a_benchmark_or_with_nobody_usable_is_one_sentence(
    tmp_path: Path,
) -> None:
    folder = ProfileFolder(tmp_path)
    await build(folder)
    async with Pool.from_engines(make_engines()) as pool:
        with pytest.raises(InputError, match=r"no scores of aggregators at .*: make them"):
            make_resources(pool, profile=tmp_path, aggregator="best")
    broken = {**make_engines(), "c": expert("C", "C", faults=Faults(load="it broke"))}
    async with Pool.from_engines(broken, store=folder.store) as pool:
        await rank_aggregators(folder, pool, candidates=["c"])
        with pytest.raises(InputError, match="no candidate can merge drafts"):
            make_resources(pool, profile=tmp_path, aggregator="best")


async def test_without_a_case_nobody_is_asked(tmp_path: Path) -> None:
    folder = ProfileFolder(tmp_path)
    engines = {"a": expert("A", "A")}
    async with Pool.from_engines(engines, store=folder.store) as pool:
        with pytest.raises(InputError, match="profile"):
            await rank_aggregators(folder, pool)
        await folder.build(pool, REFERENCES)
        with pytest.raises(InputError, match="6 with too few wrong drafts"):
            await rank_aggregators(folder, pool)
    assert not any(is_merging(request) for request in engines["a"].requests)
