"""Any LangChain chat model answers as an engine, and its errors stay with their requests."""

import asyncio
import importlib.util
import json
from typing import Any, ClassVar

import httpx
import pytest
from fault_server import FaultServer, body_of, fail, raw
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from expertmix.agents.engines import Failure, Message, Reply, Request, Sampling
from expertmix.agents.engines.chat_model import ChatModelEngine
from expertmix.retrieval import InputError

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


TURNS: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief, {name}."},
    {"role": "user", "content": "hello"},
)


def ask(
    id: str = "r",
    sampling: Sampling | None = None,
    messages: tuple[Message, ...] = TURNS,
    **other: Any,
) -> Request:
    return Request(id=id, messages=messages, sampling=sampling or Sampling(), **other)


def failure_of(reply: Reply) -> Failure:
    assert reply.failure is not None
    return reply.failure


async def one(model: BaseChatModel, request: Request | None = None, **settings: Any) -> Reply:
    engine = ChatModelEngine("chat", model, **settings)
    await engine.start()
    [reply] = await engine.generate([request or ask()])
    await engine.close()
    return reply


class Recorder(BaseChatModel):
    """Says what it was asked with, or raises."""

    temperature: float = 0.7
    num_predict: int = 128
    error: Exception | None = None
    seen: ClassVar[list[tuple[list[BaseMessage], list[str] | None]]] = []

    @property
    def _llm_type(self) -> str:
        return "recorder"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise AssertionError("the engine must use the async face")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.error is not None:
            raise self.error
        self.seen.append((messages, stop))
        text = f"temperature={self.temperature} num_predict={self.num_predict} {sorted(kwargs)}"
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


async def test_usage_finish_and_text_blocks_are_read() -> None:
    message = AIMessage(
        content=[
            {"type": "reasoning", "reasoning": "hm"},
            {"type": "text", "text": "Par"},
            "is",
            {"type": "tool_use", "text": "no"},
        ],
        usage_metadata={
            "input_tokens": 5,
            "output_tokens": 2,
            "total_tokens": 7,
            "input_token_details": {"cache_read": 4},
        },
        response_metadata={"stop_reason": "max_tokens"},
    )
    reply = await one(GenericFakeChatModel(messages=iter([message])))
    assert (reply.text, reply.finish) == ("Paris", "length")
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5, 2, 4)


async def test_messages_are_passed_as_they_are_and_stop_as_langchain_does() -> None:
    Recorder.seen.clear()
    await one(Recorder(), ask(sampling=Sampling(stop=("###",))))
    await one(Recorder())
    (messages, stop), (_, no_stop) = Recorder.seen
    assert [(m.type, m.content) for m in messages] == [
        ("system", "Be brief, {name}."),
        ("human", "hello"),
    ]
    assert (stop, no_stop) == (["###"], None)


async def test_sampling_reaches_declared_fields_only_and_leaves_the_model_alone() -> None:
    model = Recorder()
    sampling = Sampling(temperature=0.25, max_tokens=9, top_p=0.5, seed=1, logprobs=2)
    changed = await one(model, ask(sampling=sampling))
    kept = await one(model, ask(sampling=sampling), settings=("max_tokens",))
    untouched = await one(model, ask(sampling=sampling), settings=())
    assert changed.text == "temperature=0.25 num_predict=9 []"
    assert kept.text == "temperature=0.7 num_predict=9 []"
    assert untouched.text == "temperature=0.7 num_predict=128 []"
    assert (model.temperature, model.num_predict) == (0.7, 128)


async def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="no setting 'top_k'; there are temperature"):
        ChatModelEngine("chat", Recorder(), settings=("top_k",))


class APIConnectionError(Exception):
    """As the provider libraries call it."""


