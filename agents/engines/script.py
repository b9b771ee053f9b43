"""What a scripted engine says: the line for a request, as the request's sampling lets it be said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

from ...retrieval import InputError
from .base import OptionScore, Reply, Request, TokenLogprob, ToolCall, Usage

__all__ = ["EVERY", "Line", "Script", "find_line", "key_of", "read_script", "say", "score"]

EVERY = "*"
"""The key of the line for every question that has none of its own."""
SAMPLE = re.compile(r"[#/:](\d+)$")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a script says where a text is not all."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""


Script: TypeAlias = Callable[[Request], str | Line] | Mapping[str, str | Sequence[str]]
"""A function of the request, or texts by question id; a list of texts is taken by sample."""


def key_of(request: Request) -> str:
    """The question's id, or the request's own where it is about no question."""
    return request.id if request.question_id is None else request.question_id


def find_line(script: Script, request: Request) -> str | Line | None:
    """What the script says to this request; None if it has no line for it."""
    if callable(script):
        return script(request)
    line = script.get(key_of(request), script.get(EVERY))
    if line is None or isinstance(line, str):
        return line
    return line[_sample(request) % len(line)]


def say(request: Request, line: str | Line, *, prompt: int, room: int | None) -> Reply:
    """The line as far as stop strings, `max_tokens` and the context window let it go.

    A call's tokens are the words of its arguments and its name; calls and reasoning are never cut.

    Args:
        request: What was asked.
        line: What the script says to it.
        prompt: Tokens of the request.
        room: Tokens that the context window leaves for the answer; None for no limit.
    """
    sampling = request.sampling
    whole = line if isinstance(line, Line) else Line(text=line)
    line = whole.text
    for stop in sampling.stop:
        line = line.split(stop, 1)[0]
    words = line.split()
    allowed = sampling.max_tokens if room is None else min(sampling.max_tokens, room)
    cut = len(words) > allowed
    if cut:
        words = words[:allowed]
        line = " ".join(words)
    reply = Reply(
        request_id=request.id,
        text=line,
        tool_calls=whole.tool_calls,
        reasoning=whole.reasoning,
        finish="length" if cut else "stop",
        usage=Usage(prompt_tokens=prompt, completion_tokens=len(words) + _count_unsaid(whole)),
    )
    if sampling.logprobs is None:
        return reply
    return replace(reply, logprobs=tuple(TokenLogprob(token=word, logprob=0.0) for word in words))


def _count_unsaid(line: Line) -> int:
    calls = sum(1 + len(call["arguments"].split()) for call in line.tool_calls)
    return calls + len(line.reasoning.split())


def score(request: Request, line: str | Line, *, prompt: int) -> Reply:
    """Nine tenths of the probability for the option that the line names."""
    line = line.text if isinstance(line, Line) else line
    options = [option.strip() for option in request.options]
    letters = LETTERS[: len(options)]
    named = line.strip()
    likeliest: int | None = None
    if named in options:
        likeliest = options.index(named)
    elif len(named) == 1 and named in letters:
        likeliest = letters.index(named)
    low = 1 / len(options) if likeliest is None else 0.1 / max(1, len(options) - 1)
    scores = tuple(
        OptionScore(
            logprob=math.log(0.9 if place == likeliest else low), tokens=len(option.split()) or 1
        )
        for place, option in enumerate(options)
    )
    return Reply(request_id=request.id, scores=scores, usage=Usage(prompt_tokens=prompt))


def read_script(path: Path) -> Mapping[str, str | Sequence[str]]:
    """Read a JSON object of question ids and texts, or lists of texts.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"no script at {path}: give a JSON file of question ids and texts")
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the script {path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"the script {path} must be a JSON object: question id to text or texts")
    for key, line in cast("dict[str, object]", content).items():
        texts = cast("list[object]", line) if isinstance(line, list) else [line]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the script {path} must give a text or a list of texts for {key!r}")
    return cast("dict[str, str | list[str]]", content)


def _sample(request: Request) -> int:
    found = SAMPLE.search(request.id.removeprefix(request.question_id or ""))
    return int(found[1]) if found else 0
