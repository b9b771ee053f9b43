"""One request to `/v1/chat/completions`, answered whole or piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ...agents import Pool
from ...agents.engines import Reply, Request, Usage
from ..panel_answer import Form, PanelAnswer, cut_at, find_finish, tell_answer
from .doorway import VISIT, Visit, explain_error, while_connected
from .errors import ApiError
from .experts import ask_expert, build_expert_requests, stream_expert
from .panel import Asked, Panel
from .rendering import tell_details, tell_message
from .replies import ChatCompletion, Choice, PanelCompletion, TokenCount, tell_logprobs
from .requests import ExpertRequest, NamedTool, PanelRequest
from .settings import EXPERT_PREFIX, ServerSettings
from .streaming import Chunks, Put, send_events

__all__ = ["Completions"]


class _Work(Protocol):
    """What is done for one request, in one of two ways."""

    async def whole(self) -> ChatCompletion: ...

    async def pieces(self, put: Put) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Answers chat requests with a panel and the experts of its pool."""

    pool: Pool
    """Open."""
    panel: Panel
    settings: ServerSettings
    fingerprint: str
    """Tells when something changed on which answers depend."""

    @property
    def models(self) -> list[str]:
        """Every name that a request may ask for."""
        return [*self.panel.models, *(f"{EXPERT_PREFIX}{alias}" for alias in self.pool.catalog)]

    async def answer(self, http: HttpRequest, body: PanelRequest | ExpertRequest) -> Response:
        """Answer a request.

        Raises:
            ApiError: there is no such model, a limit is passed, or nobody could answer.
            ClientGone: the client left; what was being done for it is cancelled.
        """
        visit: Visit = http.scope[VISIT]
        self._check(body)
        visit.model = body.model
        work = self._plan(body)
        if not body.stream:
            async with self._in_time(visit):
                completion = await while_connected(http.receive, work.whole())
            return Response(completion.model_dump_json(), media_type="application/json")

        async def stream(put: Put) -> None:
            async with self._in_time(visit):
                await work.pieces(put)

        def explain(error: Exception) -> ApiError:
            told = explain_error(visit, error)
            visit.failed = told.status
            return told

        return send_events(stream, explain)

    def _check(self, body: PanelRequest | ExpertRequest) -> None:
        if body.model not in self.models:
            raise ApiError(
                404,
                f"there is no such model; there are {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        _limit("max_tokens", body.max_tokens, self.settings.max_tokens)
        _limit("max_completion_tokens", body.max_completion_tokens, self.settings.max_tokens)
        _limit("n", body.n, self.settings.max_n)
        _check_choice(body)

    def _plan(self, body: PanelRequest | ExpertRequest) -> _Work:
        chunks = Chunks(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.model,
            fingerprint=self.fingerprint,
            counts_usage=body.counts_usage,
        )
        if isinstance(body, PanelRequest):
            form = "text" if body.expertmix is None else body.expertmix.format
            return _PanelWork(self.panel, self.panel.read(body), form, body.stops, chunks)
        alias = body.model.removeprefix(EXPERT_PREFIX)
        requests = build_expert_requests(body, self.pool.catalog[alias], chunks.id)
        return _ExpertWork(self.pool, alias, requests, body.most_calls, chunks)

    @contextlib.asynccontextmanager
    async def _in_time(self, visit: Visit) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(max(0.0, self.settings.seconds - visit.seconds)):
                yield
        except TimeoutError:
            raise ApiError(
                504,
                f"there is no answer after {self.settings.seconds:g} seconds",
                code="timeout",
                headers={"x-should-retry": "false"},
            ) from None


@dataclass(frozen=True, slots=True)
class _PanelWork:
    panel: Panel
    asked: Asked
    form: Form
    stops: tuple[str, ...]
    chunks: Chunks

    async def whole(self) -> ChatCompletion:
        answer = await self.panel.ask(self.asked, lambda _: None)
        choice = self._tell(answer)
        return PanelCompletion(
            id=self.chunks.id,
            created=self.chunks.created,
            model=self.chunks.model,
            choices=[choice],
            usage=TokenCount.of(answer.usage),
            system_fingerprint=self.chunks.fingerprint,
            expertmix=tell_details(answer),
        )

    async def pieces(self, put: Put) -> None:
        put(self.chunks.begin())
        answer = await self.panel.ask(
            self.asked, lambda event: put(self.chunks.tell(event.to_json()))
        )
        choice = self._tell(answer)
        if choice.message.reasoning_content:
            put(self.chunks.thought(choice.message.reasoning_content))
        if choice.message.content is not None:
            put(self.chunks.text(choice.message.content))
        if answer.closing is not None and answer.closing.tool_calls:
            put(self.chunks.calls(answer.closing.tool_calls))
        details = tell_details(answer).model_dump(mode="json")
        put(self.chunks.end(choice.finish_reason) | {"expertmix": details})
        if self.chunks.counts_usage:
            put(self.chunks.usage(answer.usage))

    def _tell(self, answer: PanelAnswer) -> Choice:
        content, finish = tell_answer(answer, self.panel.resources.pool.catalog, self.form)
        calls, thought = (), ""
        if answer.closing is not None:
            calls, thought = answer.closing.tool_calls, answer.closing.reasoning
        message = tell_message(cut_at(content, self.stops), calls, thought)
        return Choice(index=0, message=message, logprobs=None, finish_reason=finish)


@dataclass(frozen=True, slots=True)
class _ExpertWork:
    pool: Pool
    alias: str
    requests: list[Request]
    most_calls: int | None
    chunks: Chunks

    async def whole(self) -> ChatCompletion:
        replies = await ask_expert(self.pool, self.alias, self.requests)
        return ChatCompletion(
            id=self.chunks.id,
            created=self.chunks.created,
            model=self.chunks.model,
            choices=[self._choose(at, reply) for at, reply in enumerate(replies)],
            usage=TokenCount.of(_add_up([reply.usage for reply in replies])),
            system_fingerprint=self.chunks.fingerprint,
        )

    async def pieces(self, put: Put) -> None:
        for at in range(len(self.requests)):
            put(self.chunks.begin(at))
        spent: list[Usage] = []
        async with contextlib.aclosing(
            stream_expert(self.pool, self.alias, self.requests)
        ) as pieces:
            async for piece in pieces:
                if piece.reasoning:
                    put(self.chunks.thought(piece.reasoning, piece.index))
                if piece.text:
                    put(self.chunks.text(piece.text, piece.index))
                if piece.reply is not None:
                    spent.append(piece.reply.usage)
                    self._end(put, piece.index, piece.reply)
        if self.chunks.counts_usage:
            put(self.chunks.usage(_add_up(spent)))

    def _end(self, put: Put, index: int, reply: Reply) -> None:
        calls = reply.tool_calls[: self.most_calls]
        if calls:
            put(self.chunks.calls(calls, index))
        told = tell_logprobs(reply.logprobs)
        logprobs = None if told is None else told.model_dump()
        put(self.chunks.end(find_finish(reply), index, logprobs=logprobs))

    def _choose(self, index: int, reply: Reply) -> Choice:
        calls = reply.tool_calls[: self.most_calls]
        return Choice(
            index=index,
            message=tell_message(reply.text, calls, reply.reasoning),
            logprobs=tell_logprobs(reply.logprobs),
            finish_reason=find_finish(reply),
        )


def _limit(name: str, value: int | None, most: int) -> None:
    if value is not None and value > most:
        raise ApiError(400, f"{name}: at most {most} are possible", param=name)


def _check_choice(body: PanelRequest | ExpertRequest) -> None:
    """Refuse a tool that must be called and is not there."""
    names = {spec["name"] for spec in body.specs}
    if isinstance(body.tool_choice, NamedTool):
        is_there = body.choice in names - {
            "auto",
            "none",
            "required",
        }  # engines read a choice in these
    else:
        is_there = body.choice != "required" or bool(names)
    if not is_there:
        told = "tool_choice: the tool that must be called is not among tools"
        raise ApiError(400, told, param="tool_choice")


def _add_up(usages: list[Usage]) -> Usage:
    # What several answers share of a prompt is computed once, but each of them was asked it.
    return sum(usages, Usage())