class StatusError(Exception):
    status_code = 503


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (TimeoutError("too slow"), "address", True),
        (ConnectionResetError("gone"), "address", True),
        (httpx.ConnectError("nobody there"), "address", True),
        (APIConnectionError("nobody there"), "address", True),
        (StatusError("overloaded"), "address", True),
        (ValueError("maximum context length is 9 tokens"), "context", False),
        (KeyError("choices"), "engine", False),
        (RuntimeError("\x1b[2J" + "x" * 9999), "engine", False),
    ],
)
async def test_an_error_is_the_failure_of_its_request(
    error: Exception, kind: str, retryable: bool
) -> None:
    failure = failure_of(await one(Recorder(error=error)))
    assert (failure.kind, failure.retryable) == (kind, retryable)
    assert failure.message.startswith(f'chat model "chat" raised {type(error).__name__}: ')
    assert failure.message.isprintable()
    assert len(failure.message) < 320


@pytest.mark.parametrize(
    "request_",
    [
        ask(options=("a", "b")),
        ask(adapter="maths"),
        ask(messages=({"role": "assistant", "content": "Well,"},)),
        ask(sampling=Sampling(json_schema=SCHEMA)),
    ],
)
async def test_what_langchain_has_no_way_to_ask_for_is_refused(request_: Request) -> None:
    assert failure_of(await one(Recorder(), request_)).kind == "refused"


async def test_a_stream_adds_up_to_the_whole_answer() -> None:
    engine = ChatModelEngine("chat", GenericFakeChatModel(messages=iter(["one two three"])))
    await engine.start()
    chunks = [chunk async for chunk in engine.stream(ask())]
    assert [chunk.text for chunk in chunks] == ["one", " ", "two", " ", "three", ""]
    assert chunks[-1].reply is not None
    assert chunks[-1].reply.text == "one two three"


async def test_a_model_that_cannot_stream_gives_its_answer_as_one_piece() -> None:
    engine = ChatModelEngine("chat", Recorder())
    await engine.start()
    chunks = [chunk async for chunk in engine.stream(ask())]
    assert [bool(chunk.text) for chunk in chunks] == [True, False]


@pytest.mark.skipif(
    importlib.util.find_spec("langchain") is not None, reason="langchain is installed here"
)
def test_a_name_needs_langchain_and_the_message_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match=r'"ollama:tiny" needs langchain: pip install langchain'):
        ChatModelEngine.from_name("ollama:tiny")


def chat_openai(server: FaultServer, **settings: Any) -> BaseChatModel:
    provider = pytest.importorskip("langchain_openai", reason="needs langchain-openai")
    return provider.ChatOpenAI(
        base_url=server.address, api_key="sk-x", model="smol", max_retries=0, **settings
    )


async def test_chat_openai_sends_our_sampling_and_reports_usage(server: FaultServer) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=9, seed=4, stop=("#",), logprobs=1)
    body = body_of("fine", finish="length")
    token = {"token": "fine", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    body["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    server.plan = [raw(json.dumps(body).encode())]
    reply = await one(chat_openai(server), ask(sampling=sampling))
    sent = server.seen[0].body
    assert (reply.text, reply.finish) == ("fine", "length")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 1)
    assert reply.usage.cached_tokens == 3
    assert [(token.token, token.logprob) for token in reply.logprobs] == [("fine", -0.5)]
    assert (sent["temperature"], sent["top_p"], sent["seed"], sent["stop"]) == (0.5, 0.9, 4, ["#"])
    assert sent.get("max_tokens", sent.get("max_completion_tokens")) == 9


async def test_chat_openai_streams_with_usage(server: FaultServer) -> None:
    engine = ChatModelEngine("chat", chat_openai(server))
    await engine.start()
    chunks = [chunk async for chunk in engine.stream(ask())]
    reply = chunks[-1].reply
    assert reply is not None
    assert "".join(chunk.text for chunk in chunks) == reply.text == "echo: hello"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 5)


async def test_chat_openai_is_held_to_a_schema(server: FaultServer) -> None:
    server.plan = [raw(json.dumps(body_of('{"x": 3}')).encode())]
    reply = await one(chat_openai(server), ask(sampling=Sampling(json_schema=SCHEMA)))
    assert reply.text == '{"x": 3}'
    assert server.seen[0].body["response_format"]["json_schema"]["schema"]["required"] == ["x"]


