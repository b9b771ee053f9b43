"""The last word of a panel, where the caller brought tools: the aggregator speaks, and may ask for a call.

The experts of a panel are asked questions. They never see a caller's tools and never call anything, so that
no single one of them can act. After the verdict the *speaker*, who is the panel's aggregator, is asked
with the caller's own conversation and tools. The panel's answers stand in the last user turn that says
something, quoted as data between fences that they cannot close (`agents/drafts.py`).

When results of tools come back, the conversation ends in `tool` turns. The panel is then asked again, with
the results as quoted context (`apps/conversation.py`), and the speaker closes again; nothing is remembered
between the two. Where nobody on the panel answered, the speaker is told so and answers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..agents import derive_seed
from ..agents.drafts import clean_draft, quote_drafts
from ..agents.engines import Failure, Message, Reply, Request, Sampling
from ..agents.prompt import fill_prompt
from ..retrieval import InputError
from .panels import restore_answer
from .result import Solution
from .state import Resources

__all__ = [
    "NO_SPEAKER",
    "Closing",
    "build_closing",
    "can_close",
    "choose_speaker",
    "close_all",
    "close_with_tools",
    "find_asked",
]

NO_SPEAKER = (
    "tools need an aggregator: experts never see a caller's tools, and this panel has nobody else to speak; "
    "name one with `aggregator` in the pool file or in the panel's settings"
)
"""Why a panel refuses tools, and what to do."""
STAGE = "close"
"""What the ledger counts these calls under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """A conversation that wants the speaker's word, with what the panel came to."""

    turns: tuple[Message, ...]
    """The caller's conversation, as the speaker's engine takes it."""
    solution: Solution
    """The panel's, to the question that the conversation asks."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """As `Request.tools`."""
    tool_choice: str = "auto"
    """As `Request.tool_choice`."""
    sampling: Sampling | None = None
    """None takes the speaker's own, out of the pool file."""


def can_close(resources: Resources) -> bool:
    """Whether a panel has somebody to speak for it."""
    return resources.aggregator is not None or resources.aggregators is not None


def choose_speaker(resources: Resources, skills: Mapping[str, float]) -> str:
    """The alias of whoever speaks for a panel: its aggregator, or the best one at these skills.

    Raises:
        InputError: the panel has no aggregator.
    """
    speaker = resources.choose_aggregator(skills)
    if speaker is None:
        raise InputError(NO_SPEAKER)
    return speaker


async def close_with_tools(
    resources: Resources,
    turns: Sequence[Message],
    solution: Solution,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str = "auto",
    sampling: Sampling | None = None,
) -> Reply:
    """Ask the speaker for the last word on one conversation. Arguments as in `Closing`.

    Returns:
        Its text and tool calls, or the failure that explains their absence.

    Raises:
        InputError: the panel has no aggregator, or no user turn says anything.
    """
    closing = Closing(
        turns=tuple(turns),
        solution=solution,
        tools=tuple(tools),
        tool_choice=tool_choice,
        sampling=sampling,
    )
    [reply] = await close_all(resources, [closing])
    return reply


async def close_all(resources: Resources, closings: Sequence[Closing]) -> list[Reply]:
    """Ask for the last word on many conversations: one call to each speaker, replies in their order.

    Raises:
        InputError: as `close_with_tools`.
    """
    batches: dict[str, list[tuple[int, Request]]] = {}
    for at, closing in enumerate(closings):
        speaker = choose_speaker(resources, closing.solution.skills)
        batches.setdefault(speaker, []).append((at, build_closing(resources, closing, number=at)))
    replies: dict[int, Reply] = {}
    for speaker in resources.pool.order(batches):
        places = [at for at, _ in batches[speaker]]
        requests = [request for _, request in batches[speaker]]
        try:
            given = await resources.pool.generate(speaker, requests, stage=STAGE)
        except Exception as error:  # what one speaker cannot do costs the others nothing
            failure = Failure(kind="engine", message=f"{type(error).__name__}: {error}")
            given = [Reply.failed(request, failure) for request in requests]
        replies |= zip(places, given, strict=True)
    return [replies[at] for at in range(len(closings))]


def build_closing(resources: Resources, closing: Closing, *, number: int = 0) -> Request:
    """The request by which the speaker is asked.

    Drafts, verdict and question share the one user turn: a system turn would give them a weight that they
    must not have, and a further turn after the results of tools is what many chat templates refuse.

    Args:
        resources: The panel.
        closing: What is closed.
        number: Tells it from others of the same question in one call.

    Raises:
        InputError: as `close_with_tools`.
    """
    solution, question = closing.solution, closing.solution.question
    sampling = closing.sampling
    if sampling is None:
        speaker = choose_speaker(resources, solution.skills)
        sampling = resources.pool.catalog[speaker].sampling.to_sampling()
    turns = list(closing.turns)
    at = find_asked(turns)
    content = _quote_panel(solution, turns[at]["content"], resources.seed)
    turns[at] = {**turns[at], "content": content}
    seed = derive_seed(resources.seed, STAGE, question.id)
    return Request(
        id=f"{question.id}#{STAGE}-{number}",
        messages=tuple(turns),
        sampling=replace(sampling, seed=seed),
        tools=closing.tools,
        tool_choice=closing.tool_choice,
        question_id=question.id,
    )


def find_asked(turns: Sequence[Message]) -> int:
    """The place of the turn that asks: the last of the user's that says something.

    Raises:
        InputError: there is none.
    """
    for at in range(len(turns) - 1, -1, -1):
        if turns[at]["role"] == "user" and turns[at]["content"].strip():
            return at
    raise InputError("no user turn asks anything")


def _quote_panel(solution: Solution, asked: str, seed: int) -> str:
    """What was asked, behind the drafts and the verdict of those who were asked before."""
    question = solution.question
    options = map("({}) {}".format, question.letters, question.options)
    asked = "\n".join([asked, *options])
    fence, drafts = quote_drafts(question, map(restore_answer, solution.experts), seed)
    if not drafts:
        return fill_prompt("close-alone", asked=asked)
    verdict = _tell_verdict(solution, fence)
    return fill_prompt("close", fence=fence, drafts=drafts, verdict=verdict, asked=asked)


def _tell_verdict(solution: Solution, fence: str) -> str:
    """What the panel settles on: it was read out of drafts, so it is quoted like one."""
    answer, question = solution.answer, solution.question
    if answer is None:
        return "Together they settle on nothing."
    if question.options:
        answer = f"({answer}) {question.options[question.letters.index(answer)]}"
    share = f"{solution.confidence:.0%}"
    sure = f"{share} sure" if solution.row["chances"] else f"{share} of them"
    return f"Together they settle on ({sure}):\n{fence}\n{clean_draft(answer)}\n{fence}"
