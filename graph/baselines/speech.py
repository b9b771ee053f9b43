"""How an agent is asked in a conversation, in its expert's own style.

Experts that write are shown what was said before and write again. Experts that choose the likeliest
option are shown it before the bare question and choose again: they take part without a word of
their own. What other models said is quoted data, as for an aggregator (`agents/drafts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ...agents import (
    Answer,
    build_aggregation,
    build_messages,
    build_requests,
    derive_seed,
    read_reply,
)
from ...agents.drafts import clean_draft, quote_drafts
from ...agents.engines import Message, Reply, Request, Sampling
from ...agents.prompt import fill_prompt
from ...retrieval import Question
from ..state import Resources
from .turns import Seat, Turn, answers_of

__all__ = [
    "SPREAD",
    "ask_again",
    "ask_first",
    "ask_in_words",
    "chooses",
    "merge",
    "plain_words",
    "read_turn",
]

SPREAD = 0.7
"""Temperature where one expert is asked several times: all baselines of Symbolic-MoE run at it
(symbolic-moe.md §1.7), Self-Consistency, Self-Refine and Mixture-of-Agents use it in their papers."""

Exchange = tuple[str, str]
"""What an agent said, and what it was told then."""


def ask_first(context: Resources, question: Question, seat: Seat, cast: Sequence[str]) -> Request:
    """The plain question, as a panel asks it: equal requests are one in the answer store.

    Args:
        context: The run's.
        question: What is asked.
        seat: Who is asked.
        cast: The expert of each agent. One that sits there several times draws different answers, at
            `SPREAD` at least.
    """
    spec = context.pool.catalog[seat.expert]
    [request] = build_requests(
        [question], sampling=_sampling(context, seat, cast), style=context.style or spec.style
    )
    nth = list(cast[: seat.agent]).count(seat.expert)
    seed = derive_seed(context.seed, question.id, nth)
    sampling = replace(request.sampling, seed=seed)
    return replace(request, id=_name(question, seat), sampling=sampling)


def ask_again(
    context: Resources,
    question: Question,
    seat: Seat,
    cast: Sequence[str],
    *,
    round_: int,
    words: str,
    history: Sequence[Exchange] = (),
) -> Request:
    """The question once more, with `words` about what was said.

    Args:
        context: The run's.
        question: What is asked.
        seat: Who is asked.
        cast: The expert of each agent.
        round_: Number of the round, for the seed.
        words: For a writer the next user turn; for a chooser they stand before the question.
        history: The agent's own earlier exchanges, oldest first; the last one was told `words`, and
            without any the words stand before the question for writers too.
    """
    spec = context.pool.catalog[seat.expert]
    style = context.style or spec.style
    request = ask_first(context, question, seat, cast)
    messages = list(request.messages)
    asked = messages[0]
    if history and not request.options:
        for said, told in history:
            reply: Message = {"role": "assistant", "content": clean_draft(said) or "(no answer)"}
            messages += [reply, {"role": "user", "content": told}]
    else:
        first: Message = {"role": "user", "content": f"{words}\n\n{asked['content']}"}
        messages[0] = first
    seed = derive_seed(context.seed, "talk", question.id, round_, seat.agent, style)
    sampling = replace(request.sampling, seed=seed)
    return replace(request, messages=tuple(messages), sampling=sampling)


def chooses(context: Resources, question: Question, seat: Seat) -> bool:
    """Whether the agent's expert scores the question's options instead of writing."""
    style = context.style or context.pool.catalog[seat.expert].style
    return style != "reason" and bool(question.options)


def ask_in_words(
    context: Resources, question: Question, seat: Seat, *, round_: int, words: str
) -> Request:
    """Something about the question that can only be answered in words, whatever the expert's style."""
    sampling = context.pool.catalog[seat.expert].sampling.to_sampling()
    warm = replace(
        sampling,
        temperature=max(sampling.temperature, SPREAD),
        seed=derive_seed(context.seed, "talk", question.id, round_, seat.agent, seat.kind),
    )
    turn: Message = {"role": "user", "content": words}
    return Request(
        id=_name(question, seat), messages=(turn,), sampling=warm, question_id=question.id
    )


def merge(
    context: Resources,
    question: Question,
    seat: Seat,
    turns: Sequence[Turn],
    *,
    cast: Sequence[str] = (),
    round_: int = 0,
) -> Request:
    """Have an expert read the drafts and decide, as a panel's aggregator does.

    A chooser sees the drafts before the bare question. Without any draft the question is asked alone.
    """
    sampling = _sampling(context, seat, cast)
    if not chooses(context, question, seat):
        seed = derive_seed(context.seed, "merge", round_, seat.agent)
        request = build_aggregation(question, answers_of(turns), sampling=sampling, seed=seed)
        return replace(request, id=_name(question, seat), question=question)
    fence, quoted = quote_drafts(question, answers_of(turns), context.seed)
    if not quoted:
        return ask_first(context, question, seat, cast)
    words = fill_prompt("talk-drafts", fence=fence, drafts=quoted)
    return ask_again(context, question, seat, cast, round_=round_, words=words)


def read_turn(reply: Reply, question: Question, seat: Seat, round_: int) -> Turn:
    """What an agent's reply says."""
    if seat.kind == "feedback":
        answer = Answer(
            question_id=question.id,
            expert=seat.expert,
            text=reply.text,
            usage=reply.usage,
            error=None if reply.failure is None else reply.failure.message,
        )
    else:
        answer = read_reply(reply, question, seat.expert)
    chance = None
    if reply.scores:
        sums = [score.logprob for score in reply.scores]
        chance = 1 / math.fsum(math.exp(value - max(sums)) for value in sums)
    return Turn(
        question_id=question.id,
        expert=seat.expert,
        agent=seat.agent,
        round=round_,
        kind=seat.kind,
        merges=seat.merges,
        answer=answer.answer,
        text=answer.text,
        chance=chance,
        usage=answer.usage,
        error=answer.error,
        details=answer.details,
    )


def plain_words(question: Question) -> str:
    """The question as a writer is asked it."""
    return build_messages(question)[0]["content"]


def _sampling(context: Resources, seat: Seat, cast: Sequence[str]) -> Sampling:
    sampling = context.pool.catalog[seat.expert].sampling.to_sampling()
    if list(cast).count(seat.expert) > 1:
        return replace(sampling, temperature=max(sampling.temperature, SPREAD))
    return sampling


def _name(question: Question, seat: Seat) -> str:
    return f"{question.id}#{seat.agent}"
