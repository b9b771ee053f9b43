"""Tool calls are read out of what models write, in every form they are taught; the rest stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.engines import Failure, Message, Reply, Request, Sampling
from expertmix.agents.engines.tool_reading import (
    call_id,
    read_calls,
    read_tool_calls,
    settled_length,
)

ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
NOW = {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}
NAMES = {"add", "now"}
ASKED: tuple[Message, ...] = ({"role": "user", "content": "1 + 2?"},)
CALL = '{"name": "add", "arguments": {"a": 1}}'


def ask(choice: str = "auto", **sampling: Any) -> Request:
    return Request(
        id="r",
        messages=ASKED,
        tools=(ADD, NOW),
        tool_choice=choice,
        sampling=Sampling(**sampling),
    )


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
        (f"Let me see. <tool_call>{CALL}</tool_call>", "Let me see.", 1),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", 2),
        (f"<tool_call>{CALL}", "", 1),
        (f"<tool_call>{CALL}\n<tool_call>{CALL}</tool_call>", "", 2),
        (f"<think>I could <tool_call></think>\n{CALL}", "<think>I could <tool_call></think>", 1),
        (f"[TOOL_CALLS][{CALL}, {CALL}]", "", 2),
        ('[TOOL_CALLS]add[ARGS]{"a": 1}', "", 1),
        ('[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]add{"a": 1}', "", 2),
        (CALL, "", 1),
        (f"[{CALL}]", "", 1),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", 1),
        (f"{CALL}; {CALL}", "", 2),
        (f"So:\n```json\n{CALL}\n```", "So:", 1),
        ('{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}', "", 1),
    ],
)
def test_each_form_is_read(text: str, rest: str, calls: int) -> None:
    left, found = read_calls(text, NAMES)

    assert left == rest
    assert [(name, json.loads(arguments)) for name, arguments in found] == [
        ("add", {"a": 1})
    ] * calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 3.",
        '{"name": "Ada", "age": 36}',
        '{"name": "subtract", "arguments": {}}',
        '{"name": "add", "a": 1}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"name": "add", "arguments": {"a": 1}',
        f"It would be {CALL}",
        "<tool_call>add 1</tool_call>",
        "<tool_call>",
        "[TOOL_CALLS]",
        "[TOOL_CALLS] none",
        "```python\nprint(1)\n```",
        f"<think>{CALL}</think>",
        "[" * 5000,
        '{"name":' * 3000,
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read_calls(text, NAMES) == (text, [])


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert read_calls('{"name": "now"}', NAMES) == ("", [("now", "{}")])
    assert read_calls('<tool_call>{"name": "now"}</tool_call>', NAMES) == ("", [("now", "{}")])


def test_marked_calls_of_unknown_tools_are_passed_on_for_whoever_calls_to_refuse() -> None:
    assert read_calls('<tool_call>{"name": "fly", "arguments": {}}</tool_call>', NAMES)[1] == [
        ("fly", "{}")
    ]


def test_marks_inside_arguments_are_no_calls() -> None:
    told = {"name": "add", "arguments": {"a": f"<tool_call>{CALL}</tool_call>"}}
    assert read_calls(json.dumps(told), NAMES)[1] == [("add", json.dumps(told["arguments"]))]


def test_a_reply_gets_its_calls_with_ids_that_repeat() -> None:
    reply = Reply(
        request_id="r", text=f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>"
    )
    one, two = read_tool_calls(ask(), reply).tool_calls
    again, _ = read_tool_calls(ask(), reply).tool_calls

    assert (one["name"], one["arguments"]) == ("add", '{"a": 1}')
    assert one["id"] == again["id"] != two["id"]
    assert len(one["id"]) == 9
    assert one["id"].isalnum()
    longer = Request(id="r", messages=(*ASKED, *ASKED))
    assert call_id(longer, 0) != call_id(ask(), 0)


def test_only_requests_with_tools_are_read() -> None:
    reply = Reply(request_id="r", text=CALL)
    assert read_tool_calls(Request(id="r", messages=ASKED), reply) is reply
    assert read_tool_calls(ask("none"), reply) is reply
    failed = Reply.failed(ask(), Failure(kind="engine", message="no"))
    assert read_tool_calls(ask(), failed) is failed


def test_of_json_that_was_asked_for_only_a_call_alone_is_taken() -> None:
    wish = ask(json_schema={"type": "object"})
    assert read_tool_calls(wish, Reply(request_id="r", text=CALL)).tool_calls
    own = Reply(request_id="r", text=json.dumps({"say": f"<tool_call>{CALL}</tool_call>"}))
    assert read_tool_calls(wish, own) is own


PIECES = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "```json\n", "```",
        "<think>", "</think>", "[ARGS]", CALL, "{", "}", "[", "]", '"', ",", ":", " ", "\n",
        '"name"', '"arguments"', '"parameters"', '"add"', "add", "\\ud800", "Hello.", "\ud800",
    ]
)  # fmt: skip
WRITTEN = st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join)


@given(WRITTEN)
def test_whatever_a_model_writes_is_read_without_an_error(text: str) -> None:
    rest, found = read_calls(text, NAMES)

    if not found:
        assert rest == text
    for name, arguments in found:
        assert name
        assert isinstance(json.loads(arguments), dict)
        arguments.encode()


@given(WRITTEN, st.sampled_from(["auto", "required", "none", "add"]))
def test_what_is_streamed_is_always_the_beginning_of_the_answer(text: str, choice: str) -> None:
    whole = read_tool_calls(ask(choice), Reply(request_id="r", text=text)).text
    before = 0
    for end in range(len(text) + 1):
        settled = settled_length(ask(choice), text[:end])
        assert settled >= before
        assert whole.startswith(text[:settled])
        before = settled


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_arguments_come_back_as_they_were_written(arguments: dict[str, Any]) -> None:
    written = json.dumps({"name": "add", "arguments": arguments})
    for text in (written, f"<tool_call>{written}</tool_call>", f"[TOOL_CALLS][{written}]"):
        [(name, read)] = read_calls(text, NAMES)[1]
        assert (name, json.loads(read)) == ("add", arguments)


def test_plain_text_is_streamed_at_once_and_marks_are_held_back() -> None:
    assert settled_length(Request(id="r", messages=ASKED), "<tool_call>") == len("<tool_call>")
    assert settled_length(ask(), "It is <b") == len("It is <b")
    assert settled_length(ask(), "It is <too") == len("It is")
    assert settled_length(ask(), "It is\n<tool_call>{") == len("It is")
    assert settled_length(ask(), '{"na') == 0
    assert settled_length(ask("required"), "It is") == 0


def test_a_thought_that_never_ended_calls_nothing() -> None:
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert read_calls(f"<think>I could do {call} but that would be", {"add"})[1] == []
    assert len(read_calls(f"<think>I shall.</think>{call}", {"add"})[1]) == 1
