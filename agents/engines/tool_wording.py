"""Telling a model that runs here of tools: in its template's own words, or in ours where it has none.

Ours are the words of Hermes, which most open models have seen: signatures between `<tools>` marks, calls
between `<tool_call>` marks, results between `<tool_response>` marks. What tools say of themselves and
what they returned is data of others: our marks spelled out in it are broken up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, cast

from .base import Message, Request, ToolCall

__all__ = [
    "answer_schema",
    "must_call",
    "offered_tools",
    "quiet",
    "rewrite_strings",
    "template_turns",
    "tool_signatures",
    "word_tools",
]

MARK = re.compile(r"<(/?)(tool_call|tool_response|tools)>", re.IGNORECASE)
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
OFFER = """\
You may call functions to answer. Their signatures, one a line:
<tools>
{tools}
</tools>
"""
FREE = """\
For each call, write one JSON object with the function's name and its arguments:
<tool_call>
{"name": "function-name", "arguments": {"argument-name": "value"}}
</tool_call>
Results of calls come back between <tool_response> marks. Where no call is needed, answer without one."""
BOUND = """\
Now call one: write one JSON object with the function's name and its arguments, and nothing else:
{"name": "function-name", "arguments": {"argument-name": "value"}}"""


def offered_tools(request: Request) -> tuple[Mapping[str, Any], ...]:
    """The tools that a request's model gets to see: the one that it must call, all, or none."""
    if request.tool_choice == "none" or request.options:
        return ()
    if request.tool_choice in ("auto", "required"):
        return request.tools
    return tuple(tool for tool in request.tools if tool["name"] == request.tool_choice)


def must_call(request: Request) -> bool:
    """Whether the answer has to be a call, and nothing else."""
    return request.tool_choice != "auto" and bool(offered_tools(request))


def answer_schema(request: Request) -> dict[str, Any] | None:
    """What the answer must look like; None where it may be any text.

    Where it must be a call: one object `{"name", "arguments"}`. Where there are tools and the request asks
    for JSON of its own: either. References inside a schema are turned to where it stands in this one.
    """
    own, tools = request.sampling.json_schema, offered_tools(request)
    if not tools:
        return None if own is None else dict(own)
    if own is None and not must_call(request):
        return None
    definitions: dict[str, Any] = {}

    def place(schema: Mapping[str, Any], key: str) -> Any:
        if "$ref" not in json.dumps(schema, default=dict):
            return schema
        definitions[key] = _moved(schema, f"#/$defs/{key}")
        return {"$ref": f"#/$defs/{key}"}

    shapes: list[Any] = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["name"]},
                "arguments": place(tool.get("parameters") or NO_PARAMETERS, f"tool{number}"),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    if own is not None and not must_call(request):
        shapes.append(place(own, "answer"))
    schema = shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
    return {**schema, "$defs": definitions} if definitions else schema


def tool_signatures(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as OpenAI, and after it every chat template, has them; our marks in them broken up."""
    return [{"type": "function", "function": _quieted(tool)} for tool in tools]


def template_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as chat templates read them: calls as OpenAI has them, but with arguments as an object.

    Our marks in calls and results are broken up, since templates use the same ones.
    """
    names: dict[str, str] = {}
    turns: list[dict[str, Any]] = []
    for turn in messages:
        told: dict[str, Any] = dict(turn)
        if calls := turn.get("tool_calls"):
            names |= {call["id"]: call["name"] for call in calls}
            told["tool_calls"] = [_template_call(call) for call in calls]
        if turn["role"] == "tool":
            told["name"] = names.get(turn.get("tool_call_id", ""), "")
            told["content"] = quiet(turn["content"])
        turns.append(told)
    return turns


def word_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, bound: bool
) -> list[Message]:
    """A conversation with tools as one of plain turns, in Hermes' words.

    Args:
        messages: Any.
        tools: Those on offer; with none, only earlier calls and results are worded.
        bound: Whether the answer has to be a call.
    """
    heads = list(takewhile(lambda turn: turn["role"] == "system", messages))
    turns: list[Message] = [*heads]
    if tools:
        lines = "\n".join(_line(told) for told in tool_signatures(tools))
        offer = OFFER.replace("{tools}", lines) + (BOUND if bound else FREE)
        content = "\n\n".join([*(turn["content"] for turn in heads), offer])
        turns = [Message(role="system", content=content)]
    after_result = False
    for turn in messages[len(heads) :]:
        worded = _worded(turn)
        if after_result and worded["role"] == "user":  # some templates insist on taking turns
            turns[-1] = Message(role="user", content=f"{turns[-1]['content']}\n{worded['content']}")
        else:
            turns.append(worded)
            after_result = turn["role"] == "tool"
    return turns


def quiet(text: str) -> str:
    """The text with our marks broken up, so that it cannot end its own quotation."""
    return MARK.sub(r"< \1\2>", text)


def rewrite_strings(value: object, rewrite: Callable[[str], str]) -> Any:
    """A JSON value with all of its strings rewritten, keys included."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        return {rewrite(key): rewrite_strings(item, rewrite) for key, item in fields.items()}
    if isinstance(value, list | tuple):
        return [rewrite_strings(item, rewrite) for item in cast("Sequence[object]", value)]
    return value


def _worded(turn: Message) -> Message:
    if turn["role"] == "tool":
        content = f"<tool_response>\n{quiet(turn['content'])}\n</tool_response>"
        return Message(role="user", content=content)
    calls = [
        f"<tool_call>\n{_line(_template_call(call)['function'])}\n</tool_call>"
        for call in turn.get("tool_calls", ())
    ]
    spoken = [turn["content"]] if turn["content"] or not calls else []
    return Message(role=turn["role"], content="\n".join([*spoken, *calls]))


def _template_call(call: ToolCall) -> dict[str, Any]:
    function = _quieted({"name": call["name"], "arguments": _arguments(call)})
    return {"id": call["id"], "type": "function", "function": function}


def _arguments(call: ToolCall) -> Any:
    """As an object, where the model wrote one."""
    try:
        return json.loads(call["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call["arguments"]


def _quieted(value: object) -> Any:
    """A JSON value with our marks broken up in all of its strings."""
    return rewrite_strings(value, quiet)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=dict)


def _moved(schema: object, place: str) -> Any:
    """The schema with its references to itself turned to where it will stand."""
    if isinstance(schema, Mapping):
        fields = cast("Mapping[str, object]", schema)
        return {
            key: f"{place}{value[1:]}"
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in fields.items()
        }
    if isinstance(schema, list | tuple):
        return [_moved(item, place) for item in cast("Sequence[object]", schema)]
    return schema
