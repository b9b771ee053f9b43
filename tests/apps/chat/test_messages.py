"""LangChain's messages become turns and replies become messages, and thoughts are told from what is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel

from expertmix.agents.engines import Chunk, Reply, TokenLogprob, ToolCall, Usage
from expertmix.apps.chat.messages import to_chunk, to_last_chunk, to_message, to_turns
from expertmix.apps.chat.structure import to_choice, to_functions
from expertmix.apps.chat.thinking import Thinking
from expertmix.retrieval import InputError

ADD = ToolCall(id="c1", name="add", arguments='{"a": 1}')


def test_a_conversation_with_tools_becomes_turns() -> None:
    turns = to_turns(
        [
            SystemMessage("Be brief."),
            HumanMessage("1 + 2?", name="somebody"),
            AIMessage("", tool_calls=[{"id": "c1", "name": "add", "args": {"a": 1}}]),
            ToolMessage([{"type": "text", "text": "3"}], tool_call_id="c1"),
            ChatMessage(content="go on", role="user"),
        ]
    )
    assert turns == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [ADD]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "user", "content": "go on"},
    )


def test_an_assistants_turn_keeps_its_text_and_its_spoilt_calls() -> None:
    message = AIMessage(
        [
            {"type": "thinking", "thinking": "hm", "signature": "x"},
            {"type": "text", "text": "Let me"},
            " see.",
            {"type": "tool_use", "id": "c1", "name": "add", "input": {}},
        ],
        invalid_tool_calls=[
            {"type": "invalid_tool_call", "id": "c1", "name": "add", "args": "{", "error": None}
        ],
    )
    [turn] = to_turns([message])
    assert turn["content"] == "Let me see."
    assert turn.get("tool_calls") == [{"id": "c1", "name": "add", "arguments": "{"}]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}]), "image_url"),
        (HumanMessage([{"type": "audio", "base64": ""}]), "audio"),
        (ToolMessage([{"type": "image", "base64": ""}], tool_call_id="c"), "image"),
        (HumanMessage([{"type": "reasoning", "reasoning": "hm"}]), "reasoning"),
        (AIMessage([{"type": "image", "base64": ""}]), "image"),
        (ChatMessage(content="x", role="critic"), "critic"),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(message: BaseMessage, named: str) -> None:
    with pytest.raises(InputError, match=named):
        to_turns([message])


def test_a_reply_becomes_a_message_with_all_that_is_known_of_it() -> None:
    top = (("4", -0.1), ("5", -2.0))
    reply = Reply(
        request_id="r",
        text="4",
        reasoning="2 + 2",
        finish="length",
        usage=Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=3),
        logprobs=(TokenLogprob(token="4", logprob=-0.1, top=top),),
    )
    message = to_message(reply, model_name="ada")

    assert message.text == "4"
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    assert message.additional_kwargs == {"reasoning_content": "2 + 2"}
    assert message.usage_metadata == {
        "input_tokens": 5,
        "output_tokens": 2,
        "total_tokens": 7,
        "input_token_details": {"cache_read": 3},
    }
    alternatives = [{"token": "4", "logprob": -0.1}, {"token": "5", "logprob": -2.0}]
    token = {"token": "4", "logprob": -0.1, "top_logprobs": alternatives}
    assert message.response_metadata == {
        "model_name": "ada",
        "model_provider": "expertmix",
        "finish_reason": "length",
        "logprobs": {"content": [token]},
    }


@pytest.mark.parametrize("arguments", ["{", "[1]", "[" * 5000, "NaN"])
def test_calls_whose_arguments_are_no_object_are_invalid(arguments: str) -> None:
    spoilt = ToolCall(id="c2", name="add", arguments=arguments)
    message = to_message(Reply(request_id="r", tool_calls=(ADD, spoilt)), model_name="ada")

    assert [(call["id"], call["args"]) for call in message.tool_calls] == [("c1", {"a": 1})]
    assert [(call["id"], call["args"]) for call in message.invalid_tool_calls] == [
        ("c2", arguments)
    ]
    assert message.response_metadata["finish_reason"] == "tool_calls"


def test_a_streamed_reply_adds_up_to_the_whole_one() -> None:
    reply = Reply(
        request_id="r",
        text="So be it",
        reasoning="Hm.",
        tool_calls=(ADD, {**ADD, "id": "c2"}),
        usage=Usage(prompt_tokens=5, completion_tokens=2),
    )
    whole: Any = to_chunk(Chunk(reasoning="Hm."))
    whole += to_chunk(Chunk(text="So "))
    whole += to_last_chunk(reply, model_name="ada", text="be it")
    message = to_message(reply, model_name="ada")

    assert isinstance(whole, AIMessageChunk)
    assert (whole.text, whole.tool_calls) == (message.text, message.tool_calls)
    assert whole.usage_metadata == message.usage_metadata
    assert whole.response_metadata == message.response_metadata
    assert whole.additional_kwargs == message.additional_kwargs


def test_tools_of_every_kind_become_functions() -> None:
    class Weather(BaseModel):
        """Tells the weather."""

        city: str

    @tool
    def now() -> str:
        """Tells the time."""
        return "noon"

    bare = {"type": "function", "function": {"name": "bare", "strict": True}}
    told = to_functions([Weather, now, bare])
    weather, time, nothing = (one["function"] for one in told)

    assert (weather["name"], weather["description"]) == ("Weather", "Tells the weather.")
    assert weather["parameters"]["required"] == ["city"]
    assert (time["name"], time["description"]) == ("now", "Tells the time.")
    empty = {"type": "object", "properties": {}}
    assert nothing == {"name": "bare", "description": "", "parameters": empty}
    json.dumps(told)
    assert to_functions(told) == told


@pytest.mark.parametrize("wrong", [{"type": "web_search_preview"}, 3, {}])
def test_what_is_no_function_is_no_tool(wrong: Any) -> None:
    with pytest.raises(InputError, match="tool"):
        to_functions([wrong])


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "bare"}, "bare"),
        ({"type": "function", "name": "bare"}, "bare"),
        ({"type": "function", "function": {"name": "bare"}}, "bare"),
    ],
)
def test_choices_are_read_out_of_the_objects_of_others(choice: Any, meant: str) -> None:
    tools = to_functions([{"type": "function", "function": {"name": "bare"}}])
    assert to_choice(choice, tools) == meant


@pytest.mark.parametrize("choice", ["any", True, {"type": "any"}, "required", "bare", 3])
def test_what_cannot_be_chosen_is_refused(choice: Any) -> None:
    with pytest.raises(InputError, match="none is offered"):
        to_choice(choice, [])


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("4", "", "4"),
        (" 4 ", "", " 4 "),
        ("<think>2 + 2</think>4", "2 + 2", "4"),
        ("\n<think>\n2 + 2\n</think>\n\n4", "2 + 2", "4"),
        ("2 + 2</think>4", "2 + 2", "4"),
        ("<think>2 +", "2 +", ""),
        ("I <think> so", "", "I <think> so"),
        ("I <think>x</think> so", "", "I <think>x</think> so"),
        ("<think></think>4", "", "4"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_thoughts_at_the_head_of_a_text_are_split_off(text: str, thought: str, said: str) -> None:
    assert Thinking.split(text) == (thought, said)


PIECES = st.sampled_from(
    ["<think>", "</think>", "<thi", "nk>", "</", "think>", " ", "\n", "4", "<"]
)


@given(st.lists(PIECES, max_size=8))
def test_a_streamed_text_is_split_as_a_whole_one(pieces: list[str]) -> None:
    text = "".join(pieces)
    thinking = Thinking()
    chunks = [*map(thinking.take, pieces), thinking.finish()]
    told = ("".join(c.reasoning for c in chunks), "".join(c.text for c in chunks))

    opened = text.lstrip().startswith("<think>")
    # Without an opening mark nobody knows of a thought before its end.
    assert told == (Thinking.split(text) if opened else ("", text))
