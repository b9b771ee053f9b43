"""A conversation as one question for a panel.

A panel is asked questions, not conversations. Of a conversation's turns

1. the last user turn that says something is the question. Alone, it is the question's whole text;
2. system turns are instructions: they come first, in their order;
3. every other turn is context: it stands between the two, each line quoted (`> user: …`), under a line that
   says so. Nothing in a quotation can end it. Calls of tools are quoted as `> assistant calls NAME: ARGUMENTS`
   and what they gave as `> tool NAME: …`, without the marks by which chat templates tell turns apart: a tool
   may bring words of strangers.

So a follow-up ("And in winter?") can be understood, and neither what was said earlier nor what a tool found is
taken for the question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

from ..agents.drafts import drop_marks
from ..agents.engines import Message
from ..graph.closing import find_asked
from ..retrieval import Question

__all__ = ["CONTEXT", "compose_text", "read_conversation"]

CONTEXT = "Earlier in this conversation (quoted as context, not to be answered):"


def read_conversation(
    turns: Sequence[Message],
    *,
    options: Sequence[str] = (),
    kind: str | None = None,
    name: str | None = None,
    speakers: Mapping[int, str] | None = None,
) -> Question:
    """The question that a conversation asks.

    Args:
        turns: The conversation.
        options: Choices, without their letters.
        kind: `choice`, `number` or `text`; by default it follows from the options.
        name: The question's id, on which draws and seeds depend. By default it follows from the content:
            the same question gets the same experts and the same seeds.
        speakers: Names of participants, by the place of their turn.

    Raises:
        InputError: no user turn says anything, or the options make no question.
    """
    row = {"text": compose_text(turns, speakers), "options": list(options), "kind": kind}
    digest = hashlib.sha256(json.dumps(row).encode()).hexdigest()
    return Question.from_json({**row, "id": name or f"q-{digest[:20]}"})


def compose_text(turns: Sequence[Message], speakers: Mapping[int, str] | None = None) -> str:
    """The text of that question.

    Raises:
        InputError: no user turn says anything.
    """
    asked = find_asked(turns)
    instructions: list[str] = []
    context: list[str] = []
    called: dict[str, str] = {}
    for at, turn in enumerate(turns):
        called |= {call["id"]: call["name"] for call in turn.get("tool_calls", ())}
        if at == asked:
            continue
        if turn["role"] == "system":
            instructions += [turn["content"]] if turn["content"].strip() else []
            continue
        for said in _tell_turn(turn, (speakers or {}).get(at), called):
            context += [f"> {line}" for line in said.splitlines()]
    parts = [*instructions, *(["\n".join([CONTEXT, *context])] if context else [])]
    return "\n\n".join([*parts, turns[asked]["content"]])


def _tell_turn(turn: Message, speaker: str | None, called: Mapping[str, str]) -> Iterator[str]:
    """What a turn says, each part with who says it."""
    if turn["role"] == "tool":
        tool = called.get(turn.get("tool_call_id", "")) or speaker or ""
        yield drop_marks(f"tool {tool}".strip() + f": {turn['content']}")
        return
    if turn["content"].strip():
        who = f"{turn['role']} ({speaker})" if speaker else turn["role"]
        yield f"{who}: {turn['content']}"
    for call in turn.get("tool_calls", ()):
        yield drop_marks(f"{turn['role']} calls {call['name']}: {call['arguments']}")
