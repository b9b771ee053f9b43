"""What message lists ask of a panel, and one pass of the graph that answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from langchain_core.messages import AIMessage, BaseMessage

from ...agents.engines import Message, Reply
from ...graph import Resources, Solution, run_batch
from ...graph.closing import NO_SPEAKER, Closing, can_close, choose_speaker, close_all
from ...retrieval import InputError, Question
from ..conversation import read_conversation
from ..limits import PANEL_PREFIX
from ..panel_answer import Form, PanelAnswer, cut_at, tell_answer, tell_details
from .messages import PROVIDER, to_message, to_turns
from .thinking import Thinking
from .wishes import FORMS, read_most_calls, read_schema, read_tools

__all__ = ["Asked", "PanelFailed", "answer_all", "name_panel", "read_call"]

CALL_KEYS = ("options", "kind", "format", *FORMS, "stream")
"""What a call may say besides its messages and `stop`."""


class PanelFailed(RuntimeError):
    """A panel gave no answer at all; the message says of each expert why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One message list, as a question and as what the aggregator may have to say to it."""

    turns: tuple[Message, ...]
    question: Question
    form: Form = "text"
    stops: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "auto"
    most_calls: int | None = None
    json_schema: Mapping[str, Any] | None = None

    @property
    def closes(self) -> bool:
        """Whether the aggregator has the last word."""
        return self.json_schema is not None or (bool(self.tools) and self.tool_choice != "none")


def read_call(
    messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: Mapping[str, Any]
) -> Asked:
    """What a call asks.

    Args:
        messages: A conversation, see `apps/conversation.py`.
        stop: Strings that end what is told.
        kwargs: Of the call, or bound to the model: `options` and `kind` of the question, `format`, and what
            `bind_tools`, `with_structured_output` and LangChain's agents bind, see `wishes.FORMS`.

    Raises:
        InputError: an argument that is not known here, or that cannot be honoured.
    """
    unknown = sorted(kwargs.keys() - set(CALL_KEYS))
    if unknown:
        raise InputError(
            f"a panel does not know {', '.join(unknown)}; a call may say {', '.join(CALL_KEYS)}"
        )
    form = kwargs.get("format") or "text"
    if form not in get_args(Form):
        raise InputError(f"format is {form!r}; it must be one of {', '.join(get_args(Form))}")
    turns = to_turns(messages)
    tools, choice = read_tools(kwargs)
    return Asked(
        turns=turns,
        question=read_conversation(
            turns,
            options=kwargs.get("options") or (),
            kind=kwargs.get("kind"),
            speakers={at: message.name for at, message in enumerate(messages) if message.name},
        ),
        form=form,
        stops=tuple(stop or ()),
        tools=tools,
        tool_choice=choice,
        most_calls=read_most_calls(kwargs),
        json_schema=read_schema(kwargs),
    )


async def answer_all(asked: Sequence[Asked], resources: Resources) -> list[AIMessage | Exception]:
    """Answer message lists in one pass of the graph, and one call to whoever closes them.

    The same question asked twice is answered once.

    Returns:
        For each a message, or the error with which it ends.

    Raises:
        InputError: one of them needs an aggregator, and there is none.
    """
    if not can_close(resources) and any(one.closes for one in asked):
        raise InputError(NO_SPEAKER)
    questions = {one.question.id: one.question for one in asked}
    solutions = await run_batch(list(questions.values()), resources)
    by_id = {solution.question.id: solution for solution in solutions}
    closing = [one for one in asked if one.closes]
    replies = await close_all(
        resources, [_to_closing(one, by_id[one.question.id], resources) for one in closing]
    )
    closed = dict(zip(map(id, closing), replies, strict=True))
    return [_tell(one, by_id[one.question.id], closed.get(id(one)), resources) for one in asked]


def name_panel(policy: str) -> str:
    """The name under which a panel's messages, costs and traces are known."""
    return f"{PANEL_PREFIX}{policy}"


def _to_closing(asked: Asked, solution: Solution, resources: Resources) -> Closing:
    sampling = None
    if asked.json_schema is not None:
        speaker = choose_speaker(resources, solution.skills)
        own = resources.pool.catalog[speaker].sampling.to_sampling()
        sampling = replace(own, json_schema=asked.json_schema)
    return Closing(
        turns=asked.turns,
        solution=solution,
        tools=asked.tools if asked.tool_choice != "none" else (),
        tool_choice=asked.tool_choice,
        sampling=sampling,
    )


def _tell(
    asked: Asked, solution: Solution, closing: Reply | None, resources: Resources
) -> AIMessage | Exception:
    speaker = None
    if closing is not None:
        speaker = choose_speaker(resources, solution.skills)
        if closing.failure is not None:
            return PanelFailed(
                f'"{speaker}" was to have the last word and failed: {closing.failure.message}'
            )
        closing = replace(closing, tool_calls=closing.tool_calls[: asked.most_calls])
    answer = PanelAnswer(solution=solution, speaker=speaker, closing=closing)
    if answer.is_lost:
        missing: Mapping[str, str] = solution.row["missing"]
        told = "; ".join(f"{expert}: {why}" for expert, why in missing.items())
        return PanelFailed(f"every expert failed: {told or 'nobody was asked'}")
    text, finish = tell_answer(answer, resources.pool.catalog, asked.form)
    name = name_panel(resources.policy)
    said = closing or Reply(request_id=solution.question.id)
    thought = said.reasoning or Thinking.split(said.text)[0]
    text = cut_at(text, asked.stops)
    message = to_message(
        replace(said, text=text, reasoning=thought, usage=answer.usage), model_name=name
    )
    message.response_metadata |= {
        "model_name": name,
        "model_provider": PROVIDER,
        "finish_reason": finish,
        "expertmix": tell_details(answer),
    }
    return message
