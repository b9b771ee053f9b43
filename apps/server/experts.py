"""Asking one expert what a client sent, whole or piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...agents import Pool, derive_seed
from ...agents.engines import Reply, Request, Sampling
from ...agents.pool import ExpertSpec
from .chat import to_messages
from .errors import clean, tell_failure
from .rendering import clean_calls
from .requests import ExpertRequest, ObjectFormat, SchemaFormat

__all__ = ["Piece", "ask_expert", "build_expert_requests", "stream_expert"]

ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of one of the answers; the last one of each has its whole reply."""

    index: int
    text: str = ""
    reasoning: str = ""
    reply: Reply | None = None


def build_expert_requests(body: ExpertRequest, spec: ExpertSpec, name: str) -> list[Request]:
    """One request for each answer that is wanted.

    What the body leaves open is as the pool file says. The first answer has the body's seed, the others
    have seeds that follow from it, so that they differ and can be had again.

    Args:
        body: What was sent.
        spec: The expert.
        name: Begins the requests' ids.
    """
    sampling = _read_sampling(body, spec)
    messages = to_messages(body.messages)
    seed = body.seed
    seeds = [
        seed,
        *(derive_seed(seed, at) if seed is not None else None for at in range(1, body.n or 1)),
    ]
    return [
        Request(
            id=f"{name}#{at}",
            messages=messages,
            sampling=replace(sampling, seed=seed),
            tools=body.specs,
            tool_choice=body.choice,
        )
        for at, seed in enumerate(seeds)
    ]


async def ask_expert(pool: Pool, alias: str, requests: list[Request]) -> list[Reply]:
    """The expert's replies.

    Raises:
        ApiError: one of them is a failure.
    """
    replies = await pool.generate(alias, requests, stage="chat")
    return [_check(alias, reply) for reply in replies]


async def stream_expert(pool: Pool, alias: str, requests: list[Request]) -> AsyncGenerator[Piece]:
    """The expert's replies piece by piece, those of several answers as they come.

    Closing the iterator cancels what is still running.

    Raises:
        ApiError: one of them is a failure.
    """
    arrivals: asyncio.Queue[Piece | BaseException] = asyncio.Queue()

    async def pump(index: int, request: Request) -> None:
        try:
            async with contextlib.aclosing(pool.stream(alias, request)) as chunks:  # pyright: ignore[reportArgumentType]
                async for chunk in chunks:
                    reply = None if chunk.reply is None else _check(alias, chunk.reply)
                    text, thought = clean(chunk.text), clean(chunk.reasoning)
                    arrivals.put_nowait(
                        Piece(index=index, text=text, reasoning=thought, reply=reply)
                    )
        except Exception as error:
            arrivals.put_nowait(error)

    tasks = [asyncio.create_task(pump(at, request)) for at, request in enumerate(requests)]
    owed = len(tasks)
    try:
        while owed:
            piece = await arrivals.get()
            if isinstance(piece, BaseException):
                raise piece
            owed -= piece.reply is not None
            yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _read_sampling(body: ExpertRequest, spec: ExpertSpec) -> Sampling:
    own = spec.sampling.to_sampling()
    wanted: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "max_tokens": body.most_tokens,
        "stop": None if body.stop is None else body.stops,
        "logprobs": _read_logprobs(body),
        "json_schema": _read_schema(body),
    }
    return replace(own, **{key: value for key, value in wanted.items() if value is not None})


def _read_logprobs(body: ExpertRequest) -> int | None:
    if body.logprobs or body.top_logprobs is not None:
        return body.top_logprobs or 0
    return None


def _read_schema(body: ExpertRequest) -> Mapping[str, Any] | None:
    match body.response_format:
        case SchemaFormat(json_schema=wanted):
            return wanted.schema_
        case ObjectFormat():
            return ANY_OBJECT
        case _:
            return None


def _check(alias: str, reply: Reply) -> Reply:
    if reply.failure is not None:
        raise tell_failure({alias: reply.failure})
    return replace(reply, text=clean(reply.text), tool_calls=clean_calls(reply.tool_calls))
