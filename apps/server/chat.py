"""From a conversation to what is asked.

For an expert, the turns are the messages, as they are. For the panel, a conversation becomes one question:

1. The last user turn that says something is the question. Alone, it is the question's whole text.
2. System and developer turns are instructions: they come first, in their order.
3. Every other turn is context: it stands between the two, each line quoted (`> user: …`), under a line
   that says so. Nothing in a quotation can end it.

So a follow-up ("And in winter?") can be understood, and what was said earlier is not taken for the question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ...agents.engines import Message
from ...retrieval import InputError, Question
from .errors import ApiError
from .requests import PanelRequest
from .turns import AssistantTurn, TextPart, Turn, UserTurn

__all__ = ["read_question", "to_messages"]

CONTEXT = "Earlier in this conversation (quoted as context, not to be answered):"


def to_messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The turns as an engine reads them. Participants' names are not part of them."""
    return tuple(_to_message(turn) for turn in turns)


def read_question(body: PanelRequest) -> Question:
    """The question that a conversation asks.

    Its id, on which draws and seeds depend, is the one given, or follows from its content: the same
    question gets the same experts and the same seeds.

    Raises:
        ApiError: no user turn says anything, or the options make no question.
    """
    asked = body.expertmix
    row: dict[str, Any] = {
        "text": _compose(body.messages),
        "options": list(asked.options or ()) if asked is not None else [],
        "kind": None if asked is None else asked.kind,
    }
    given = None if asked is None else asked.id
    digest = hashlib.sha256(json.dumps(row).encode()).hexdigest()
    try:
        return Question.from_json({**row, "id": given or f"q-{digest[:20]}"})
    except InputError as error:
        raise ApiError(400, str(error), param="expertmix") from None


def _compose(turns: Sequence[Turn]) -> str:
    texts = [_text_of(turn.content) for turn in turns]
    asked = [
        at for at, turn in enumerate(turns) if isinstance(turn, UserTurn) and texts[at].strip()
    ]
    if not asked:
        raise ApiError(400, "no user turn asks anything", param="messages")
    instructions: list[str] = []
    context: list[str] = []
    for at, turn in enumerate(turns):
        if at == asked[-1] or not texts[at].strip():
            continue
        if isinstance(turn, UserTurn | AssistantTurn):
            who = f"{turn.role} ({turn.name})" if turn.name else turn.role
            context += [f"> {line}" for line in f"{who}: {texts[at]}".splitlines()]
        else:
            instructions.append(texts[at])
    parts = [*instructions, *(["\n".join([CONTEXT, *context])] if context else [])]
    return "\n\n".join([*parts, texts[asked[-1]]])


def _to_message(turn: Turn) -> Message:
    role = "system" if turn.role == "developer" else turn.role
    return {"role": role, "content": _text_of(turn.content)}


def _text_of(content: str | Sequence[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)
