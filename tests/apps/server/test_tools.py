"""Tools: an expert's own to ask for, the aggregator's alone on a panel; as OpenAI's and LangChain's clients see it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, SecretStr

from expertmix.agents.engines import Request, ToolCall
from expertmix.agents.engines.scripted import Faults, Line
from expertmix.apps.session import PanelSettings
from expertmix.retrieval import InputError

DOUBLE: Any = {
    "type": "function",
    "function": {
        "name": "double",
        "description": "Double a number.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
        },
    },
}
ASKED: Any = [{"role": "user", "content": "Double 21."}]
CALLS = tuple(ToolCall(id=i, name="double", arguments='{"number": 21}') for i in ("c1", "c2"))


def speak(request: Request) -> str | Line:
    """Asks for two calls where it may, then tells what the first of them gave."""
    said = request.messages[-1]
    if said["role"] == "tool":
        return f"It is {said['content']}."
    if not request.tools:
        return "Answer: 42"
    name = request.tools[0]["name"]
    calls = tuple(ToolCall(id=c["id"], name=name, arguments=c["arguments"]) for c in CALLS)
    return Line(reasoning="I have a tool.", tool_calls=calls)


@pytest.fixture
def chaired(start: Any, expert: Any) -> Any:
    """A panel of three, one of which also has the last word."""
    experts = {"a": "Answer: 42", "b": "Answer: 41", "chair": expert("chair", speak)}
    return start(experts, file={"aggregator": "chair"})


@contextmanager
def connected(running: Any) -> Generator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", ["expertmix/auto", "expert/chair"])
def test_a_call_is_asked_for_and_its_result_is_told(chaired: Any, model: str) -> None:
    with connected(chaired) as client:
        first = client.chat.completions.create(model=model, messages=ASKED, tools=[DOUBLE])
        [choice] = first.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls is not None
        assert [call.id for call in choice.message.tool_calls] == ["c1", "c2"]
        call: Any = choice.message.tool_calls[0]
        assert (call.type, call.function.name) == ("function", "double")
        assert json.loads(call.function.arguments) == {"number": 21}
        assert choice.message.model_extra is not None
        assert choice.message.model_extra["reasoning_content"] == "I have a tool."
        # The message goes back as the client has it, with all that is ours in it.
        turns: Any = [
            *ASKED,
            choice.message.model_dump(),
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "tool", "tool_call_id": "c2", "content": "forty-two"},
        ]
        second = client.chat.completions.create(model=model, messages=turns, tools=[DOUBLE])
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == "It is forty-two."
    asked = chaired.engines["chair"].requests[-1]
    assert asked.tools[0]["name"] == "double"
    assert asked.messages[-3].get("tool_calls") == list(CALLS)
    assert asked.messages[-1].get("tool_call_id") == "c2"


def test_the_panels_experts_see_results_as_quotations_and_never_the_tools(chaired: Any) -> None:
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [called("c1")]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
    ]
    reply = chaired.post("expertmix/auto", "Double 21.", *turns, tools=[DOUBLE]).json()
    details = reply["expertmix"]
    assert (details["speaker"], sorted(details["votes"])) == ("chair", ["41", "42"])
    for alias in "ab":
        [request] = chaired.engines[alias].requests
        assert request.tools == ()
        quoted = request.messages[-1]["content"]
        assert '> assistant calls double: {"number": 21}\n> tool double: 42' in quoted
    chair = chaired.engines["chair"].requests
    # As an expert, to merge what is disputed, and for the last word.
    assert [bool(request.tools) for request in chair] == [False, False, True]
    spent = sum(
        len(turn["content"].split())
        for engine in chaired.engines.values()
        for request in engine.requests
        for turn in request.messages
    )
    assert reply["usage"]["prompt_tokens"] == spent


def called(name: str) -> dict[str, Any]:
    function = {"name": "double", "arguments": '{"number": 21}'}
    return {"id": name, "type": "function", "function": function}


@pytest.mark.parametrize("model", ["expertmix/auto", "expert/chair"])
def test_streams_tell_what_was_thought_and_then_the_calls(chaired: Any, model: str) -> None:
    with connected(chaired) as client:
        chunks = list(
            client.chat.completions.create(model=model, messages=ASKED, tools=[DOUBLE], stream=True)
        )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = [(delta.model_extra or {}).get("reasoning_content") for delta in deltas]
    assert "I have a tool." in thoughts
    [delta] = [delta for delta in deltas if delta.tool_calls]
    assert delta.tool_calls is not None
    assert [(call.index, call.id) for call in delta.tool_calls] == [(0, "c1"), (1, "c2")]
    assert delta.tool_calls[1].function is not None
    assert delta.tool_calls[1].function.arguments == '{"number": 21}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", ["expertmix/auto", "expert/chair"])
def test_choices_reach_whoever_may_call_and_one_call_is_one(chaired: Any, model: str) -> None:
    named = {"type": "function", "function": {"name": "double"}}
    for choice, told in [("auto", "auto"), ("required", "required"), (named, "double")]:
        reply = chaired.post(model, "Double 21.", tools=[DOUBLE], tool_choice=choice)
        assert reply.json()["choices"][0]["finish_reason"] == "tool_calls"
        assert chaired.engines["chair"].requests[-1].tool_choice == told
    once = chaired.post(model, "Double 21.", tools=[DOUBLE], parallel_tool_calls=False).json()
    assert [c["id"] for c in once["choices"][0]["message"]["tool_calls"]] == ["c1"]
    for choice in ({"type": "function", "function": {"name": "halve"}}, {"type": "function"}):
        reply = chaired.post(model, "Double 21.", tools=[DOUBLE], tool_choice=choice)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"].startswith("tool_choice")


def test_without_tools_to_choose_from_the_panel_answers_itself(chaired: Any) -> None:
    for more in ({}, {"tools": []}, {"tools": [DOUBLE], "tool_choice": "none"}):
        reply = chaired.post("expertmix/auto", "Double 21.", **more).json()
        [choice] = reply["choices"]
        assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("stop", None)
        assert "Answer: 42" in choice["message"]["content"]
        assert reply["expertmix"]["speaker"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_panel_without_an_aggregator_refuses_tools(server: Any, stream: bool) -> None:
    with connected(server) as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="expertmix/auto", messages=ASKED, tools=[DOUBLE], stream=stream
        )
    assert caught.value.param == "tools"
    assert "need an aggregator" in caught.value.message


@pytest.mark.parametrize(
    ("tool", "where"),
    [
        ({"type": "web_search"}, "tools[0].type"),
        ({"type": "function"}, "tools[0].function"),
        ({"type": "function", "function": {"name": "no name"}}, "tools[0].function.name"),
        ({"type": "function", "function": {"name": "f", "x": 1}}, "tools[0].function.x"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, "tools[0].function"),
    ],
)
def test_what_is_no_tool_is_refused_by_its_place(chaired: Any, tool: Any, where: str) -> None:
    for model in ("expertmix/auto", "expert/a"):
        reply = chaired.post(model, "Double 21.", tools=[tool])
        assert reply.status_code == 400
        assert reply.json()["error"]["param"].startswith(where)


def test_the_aggregator_answers_for_a_panel_that_failed_and_its_own_failure_is_told(
    start: Any, expert: Any
) -> None:
    broken = expert("a", {"*": "x"}, faults=Faults(fail_ids={"*"}))
    panel = PanelSettings(k=1, policy="random")
    running = start(
        {"a": broken, "chair": expert("chair", speak)}, panel=panel, file={"aggregator": "chair"}
    )
    # Whom of the two the panel draws depends on the question; one of these gets the broken one.
    for at in range(8):
        reply = running.post("expertmix/random", f"Double {at}.", tools=[DOUBLE])
        assert reply.json()["choices"][0]["finish_reason"] == "tool_calls"
    asked = [r.messages[0]["content"] for r in running.engines["chair"].requests if r.tools]
    assert any("Draft 1" in text for text in asked)
    silent = expert("chair", {"*": "x"}, faults=Faults(load="no /path"))
    lost = start({"a": "Answer: 42", "chair": silent}, file={"aggregator": "chair"})
    reply = lost.post("expertmix/auto", "Double 21.", tools=[DOUBLE])
    assert reply.status_code == 503
    assert reply.json()["error"]["message"] == 'expert "chair" could not be loaded'
    assert "/path" not in reply.text


def test_half_a_surrogate_pair_in_a_call_does_no_harm(start: Any, expert: Any) -> None:
    call = ToolCall(id="c\ud800", name="double", arguments='{"x": "\ud800"}')
    spoilt = expert("a", lambda _: Line(reasoning="\ud800", tool_calls=(call,)))  # pyright: ignore[reportUnknownLambdaType]
    running = start({"a": spoilt}, file={"aggregator": "a"})
    for model in ("expertmix/auto", "expert/a"):
        reply = running.post(model, "Double 21.", tools=[DOUBLE])
        assert reply.json()["choices"][0]["message"]["tool_calls"][0]["id"] == "c?"
        assert "[DONE]" in running.post(model, "Double 21.", tools=[DOUBLE], stream=True).text


def test_the_last_word_counts_as_a_call(start: Any) -> None:
    experts, file = dict.fromkeys("abc", "Answer: x"), {"aggregator": "a"}
    start(experts, file=file, max_calls=5)
    with pytest.raises(InputError, match="may make 5 calls"):
        start(experts, file=file, max_calls=4)


needs_langchain = pytest.mark.skipif(
    importlib.util.find_spec("langchain_openai") is None, reason="needs langchain-openai"
)


class Double(BaseModel):
    """Double a number."""

    number: int


@needs_langchain
@pytest.mark.parametrize("model", ["expertmix/auto", "expert/chair"])
async def test_langchains_model_binds_tools_and_reads_calls(chaired: Any, model: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    key = SecretStr("none")
    chat = ChatOpenAI(model=model, base_url=f"{chaired.url}/v1", api_key=key, max_retries=0)
    bound = chat.bind_tools([Double])
    asked = HumanMessage("Double 21.")
    message = await bound.ainvoke([asked])
    assert [call["args"] for call in message.tool_calls] == [{"number": 21}] * 2
    results = [ToolMessage("42", tool_call_id=call["id"]) for call in message.tool_calls]
    last = await bound.ainvoke([asked, message, *results])
    assert last.content == "It is 42."
    pieces = [piece async for piece in bound.astream([asked])]
    whole: Any = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    assert [call["args"] for call in whole.tool_calls] == [{"number": 21}] * 2
    named = chat.bind_tools([DOUBLE], tool_choice="double", strict=True)
    assert (await named.ainvoke("Double 21.")).tool_calls[0]["name"] == "double"
    asks = chat.with_structured_output(Double, method="function_calling")
    assert await asks.ainvoke("Double 21.") == Double(number=21)
    await chat.root_async_client.close()


def test_what_openais_own_helpers_send_back_is_taken(chaired: Any) -> None:
    """They add `parsed_arguments`, `parsed` and the `index` of streamed pieces."""
    call = {
        "id": "c1",
        "type": "function",
        "index": 0,
        "function": {"name": "double", "arguments": "{}", "parsed_arguments": {"number": 21}},
    }
    turns = [
        *ASKED,
        {"role": "assistant", "content": None, "parsed": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    reply = chaired.post("expertmix/auto", *turns, tools=[DOUBLE])
    assert reply.status_code == 200, reply.text
    assert "It is 42." in reply.json()["choices"][0]["message"]["content"]
