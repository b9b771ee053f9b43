"""A LangGraph cache under our own key: the same question of the same expert costs no second call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langgraph.cache.base import BaseCache
from langgraph.cache.memory import InMemoryCache
from langgraph.cache.sqlite import SqliteCache

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import Resources, create_graph
from expertmix.retrieval import Question


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")


@pytest.fixture(params=["memory", "sqlite"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> BaseCache[Any]:
    if request.param == "memory":
        return InMemoryCache()
    return SqliteCache(path=str(tmp_path / "cache.sqlite"))


def questions(*texts: str) -> Any:
    made = (Question(id=f"q{i}", text=text, kind="number") for i, text in enumerate(texts))
    return {"questions": {question.id: question.to_json() for question in made}}


def says(name: str, faults: Faults | None = None) -> ScriptedEngine:
    return ScriptedEngine(name, {"*": "Answer: 7"}, faults=faults)


async def run(engine: ScriptedEngine, cache: BaseCache[Any], *texts: str, **more: Any) -> Any:
    async with Pool.from_engines({"a": engine}) as pool:
        graph = create_graph(Resources(pool=pool, k=1, **more), cache=cache)
        return await graph.ainvoke(questions(*texts))


async def test_the_same_again_asks_nobody(cache: BaseCache[Any]) -> None:
    engine = says("a")
    first = await run(engine, cache, "3 + 4?", "2 + 5?")
    second = await run(engine, cache, "3 + 4?", "2 + 5?")
    assert engine.calls == 1
    assert second == first, "plain values, from the cache too"


async def test_whatever_answers_depend_on_is_in_the_key(cache: BaseCache[Any]) -> None:
    engine = says("a")
    await run(engine, cache, "3 + 4?")
    await run(engine, cache, "3 + 5?")
    await run(engine, cache, "3 + 4?", seed=1)
    await run(engine, cache, "3 + 4?", samples=2)
    assert engine.calls == 4
    await run(says("another model"), cache, "3 + 4?")
    other = says("another model")
    await run(other, cache, "3 + 4?")
    assert other.calls == 0


async def test_persona_and_sampling_are_in_the_key(cache: BaseCache[Any]) -> None:
    calls: list[int] = []
    for more in ({}, {"persona": "You are terse."}, {"sampling": {"max_tokens": 9}}, {}):
        expert = {"alias": "a", "engine": "given", **more}
        engine = says("a")
        catalog = Catalog.from_dict({"experts": [expert]})
        async with Pool(catalog, engines={"a": engine}) as pool:
            graph = create_graph(Resources(pool=pool, k=1), cache=cache)
            await graph.ainvoke(questions("3 + 4?"))
        calls.append(engine.calls)
    assert calls == [1, 1, 1, 0]


async def test_a_failure_is_not_kept(cache: BaseCache[Any]) -> None:
    state = await run(says("a", Faults(fail_ids={"q1"})), cache, "3 + 4?", "2 + 5?")
    assert state["verdicts"]["q1"]["missing"]
    mended = says("a")
    state = await run(mended, cache, "3 + 4?", "2 + 5?")
    assert mended.calls == 1
    assert not state["verdicts"]["q1"]["missing"]


async def test_weights_that_are_not_there_have_no_key(
    cache: BaseCache[Any], tmp_path: Path
) -> None:
    expert = {"alias": "a", "engine": "scripted", "script": str(tmp_path / "nowhere.json")}
    catalog = Catalog.from_dict({"experts": [expert]})
    async with Pool(catalog) as pool:
        graph = create_graph(Resources(pool=pool, k=1), cache=cache)
        for _ in range(2):
            state = await graph.ainvoke(questions("3 + 4?"))
            assert state["verdicts"]["q0"]["missing"]


async def test_without_a_cache_nothing_is_kept() -> None:
    engine = says("a")
    async with Pool.from_engines({"a": engine}) as pool:
        graph = create_graph(Resources(pool=pool, k=1))
        await graph.ainvoke(questions("3 + 4?"))
        await graph.ainvoke(questions("3 + 4?"))
    assert engine.calls == 2


async def test_a_panel_that_goes_on_does_not_end_where_another_did(cache: BaseCache[Any]) -> None:
    """Where answers go next is written with them, and one panel recruits further where another is done."""
    failing = {"a": says("a"), "b": says("b", Faults(load="it broke")), "c": says("c")}
    settings: dict[str, Any] = {"k": 2, "experts": ("a", "b", "c"), "seed": 0}
    async with Pool.from_engines({name: says(name) for name in "abc"}) as pool:
        fixed = create_graph(Resources(pool=pool, substitute=False, **settings), cache=cache)
        await fixed.ainvoke(questions("3 + 4?"))
    async with Pool.from_engines(failing) as pool:
        graph = create_graph(Resources(pool=pool, **settings), cache=cache)
        told: list[Any] = []
        state: Any = None
        async for mode, part in graph.astream(
            questions("3 + 4?"), stream_mode=["custom", "values"]
        ):
            if mode == "custom":
                told.append(part)
            else:
                state = part
    assert [part["event"] for part in told].count("questions_merged") == 1
    assert (
        sum(row["error"] is None for rows in state["answers"].values() for row in rows.values())
        == 2
    )
