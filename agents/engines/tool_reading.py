"""Reading tool calls out of what a model wrote, whichever way its training taught it to write them.

Known are Hermes' `<tool_call>{…}</tool_call>`, Mistral's `[TOOL_CALLS][…]`, and JSON objects that name a
tool on offer and its arguments (Llama 3 says `parameters`), bare or in a fence. Whatever is none of these is
text. What a model wrote is untrusted: nothing here raises on it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, cast

from .base import Reply, Request, ToolCall
from .tool_wording import must_call, offered_tools

__all__ = ["call_id", "read_calls", "read_tool_calls", "settled_length"]

HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
MISTRAL = "[TOOL_CALLS]"
NAMED = re.compile(r"([\w.-]+)\s*(?:\[ARGS\]\s*)?(?=\{)")
FENCE = re.compile(r"```(?:\w+)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
PYTHON = "<|python_tag|>"
MARKS = ("<tool_call>", MISTRAL, "```", PYTHON)
THOUGHT = "</think>"
MOST_CALLS = 64
"""A model that wants more at once has lost its way; the rest is dropped."""

Found = tuple[str, str]
"""A tool's name and its arguments as JSON."""


def read_tool_calls(request: Request, reply: Reply) -> Reply:
    """The reply with the calls in its text taken out of it and into `tool_calls`.

    The text of a request without tools is left alone. Where it asked for JSON of its own, a call is an
    object that is not that: nothing inside it is looked for.
    """
    tools = offered_tools(request)
    if not tools or reply.failure is not None:
        return reply
    names = {str(tool["name"]) for tool in tools}
    constrained = request.sampling.json_schema is not None
    text, found = (_bare if constrained else read_calls)(reply.text, names)
    if not found:
        return reply
    calls = tuple(
        ToolCall(id=call_id(request, place), name=name, arguments=arguments)
        for place, (name, arguments) in enumerate(found)
    )
    return replace(reply, text=text, tool_calls=calls)


def read_calls(text: str, names: Collection[str]) -> tuple[str, list[Found]]:
    """The text without its calls, and the calls.

    Args:
        text: What the model wrote. What it thought, up to the last `</think>`, is not read.
        names: Tools on offer; a JSON object without marks is a call only if it names one of them.
    """
    end = text.rfind(THOUGHT)
    if end < 0 and text.lstrip().startswith("<think>"):
        return text, []  # a thought that never came to an end decided nothing
    end = end + len(THOUGHT) if end >= 0 else 0
    thought, said = text[:end], text[end:]
    for read in (_bare, _hermes, _mistral, _fenced):
        rest, found = read(said, names)
        if found:
            return (thought + rest).rstrip(), found[:MOST_CALLS]
    return text, []


def settled_length(request: Request, text: str) -> int:
    """How much of a growing text is the answer's for certain, whatever comes after it.

    All of it, unless tools are on offer: then what may be the beginning of a call is held back.
    """
    if not offered_tools(request):
        return len(text)
    if must_call(request):
        return 0
    end = text.rfind(THOUGHT)
    start = end + len(THOUGHT) if end >= 0 else 0
    if text.lstrip().startswith("<think>") and not start:
        return len(text.rstrip()) - _doubtful(text.rstrip(), (THOUGHT,))
    said = text[start:]
    if said.lstrip()[:1] in ("{", "["):
        return len(text[:start])
    marks = [at for mark in MARKS if (at := said.find(mark)) >= 0]
    settled = said[: min(marks)] if marks else said[: len(said) - _doubtful(said, MARKS)]
    return len((text[:start] + settled).rstrip())


def call_id(request: Request, place: int) -> str:
    """An id for a call that came without one: nine letters and digits, which is what Mistral insists on.

    The same request gets the same ids, and a longer conversation others.
    """
    asked = json.dumps([request.messages, place], default=str).encode("utf-8", "replace")
    return hashlib.sha256(asked).hexdigest()[:9]


def _hermes(text: str, names: Collection[str]) -> tuple[str, list[Found]]:
    found: list[Found] = []
    rest, end = "", 0
    for match in HERMES.finditer(text):
        calls = _calls_of(_parse(match[1]), None)
        if calls:
            found += calls
            rest += text[end : match.start()]
            end = match.end()
    return rest + text[end:], found


def _mistral(text: str, names: Collection[str]) -> tuple[str, list[Found]]:
    before, *pieces = text.split(MISTRAL)
    found: list[Found] = []
    for piece in pieces:
        named = NAMED.match(
            piece.strip()
        )  # newer models: [TOOL_CALLS]name[ARGS]{…}, one mark a call
        value = _parse(piece)
        if named is not None:
            value = {"name": named[1], "arguments": _parse(piece.strip()[named.end() :])}
        calls = _calls_of(value, None)
        if not calls:
            return text, []
        found += calls
    return before, found


def _bare(text: str, names: Collection[str]) -> tuple[str, list[Found]]:
    body = text.strip().removeprefix(PYTHON).strip()
    if body[:1] not in ("{", "["):
        return text, []
    found = _calls_of(_parse(body), names)
    if not found and body.startswith("{"):  # Llama 3 puts several after one another
        found = _calls_of(_parse_several(body), names)
    return ("", found) if found else (text, [])


def _fenced(text: str, names: Collection[str]) -> tuple[str, list[Found]]:
    found: list[Found] = []
    rest, end = "", 0
    for match in FENCE.finditer(text):
        calls = _calls_of(_parse(match[1]), names)
        if calls:
            found += calls
            rest += text[end : match.start()]
            end = match.end()
    return rest + text[end:], found


def _calls_of(value: object, names: Collection[str] | None) -> list[Found]:
    """The calls that a JSON value is; none unless all of it is calls."""
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    found = [call for item in items if (call := _call_of(item, names)) is not None]
    return found if len(found) == len(items) else []


def _call_of(value: object, names: Collection[str] | None) -> Found | None:
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    if isinstance(fields.get("function"), dict):  # OpenAI's own form
        fields = cast("dict[str, Any]", fields["function"])
    name = fields.get("name", fields.get("function"))
    if not isinstance(name, str) or not name or (names is not None and name not in names):
        return None
    key = next((key for key in ("arguments", "parameters") if key in fields), None)
    if key is None and len(fields) > 1:
        return None
    arguments: object = {} if key is None else fields[key]
    if isinstance(arguments, str):
        arguments = _parse(arguments or "{}")
    return (
        (name, _write(cast("dict[str, Any]", arguments))) if isinstance(arguments, dict) else None
    )


def _write(arguments: dict[str, Any]) -> str:
    # JSON may spell half of a surrogate pair, which no file or socket takes later.
    text = json.dumps(arguments, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _parse(text: str) -> object:
    """The JSON value that a text is; None if it is none."""
    try:
        return json.loads(text.strip(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _parse_several(text: str) -> list[object]:
    """JSON values one after another, with `;`, commas or nothing between them; none if there is more."""
    decoder, values, at = json.JSONDecoder(parse_constant=_refuse), list[object](), 0
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            while at < len(text) and (text[at].isspace() or text[at] in ";,"):
                at += 1
    except (ValueError, RecursionError):
        return []
    return values


def _doubtful(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of the text that may begin one of the marks."""
    return max(
        (
            length
            for mark in marks
            for length in range(1, min(len(mark), len(text) + 1))
            if text.endswith(mark[:length])
        ),
        default=0,
    )