async def test_errors_of_chat_openai_are_told_apart(server: FaultServer) -> None:
    server.plan = [
        fail(429, "slow down"),
        fail(400, "maximum context length is 512 tokens"),
        fail(401, "no such key"),
    ]
    engine = ChatModelEngine("chat", chat_openai(server), concurrency=1)
    await engine.start()
    failures = [failure_of(r) for r in await engine.generate([ask("a"), ask("b"), ask("c")])]
    kinds = [(failure.kind, failure.retryable) for failure in failures]
    assert kinds == [("address", True), ("context", False), ("address", False)]
    await server.stop()
    [reply] = await engine.generate([ask()])
    assert (failure_of(reply).kind, failure_of(reply).retryable) == ("address", True)


async def test_no_more_requests_are_out_than_allowed() -> None:
    busy, peak = 0, 0

    class Slow(Recorder):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
            nonlocal busy, peak
            busy += 1
            peak = max(peak, busy)
            await asyncio.sleep(0.005)
            busy -= 1
            return await super()._agenerate(*args, **kwargs)

    engine = ChatModelEngine("chat", Slow(), concurrency=2)
    await engine.start()
    await engine.generate([ask(str(n)) for n in range(6)])
    assert peak == 2


ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


class ToolUser(BaseChatModel):
    """Calls what it is given; keeps what it was bound to and asked with."""

    bound: ClassVar[list[tuple[Any, Any]]] = []
    seen: ClassVar[list[list[BaseMessage]]] = []

    @property
    def _llm_type(self) -> str:
        return "tool-user"

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        self.bound.append((tools, tool_choice))
        return self.bind(**kwargs)

    def _generate(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> ChatResult:
        self.seen.append(messages)
        message = AIMessage(
            "Let me see.",
            additional_kwargs={"reasoning_content": "Hm."},
            tool_calls=[{"id": "c1", "name": "add", "args": {"a": 1}}],
            invalid_tool_calls=[
                {"type": "invalid_tool_call", "id": None, "name": "add", "args": "{", "error": ""}
            ],
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.mark.parametrize(
    ("choice", "bound"), [("auto", None), ("required", "any"), ("add", "add"), ("none", "unbound")]
)
async def test_tools_are_bound_and_calls_come_back(choice: str, bound: str | None) -> None:
    ToolUser.bound.clear()
    ToolUser.seen.clear()
    past = '{"a": 1}'
    turns: tuple[Message, ...] = (
        *TURNS,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c0", "name": "add", "arguments": past},
                {"id": "cx", "name": "add", "arguments": "{"},
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c0"},
    )
    reply = await one(ToolUser(), ask(messages=turns, tools=(ADD,), tool_choice=choice))

    tools = [{"type": "function", "function": ADD}]
    assert ToolUser.bound == ([] if bound == "unbound" else [(tools, bound)])
    calls, result = ToolUser.seen[0][-2:]
    assert isinstance(calls, AIMessage)
    assert [(call["id"], call["args"]) for call in calls.tool_calls] == [("c0", {"a": 1})]
    assert [call["args"] for call in calls.invalid_tool_calls] == ["{"]
    assert isinstance(result, ToolMessage)
    assert (result.content, result.tool_call_id) == ("3", "c0")
    one_, two = reply.tool_calls
    assert one_ == {"id": "c1", "name": "add", "arguments": past}
    assert (two["name"], two["arguments"], len(two["id"])) == ("add", "{", 9)
    assert (reply.text, reply.reasoning) == ("Let me see.", "Hm.")


async def test_a_model_that_takes_no_tools_says_so() -> None:
    model = GenericFakeChatModel(messages=iter(["hello"]))
    failure = failure_of(await one(model, ask(tools=(ADD,))))
    assert (failure.kind, "takes no tools" in failure.message) == ("refused", True)


async def test_thoughts_are_streamed_apart_from_what_is_said() -> None:
    engine = ChatModelEngine("chat", ToolUser())
    await engine.start()
    chunks = [chunk async for chunk in engine.stream(ask(tools=(ADD,)))]
    await engine.close()

    reply = chunks[-1].reply
    assert reply is not None
    assert "".join(chunk.reasoning for chunk in chunks) == reply.reasoning == "Hm."
    assert "".join(chunk.text for chunk in chunks) == reply.text == "Let me see."
    assert reply.tool_calls[0]["name"] == "add"
