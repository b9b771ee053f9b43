"""In a trace, what a pool does for a chat model stands below the model's run, however it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_spans import record_spans

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.apps.chat import ChatExpert, ChatExpertmix

Model = ChatExpert | ChatExpertmix


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with record_spans(monkeypatch) as memory:
        yield memory


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool.from_engines({"a": ScriptedEngine("a", {"*": "Answer: 2"})}) as pool:
        yield pool


def find_paths(exporter: Any) -> list[list[str]]:
    """Of each call of the pool, the names of the spans above it, the nearest first."""
    spans = {span.context.span_id: span for span in exporter.get_finished_spans()}
    paths: list[list[str]] = []
    for span in spans.values():
        if span.name == "chat a":
            paths.append([])
            while span.parent is not None:
                span = spans[span.parent.span_id]
                paths[-1].append(span.name)
    return paths


async def drain(pieces: Any) -> None:
    async for _ in pieces:
        pass


PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
DIRECT: dict[str, Callable[[Model], Any]] = {
    "invoke": lambda model: model.invoke("1?"),
    "ainvoke": lambda model: model.ainvoke("1?"),
    "generate": lambda model: model.generate([[HumanMessage("1?")], [HumanMessage("2?")]]),
    "stream": lambda model: list(model.stream("1?")),
    "astream": lambda model: drain(model.astream("1?")),
    "batch": lambda model: model.batch(["1?", "2?"]),
    "abatch": lambda model: model.abatch(["1?", "2?"]),
}
CHAINED: dict[str, Callable[[Model], Any]] = {
    "invoke": lambda model: (PROMPT | model).invoke({"q": "1?"}),
    "stream": lambda model: list((PROMPT | model).stream({"q": "1?"})),
    "astream": lambda model: drain((PROMPT | model).astream({"q": "1?"})),
    "batch": lambda model: (PROMPT | model).batch([{"q": "1?"}, {"q": "2?"}]),
    "events": lambda model: drain((PROMPT | model).astream_events({"q": "1?"}, version="v2")),
}


async def carry_out(ask: Callable[[Model], Any], model: Model) -> None:
    given = ask(model)
    if isinstance(given, Awaitable):
        await given


@pytest.mark.parametrize("way", DIRECT)
async def test_an_experts_call_stands_below_the_models_run(
    exporter: Any, pool: Pool, way: str
) -> None:
    await carry_out(DIRECT[way], ChatExpert(pool=pool, model="a"))
    assert find_paths(exporter) == [["ChatExpert"]]


@pytest.mark.parametrize("way", CHAINED)
async def test_so_it_does_in_a_chain(exporter: Any, pool: Pool, way: str) -> None:
    await carry_out(CHAINED[way], ChatExpert(pool=pool, model="a"))
    assert find_paths(exporter) == [["ChatExpert", "RunnableSequence"]]


@pytest.mark.parametrize("way", DIRECT)
async def test_a_panels_calls_do_so_too(exporter: Any, pool: Pool, way: str) -> None:
    await carry_out(DIRECT[way], ChatExpertmix(pool=pool))
    [path] = find_paths(exporter)
    assert path[-1] == "ChatExpertmix"


def test_a_batch_stands_below_the_last_that_asks_whoever_the_cache_answers(
    exporter: Any, pool: Pool
) -> None:
    model = ChatExpert(pool=pool, model="a", cache=InMemoryCache())
    model.invoke("2?")
    model.batch(["1?", "2?"])
    assert find_paths(exporter) == [["ChatExpert"]] * 2


def test_nothing_of_a_streams_run_is_left_to_its_reader(exporter: Any, pool: Pool) -> None:
    model = ChatExpert(pool=pool, model="a")
    for _ in model.stream("1?"):
        model.invoke("2?")
        break
    assert find_paths(exporter) == [["ChatExpert"]] * 2
