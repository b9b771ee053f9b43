"""The panel as a chat model: one pass for a batch, LangChain's machinery for each, tools for the aggregator."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import LLMResult
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines import Request, ToolCall
from expertmix.agents.engines.script import Script
from expertmix.agents.engines.scripted import Faults, Line, ScriptedEngine
from expertmix.apps.chat import ChatExpertmix
from expertmix.apps.chat.asking import PanelFailed
from expertmix.graph import make_resources
from expertmix.retrieval import InputError

SAID = {"a": "Surely.\nAnswer: Paris", "b": "Answer: Paris", "c": "Answer: Lyon"}
Make = Callable[..., tuple[ChatExpertmix, dict[str, ScriptedEngine]]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes a model over experts; a text is what one always says. Pools are closed with the test."""
    pools: list[Pool] = []

    def made(said: Any = SAID, *, chair: str | None = None, **settings: Any) -> Any:
        engines = {
            alias: line
            if isinstance(line, ScriptedEngine)
            else ScriptedEngine(alias, cast("Script", line if callable(line) else {"*": line}))
            for alias, line in said.items()
        }
        rows = [{"alias": alias, "engine": "given"} for alias in engines]
        catalog = Catalog.from_dict({"experts": rows, "aggregator": chair})
        pools.append(Pool(catalog, engines=engines))
        return ChatExpertmix(pool=pools[-1], **settings), engines

    yield made
    for pool in pools:
        pool.close()


@tool
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


def chair(request: Request) -> str | Line:
    """Answers as an expert; with tools, has the number doubled, and tells what came of it."""
    said = request.messages[-1]
    if said["role"] == "tool":
        return f"It is {said['content']}."
    if request.sampling.json_schema is not None:
        return '{"city": "Paris"}'
    if not request.tools:
        return "Answer: Paris"
    name = request.tools[0]["name"]
    arguments = '{"number": 21}' if name == "double" else '{"city": "Paris"}'
    return Line(tool_calls=(ToolCall(id="c1", name=name, arguments=arguments),))


def chaired() -> dict[str, Any]:
    return {"a": "Answer: Paris", "b": "Answer: Paris", "chair": chair}


def test_an_answer_reads_as_the_servers_and_says_how_it_came_about(make: Make) -> None:
    model, engines = make()
    message = model.invoke("Where?")
    prose, answer, told = str(message.content).split("\n\n")
    assert (prose in ("Surely.", ""), answer) == (True, "Answer: Paris")
    assert "dissent: c: Lyon" in told
    assert message.response_metadata["model_name"] == "expertmix/skill"
    assert message.response_metadata["model_provider"] == "expertmix"
    details = message.response_metadata["expertmix"]
    assert details["answer"] == "Paris"
    assert details["dissent"] == {"Lyon": ["c"]}
    assert details["confidence"] == pytest.approx(2 / 3)
    assert {row["expert"] for row in details["experts"]} == set("abc")
    asked = [request for engine in engines.values() for request in engine.requests]
    prompt = sum(len(turn["content"].split()) for request in asked for turn in request.messages)
    assert message.usage_metadata == {
        "input_tokens": prompt,
        "output_tokens": 7,
        "total_tokens": prompt + 7,
    }


def test_options_kind_and_form_come_with_a_call_or_are_bound(make: Make) -> None:
    model, _ = make({"a": "Answer: (B)", "b": "Answer: (B)"})
    options = ["Lyon", "Paris"]
    assert model.invoke("Where?", options=options, format="answer").content == "(B) Paris"
    bound = model.bind(options=options, kind="choice", format="answer")
    assert [m.content for m in bound.batch(["Where?", "And now?"])] == ["(B) Paris"] * 2
    short, _ = make({"a": "Answer: 42"}, format="answer", stop=["2"])
    assert short.invoke("How many?", kind="number").content == "4"
    with pytest.raises(InputError, match="temprature"):
        model.invoke("Where?", temprature=1)
    with pytest.raises(InputError, match="format"):
        model.invoke("Where?", format="json")
    with pytest.raises(InputError, match="choice"):
        model.invoke("Where?", kind="choice")


