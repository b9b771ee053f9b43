"""Chats as harnesses give them, as the turns that experts take, and as one question for a panel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...agents.engines import Message
from ...retrieval import InputError

__all__ = ["join_turns", "read_turns"]

ROLES = ("system", "user", "assistant")
LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}


def read_turns(content: str | Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Turns as a harness writes them: a list of `{role, content}`, or that list as JSON.

    Raises:
        InputError: something else, a role that experts do not know, or content that is not text.
    """
    try:
        turns: object = json.loads(content) if isinstance(content, str) else content
    except ValueError as error:
        raise InputError(f"a chat must be a JSON list of turns ({error})") from None
    if not isinstance(turns, list | tuple) or not turns:
        raise InputError("a chat must be a list of at least one turn")
    return tuple(_read_turn(turn) for turn in cast("Sequence[object]", turns))


def join_turns(turns: Sequence[Message]) -> str:
    """A chat as the text of one question: panels are asked questions, not chats.

    What was said before stays in it, with who said it as soon as an assistant spoke.
    """
    if all(turn["role"] != "assistant" for turn in turns):
        return "\n\n".join(turn["content"] for turn in turns)
    return "\n\n".join(f"{LABELS[turn['role']]}: {turn['content']}" for turn in turns)


def _read_turn(turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise InputError(f"a turn of a chat must have a role and content, got {str(turn)[:60]!r}")
    told = cast("Mapping[str, object]", turn)
    role, content = told.get("role"), told.get("content")
    if role not in ROLES:
        raise InputError(f"a turn's role must be one of {', '.join(ROLES)}, got {role!r}")
    if not isinstance(content, str):
        raise InputError("a turn's content must be text: experts see no pictures and hear no sound")
    return Message(role=cast("Any", role), content=content)
