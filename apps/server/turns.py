"""Turns of a conversation, as a body has them: text, calls of tools and what they gave, and nothing else."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "AssistantTurn",
    "CallPart",
    "CalledPart",
    "DeveloperTurn",
    "Strict",
    "SystemTurn",
    "Text",
    "TextPart",
    "ToolTurn",
    "Turn",
    "UserTurn",
    "insist_on_text",
]

T = TypeVar("T")


def insist_on_text(value: T) -> T:
    """Refuse what JSON in UTF-8 cannot carry: half of a surrogate pair, no number, or endless nesting."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("it holds something that is no text in UTF-8") from None
    return value


Text = Annotated[str, AfterValidator(insist_on_text)]


class Strict(BaseModel):
    """What nothing unknown may be in, and where a text is no number."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class TextPart(Strict):
    """A piece of a turn."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(min_length=1)]


class SystemTurn(Strict):
    """An instruction."""

    role: Literal["system"]
    content: Content
    name: Text | None = None


class DeveloperTurn(Strict):
    """An instruction, by its newer name."""

    role: Literal["developer"]
    content: Content
    name: Text | None = None


class UserTurn(Strict):
    """What a person says."""

    role: Literal["user"]
    content: Content
    name: Text | None = None


class CalledPart(Strict):
    """The tool of a call, and what it was called with."""

    name: Text
    arguments: Text
    parsed_arguments: Any = None
    """Ignored: OpenAI's own helpers add it to what they send back."""


class CallPart(Strict):
    """A call that was asked for earlier."""

    id: Text
    type: Literal["function"]
    function: CalledPart
    index: int | None = None
    """Ignored, likewise."""


class AssistantTurn(Strict):
    """What was answered earlier, as clients send it back."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Text | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[CallPart] | None = None
    reasoning_content: str | None = None
    """Ignored: what a model once thought is not shown to it again."""
    parsed: Any = None
    """Ignored: OpenAI's own helpers add it."""


class ToolTurn(Strict):
    """What a call gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Text
    name: Text | None = None


Turn = Annotated[
    SystemTurn | DeveloperTurn | UserTurn | AssistantTurn | ToolTurn, Field(discriminator="role")
]