def count_calls(engines: dict[str, ScriptedEngine]) -> list[int]:
    return [engine.calls for engine in engines.values()]


async def test_a_batch_is_one_pass_however_it_is_asked(make: Make) -> None:
    model, engines = make()
    asked = [f"Question {number}?" for number in range(40)]
    replies = await model.abatch(list(asked))
    assert count_calls(engines) == [1, 1, 1]
    assert len(replies) == 40
    assert [m.content for m in model.batch(list(asked))] == [m.content for m in replies]
    assert count_calls(engines) == [2, 2, 2]
    lists: Any = [[HumanMessage(text)] for text in asked]
    for result in (model.generate(lists), await model.agenerate(lists)):
        assert [g[0].text for g in result.generations] == [m.content for m in replies]
        assert len({run.run_id for run in result.run or ()}) == 40
    assert count_calls(engines) == [4, 4, 4]
    await model.abatch(list(asked), {"max_concurrency": 10})
    assert count_calls(engines) == [8, 8, 8]
    assert model.batch([]) == []


async def test_a_batch_with_tools_asks_the_aggregator_once_more_for_all(make: Make) -> None:
    model, engines = make(chaired(), chair="chair")
    replies = await model.bind_tools([double]).abatch([f"Double {n}." for n in range(8)])
    assert all(reply.tool_calls for reply in replies)
    assert count_calls(engines) == [1, 1, 2]


def test_the_same_question_twice_is_asked_once(make: Make) -> None:
    model, engines = make()
    first, second = model.batch(["Where?", "Where?"])
    assert first.content == second.content
    assert [len(engine.requests) for engine in engines.values()] == [1, 1, 1]


