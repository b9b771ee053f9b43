"""From a conversation in a body to what is asked.

For an expert, the turns are the messages, as they are. For the panel, a conversation becomes one question by
the rules of `apps/conversation.py`; developer turns are system turns by their newer name.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...agents.engines import Message, ToolCall
from ...retrieval import InputError, Question
from ..conversation import read_conversation
from .errors import ApiError
from .requests import PanelRequest
from .turns import AssistantTurn, TextPart, ToolTurn, Turn

__all__ = ["read_question", "to_messages"]


def to_messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The turns as an engine reads them. Participants' names are not part of them."""
    return tuple(_to_message(turn) for turn in turns)


def read_question(body: PanelRequest) -> Question:
    """The question that a conversation asks.

    Raises:
        ApiError: no user turn says anything, or the options make no question.
    """
    asked, turns = body.expertmix, to_messages(body.messages)
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in turns):
        raise ApiError(400, "no user turn asks anything", param="messages")
    try:
        return read_conversation(
            turns,
            options=(asked.options or ()) if asked is not None else (),
            kind=None if asked is None else asked.kind,
            name=None if asked is None else asked.id,
            speakers={at: turn.name for at, turn in enumerate(body.messages) if turn.name},
        )
    except InputError as error:
        raise ApiError(400, str(error), param="expertmix") from None


def _to_message(turn: Turn) -> Message:
    message: Message = {
        "role": "system" if turn.role == "developer" else turn.role,
        "content": _text_of(turn.content),
    }
    if isinstance(turn, AssistantTurn) and turn.tool_calls:
        message["tool_calls"] = [
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in turn.tool_calls
        ]
    if isinstance(turn, ToolTurn):
        message["tool_call_id"] = turn.tool_call_id
    return message


def _text_of(content: str | Sequence[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)
