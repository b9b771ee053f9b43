"""Messages and details in OpenAI's shapes, out of what experts and panels said."""

from __future__ import annotations

from collections.abc import Sequence

from ...agents.engines import ToolCall
from .. import panel_answer
from ..panel_answer import PanelAnswer
from .errors import clean
from .replies import AnswerMessage, CalledFunction, FunctionCall, PanelDetails

__all__ = ["clean_calls", "tell_calls", "tell_details", "tell_message"]


def tell_message(
    content: str, calls: Sequence[ToolCall] = (), reasoning: str = ""
) -> AnswerMessage:
    """A message; one that only asks for calls has no content."""
    return AnswerMessage(
        content=None if calls and not content else content,
        tool_calls=tell_calls(calls) if calls else None,
        reasoning_content=clean(reasoning) or None,
    )


def tell_calls(calls: Sequence[ToolCall]) -> list[FunctionCall]:
    """The calls that are asked for."""
    return [
        FunctionCall(
            id=call["id"],
            function=CalledFunction(name=call["name"], arguments=call["arguments"]),
        )
        for call in calls
    ]


def clean_calls(calls: Sequence[ToolCall], *, most: int | None = None) -> tuple[ToolCall, ...]:
    """Calls in text that JSON can carry, at most so many of them."""
    return tuple(
        ToolCall(id=clean(call["id"]), name=clean(call["name"]), arguments=clean(call["arguments"]))
        for call in calls[:most]
    )


def tell_details(answer: PanelAnswer) -> PanelDetails:
    """How a panel's answer came about. Skills and reasons may quote a model."""
    told = panel_answer.tell_details(answer)
    skills = {clean(skill): share for skill, share in told["skills"].items()}
    experts = [{**row, "reason": clean(row["reason"])} for row in told["experts"]]
    return PanelDetails.model_validate({**told, "skills": skills, "experts": experts})