class Note(BaseCallbackHandler):
    """Remembers runs."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.errors: list[BaseException] = []
        self.parents: dict[UUID, UUID | None] = {}
        self.models: list[UUID] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **more: Any) -> None:
        self.started.append(messages[0][0].content)
        self.models.append(more["run_id"])

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.ended.append(response.generations[0][0].text)

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.errors.append(error)

    def on_chain_start(self, serialized: Any, inputs: Any, **more: Any) -> None:
        self.parents[more["run_id"]] = more["parent_run_id"]


async def test_every_input_is_a_run_of_its_own_and_the_cache_answers_what_it_knows(
    make: Make,
) -> None:
    model, engines = make(cache=InMemoryCache())
    await model.ainvoke("One?")
    note = Note()
    with get_usage_metadata_callback() as usage:
        await model.abatch(["One?", "Two?", "Three?"], {"callbacks": [note]})
    assert sorted(note.started) == ["One?", "Three?", "Two?"]
    assert len(note.ended) == 3
    assert count_calls(engines) == [2, 2, 2]
    assert [len(engine.requests) for engine in engines.values()] == [3, 3, 3]
    assert usage.usage_metadata["expertmix/skill"]["output_tokens"] >= 14
    other, _ = make(cache=model.cache, seed=1)
    assert other.asdict() != model.asdict()


def test_in_a_trace_the_graph_stands_below_the_models_run(make: Make) -> None:
    model, _ = make()
    note = Note()
    model.invoke("Where?", {"callbacks": [note]})
    [run] = note.models
    assert [parent for parent in note.parents.values() if parent == run] == [run]
    assert len(note.parents) >= 5


async def test_what_fails_fails_alone(make: Make) -> None:
    broken = {a: ScriptedEngine(a, SAID, faults=Faults()) for a in "ab"}
    model, _ = make(broken)
    with pytest.raises(PanelFailed, match=r"every expert failed: .*a: the script"):
        await model.ainvoke("Where?")
    picture: Any = [HumanMessage([{"type": "image_url", "image_url": {"url": "http://x/y"}}])]
    model, engines = make()
    inputs: list[Any] = ["Where?", picture, [], "Who?"]
    good, bad, empty, fine = await model.abatch(inputs, return_exceptions=True)
    assert isinstance(good, AIMessage)
    assert isinstance(fine, AIMessage)
    assert isinstance(bad, InputError)
    assert isinstance(empty, Exception)
    assert count_calls(engines) == [1, 1, 1]
    with pytest.raises(InputError, match="image_url"):
        model.batch(inputs[:2])


async def test_leaving_a_batch_stops_what_it_asked(make: Make) -> None:
    hanging = ScriptedEngine("a", SAID, faults=Faults(hang_ids={"*"}))
    model, _ = make({"a": hanging})
    task = asyncio.ensure_future(model.abatch(["One?", "Two?"]))
    while not hanging.calls:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    single = asyncio.ensure_future(model.ainvoke("One?"))
    while hanging.calls < 2:
        await asyncio.sleep(0.005)
    single.cancel()
    with pytest.raises(asyncio.CancelledError):
        await single


async def test_streams_are_one_piece(make: Make) -> None:
    model, _ = make(chaired(), chair="chair")
    [piece] = [piece async for piece in model.astream("Where?")]
    assert piece.content == model.invoke("Where?").content
    assert piece.usage_metadata == model.invoke("Where?").usage_metadata
    [called] = list(model.bind_tools([double]).stream("Double 21."))
    piece: Any = called
    assert piece.tool_call_chunks[0]["args"] == '{"number": 21}'
    assert piece.response_metadata["finish_reason"] == "tool_calls"


async def test_it_can_be_asked_in_any_thread_and_loop(make: Make) -> None:
    model, _ = make()
    here = model.invoke("Where?").content  # a loop runs in this thread
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.invoke("Where?").content))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    replies = await asyncio.gather(*(model.ainvoke("Where?") for _ in range(4)))
    assert found == [here] * 4 == [reply.content for reply in replies]


class Place(BaseModel):
    """A place."""

    city: str


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_the_aggregator_answers_in_a_form(make: Make, method: str) -> None:
    model, engines = make(chaired(), chair="chair")
    asks = model.with_structured_output(Place, method=method)
    assert await asks.ainvoke("Where?") == Place(city="Paris")
    assert await asks.abatch(["Where?", "Who?"]) == [Place(city="Paris")] * 2
    raw: Any = model.with_structured_output(Place, method=method, include_raw=True).invoke("Who?")
    assert raw["parsed"] == Place(city="Paris")
    assert raw["raw"].response_metadata["expertmix"]["speaker"] == "chair"
    assert raw["parsing_error"] is None
    schema = engines["chair"].requests[-1].sampling.json_schema
    assert (schema is None) == (method == "function_calling")
    spoilt = {**chaired(), "chair": lambda _: "no JSON"}  # pyright: ignore[reportUnknownLambdaType]
    other, _ = make(spoilt, chair="chair")
    told: Any = other.with_structured_output(Place, method=method, include_raw=True).invoke("Who?")
    assert told["parsed"] is None


def test_without_an_aggregator_tools_and_forms_are_refused_at_once(make: Make) -> None:
    model, engines = make()
    assert model.profile is not None
    assert model.profile.get("tool_calling") is False
    with pytest.raises(InputError, match="tools need an aggregator: "):
        model.bind_tools([double])
    with pytest.raises(InputError, match="tools need an aggregator: "):
        model.with_structured_output(Place)
    with pytest.raises(InputError, match="tools need an aggregator: "):
        model.invoke("Where?", tools=[double])
    assert "Answer: Paris" in str(
        model.invoke("Where?", tools=[double], tool_choice="none").content
    )
    assert count_calls(engines) == [1, 1, 1]


def test_a_choice_of_tools_is_understood_as_elsewhere_and_checked(make: Make) -> None:
    model, engines = make(chaired(), chair="chair")
    for choice, told in [
        (None, "auto"),
        ("any", "required"),
        (True, "required"),
        ("double", "double"),
        ({"type": "function", "function": {"name": "double"}}, "double"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "double"}, "double"),
    ]:
        model.bind_tools([double], tool_choice=choice, strict=True).invoke("Double 21.")
        assert engines["chair"].requests[-1].tool_choice == told
        model.invoke("Double 21.", tools=[double], tool_choice=choice)
        assert engines["chair"].requests[-1].tool_choice == told
    for wrong in ("halve", {"type": "function", "function": {"name": "halve"}}):
        with pytest.raises(InputError, match="halve"):
            model.bind_tools([double], tool_choice=wrong)
        with pytest.raises(InputError, match="halve"):
            model.invoke("Double 21.", tools=[double], tool_choice=wrong)
    with pytest.raises(InputError, match=r"only functions|no tool"):
        model.bind_tools([{"type": "web_search_preview"}])


def test_one_call_at_a_time_where_that_is_asked_for(make: Make) -> None:
    calls = tuple(ToolCall(id=i, name="double", arguments='{"number": 1}') for i in "xy")
    said = {"a": "Answer: 1", "chair": lambda r: Line(tool_calls=calls) if r.tools else "x"}  # pyright: ignore[reportUnknownLambdaType]
    model, _ = make(said, chair="chair")
    assert len(model.bind_tools([double]).invoke("Double 1.").tool_calls) == 2
    once = model.bind_tools([double], parallel_tool_calls=False)
    assert len(once.invoke("Double 1.").tool_calls) == 1


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_it_is_an_agents_model(make: Make) -> None:
    agents = pytest.importorskip("langchain.agents")
    from langgraph.checkpoint.memory import InMemorySaver

    model, engines = make(chaired(), chair="chair")
    agent = agents.create_agent(model, tools=[double], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    for turn in range(2):  # a second question in the same thread
        asked = {"messages": [HumanMessage(f"Double 21, please ({turn}).")]}
        result = await agent.ainvoke(asked, config)
        call, found, last = result["messages"][-3:]
        assert [one["args"] for one in call.tool_calls] == [{"number": 21}]
        assert isinstance(found, ToolMessage)
        assert last.content == "It is 42."
    quoted = engines["a"].requests[-1].messages[-1]["content"]
    assert '> assistant calls double: {"number": 21}\n> tool double: 42' in quoted
    assert all(not request.tools for alias in "ab" for request in engines[alias].requests)
    pieces = [
        piece
        async for piece, _ in agent.astream(
            {"messages": [HumanMessage("Double 21.")]},
            {"configurable": {"thread_id": "u"}},
            stream_mode="messages",
        )
    ]
    assert "".join(str(piece.content) for piece in pieces if piece.type != "tool") == "It is 42."


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("tools", [[], [double]])
def test_an_agent_answers_in_a_form(make: Make, tools: list[Any]) -> None:
    agents = pytest.importorskip("langchain.agents")

    def speak(request: Request) -> str | Line:
        if request.tools and request.messages[-1]["role"] != "tool":
            call = ToolCall(id="c1", name="double", arguments='{"number": 21}')
            return Line(tool_calls=(call,))
        return '{"city": "Paris"}' if request.sampling.json_schema else "Answer: Paris"

    model, engines = make({"a": "Answer: Paris", "chair": speak}, chair="chair")
    agent = agents.create_agent(model, tools=tools, response_format=Place)
    state = agent.invoke({"messages": [HumanMessage("Where is double 21?")]})
    assert state["structured_response"] == Place(city="Paris")
    called = [message.content for message in state["messages"] if message.type == "tool"]
    assert called == ["42"] * len(tools)
    schema = engines["chair"].requests[-1].sampling.json_schema
    assert schema is not None
    assert list(schema["properties"]) == ["city"]
    assert all(not request.sampling.json_schema for request in engines["a"].requests)


def test_openais_response_format_is_understood(make: Make) -> None:
    model, engines = make(chaired(), chair="chair")
    assert "Answer: Paris" in model.invoke("Where?", response_format={"type": "text"}).text
    model.invoke("Where?", response_format={"type": "json_object"})
    assert engines["chair"].requests[-1].sampling.json_schema == {"type": "object"}
    with pytest.raises(InputError, match="grammar"):
        model.invoke("Where?", response_format={"type": "grammar"})


def test_its_profile_is_that_of_whoever_speaks() -> None:
    rows = [
        {"alias": "a", "engine": "scripted", "script": "a.json"},
        {"alias": "c", "engine": "chat_model", "model": "somebody:else"},
    ]
    catalog = Catalog.from_dict({"experts": rows})
    for speaker, kept in (("a", True), ("c", False), (None, False)):
        profile = ChatExpertmix(pool=catalog, aggregator=speaker).profile or {}
        assert profile.get("structured_output") is kept
        assert profile.get("tool_calling") is (speaker is not None)


async def test_it_answers_in_a_node_with_a_checkpointer_also_side_by_side(make: Make) -> None:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import END, START, MessagesState, StateGraph

    model, _ = make()

    async def node(state: MessagesState) -> Any:
        replies = await asyncio.gather(*(model.ainvoke(f"Where {at}?") for at in range(3)))
        return {"messages": [*replies, *await model.abatch(["Who?", "When?"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", node)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    config: Any = {"configurable": {"thread_id": "t"}}
    result = await graph.compile(checkpointer=InMemorySaver()).ainvoke({"messages": []}, config)
    assert all("Answer: Paris" in message.content for message in result["messages"])
    assert len(result["messages"]) == 5


def test_settings_are_the_panels_and_copies_with_others_share_the_pool(make: Make) -> None:
    model, engines = make(k=1, temperature=0.5, top_p=0.9, max_tokens=1)
    message = model.invoke("Where?")
    assert len(message.response_metadata["expertmix"]["experts"]) == 1
    [request] = [request for engine in engines.values() for request in engine.requests]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 1)
    two = model.model_copy(update={"k": 2, "max_tokens": None})
    assert len(two.invoke("Where?").response_metadata["expertmix"]["experts"]) == 2
    assert len(model.invoke("Where?").response_metadata["expertmix"]["experts"]) == 1
    assert copy.deepcopy(model).invoke("Where?").content == message.content
    with pytest.raises(ValidationError, match="sede"):
        make(sede=1)
    with pytest.raises(InputError, match="k is 9"):
        make(k=9)[0].invoke("Where?")


def test_ready_resources_are_taken_as_they_are(make: Make) -> None:
    model, engines = make()
    assert model.pool is not None
    resources = make_resources(model.open().pool, k=2, policy="random")
    ready = ChatExpertmix(resources=resources)
    assert ready.invoke("Where?").response_metadata["model_name"] == "expertmix/random"
    assert sum(count_calls(engines)) == 2
    with pytest.raises(InputError, match="leave out k"):
        ChatExpertmix(resources=resources, k=2)
    with pytest.raises(InputError, match="either of a pool or of resources"):
        ChatExpertmix()


async def test_a_pool_of_its_own_is_opened_late_and_closed(tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    (tmp_path / "lines.json").write_text('{"*": "Answer: Paris"}')
    file.write_text("experts:\n  - {alias: a, engine: scripted, script: lines.json}\n")
    async with ChatExpertmix(pool=file, format="answer") as model:
        assert (await model.ainvoke("Where?")).content == "Paris"
        pool = model.open().pool
    with pytest.raises(RuntimeError, match="not open"):
        await pool.generate("a", [])
    with model:
        assert model.invoke("Where?").content == "Paris"
    with (
        ChatExpertmix(pool=file, profile=tmp_path / "nothing") as model,
        pytest.raises(InputError, match="nothing"),
    ):
        model.invoke("Where?")


def test_no_web_server_is_imported_for_it() -> None:
    words = "import sys, expertmix.apps.chat.panel as p; print('fastapi' in sys.modules, 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert told.stdout == "False False\n"
