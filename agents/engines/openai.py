"""Any OpenAI-compatible address: `vllm serve`, llama-swap, Ollama, SGLang, a vendor."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import httpx

from .address import check_address, check_key, is_loopback
from .base import Chunk, EngineError, Failure, Load, Reply, Request
from .endpoint import Endpoint, RateLimited
from .in_flight import InFlight, OnText
from .openai_wire import MOST_BYTES, Transcript, WireError, chat_body, listed_models, read_events
from .patience import Patience
from .trouble import Trouble, address_failure, read_refusal, read_wire_error, unreachable
from .wording import name_some, one_line

__all__ = ["OpenAIEngine"]

CONNECT_SECONDS, START_SECONDS = 10.0, 30.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0


class OpenAIEngine:
    """A model behind an OpenAI-compatible address.

    429, 5xx and broken connections are tried again, with exponential backoff and jitter or after the
    time that `Retry-After` names; after 429 and 503 that is a pause for all engines of the endpoint,
    and who has not the time for it fails at once. Options cannot be scored here, since chat endpoints
    do not score prompts, and adapters are models of their own to a server: both are refused.
    Redirects are not followed, since they would carry prompt and key to another host.

    Args:
        name: For messages.
        address: Up to and including `/v1`; http or https.
        model: As the server names it.
        api_key: Sent as a bearer token, and kept out of every message.
        timeout: Seconds for one request, all attempts and pauses together, the time in queues left out.
        retries: Attempts after the first. One that came too early (429 with `Retry-After`) is none.
        concurrency: Requests of this engine at one time.
        endpoint: What it shares with the other engines of its address; without one, it has its own.
        extra: Fields to put into every request, for what a server knows beyond `Sampling`; None takes
            one out (`{"max_tokens": None, "max_completion_tokens": 2048}`).

    Raises:
        InputError: the address or the key cannot be one.
    """

    def __init__(
        self,
        name: str,
        address: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        concurrency: int = 8,
        endpoint: Endpoint | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._url = check_address(address)
        self._address = str(self._url)
        self._model = model
        self._key = check_key(api_key)
        self._timeout = timeout
        self._retries = max(0, retries)
        self._limits = httpx.Limits(max_connections=concurrency)
        self._extra = dict(extra or {})
        self._in_flight = InFlight(name, self._answer, concurrency=concurrency)
        self._endpoint = endpoint or Endpoint(concurrency=concurrency)
        self._line = self._endpoint.line()
        self._client: httpx.AsyncClient | None = None
        self._load: Load | None = None
        self._starting = asyncio.Lock()
        self._jitter = random.Random()

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.name!r}, {self._address!r}, {self._model!r})"

    async def start(self) -> Load:
        """Ask the address for its models; a second call returns the first one's answer.

        Raises:
            EngineError: it does not answer, or does not have this engine's model.
        """
        async with self._starting:
            if self._load is None:
                began = time.perf_counter()
                self._client = self._client or self._connect()
                length = await self._find_model(self._client)
                self._load = Load(seconds=time.perf_counter() - began, context_length=length)
                self._in_flight.open()
        return self._load

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Answer all requests; replies come in the order of the requests."""
        return await self._in_flight.answer_all(requests, on_reply)

    def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answer one request piece by piece."""
        return self._in_flight.stream(request)

    async def close(self) -> None:
        """Abort what is in flight and close all connections. Safe to call twice."""
        await self._in_flight.close()
        if self._client is not None:
            await self._client.aclose()

    def _connect(self) -> httpx.AsyncClient:
        # Uncompressed, so that a small answer cannot unpack into a huge one.
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            return httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(self._timeout, connect=CONNECT_SECONDS, pool=None),
                limits=self._limits,
                trust_env=not is_loopback(self._url.host),  # no proxy between us and ourselves
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            what = f"cannot be used with the proxy or certificates that are set ({one_line(error)})"
            raise EngineError(self._failure(what)) from None

    async def _find_model(self, client: httpx.AsyncClient) -> int | None:
        """The context length of our model, where the server says it."""
        patience = Patience(min(self._timeout, START_SECONDS))
        try:
            models = listed_models(await self._get_models(client, patience))
        except TimeoutError:
            raise EngineError(self._no_answer(patience)) from None
        except (RateLimited, Trouble) as trouble:
            raise EngineError(trouble.failure) from None
        except WireError as error:
            raise EngineError(self._failure(f"{error}; does the address end in /v1?")) from None
        for listed in (self._model, f"{self._model}:latest"):  # Ollama adds the tag
            if listed in models:
                return models[listed]
        message = f'{self._address} has no model "{self._model}"; it lists {name_some(models)}'
        raise EngineError(Failure(kind="load", message=message))

    async def _get_models(self, client: httpx.AsyncClient, patience: Patience) -> str:
        while True:
            await self._endpoint.rest(patience)
            try:
                async with (
                    patience.running(),
                    client.stream("GET", f"{self._address}/models") as response,
                ):
                    body = await self._read_body(response)
                self._check(response, body)
                return body
            except httpx.HTTPError as error:
                raise unreachable(self._address, error) from None
            except Trouble as trouble:
                if not trouble.limited:
                    raise

    async def _answer(self, request: Request, on_text: OnText | None) -> Reply:
        refusal = _refuse(request)
        if refusal is not None:
            return Reply.failed(request, refusal)
        patience = Patience(self._timeout)
        try:
            return await self._persist(request, on_text, patience)
        except TimeoutError:
            return Reply.failed(request, self._no_answer(patience))
        except (RateLimited, Trouble) as trouble:
            return Reply.failed(request, trouble.failure)

    async def _persist(self, request: Request, on_text: OnText | None, patience: Patience) -> Reply:
        """Attempts until one succeeds, or none may help, or the time is up."""
        told: list[str] = []

        def tell(text: str, reasoning: str = "", /) -> None:
            if on_text is not None and (text or reasoning):
                told.append(text)
                on_text(text, reasoning)

        failed = 0
        while True:
            try:
                return await self._ask(request, tell, patience, stream=on_text is not None)
            except Trouble as trouble:
                failed += not trouble.limited
                # What was already told cannot be taken back.
                if not trouble.again or told or failed > self._retries:
                    raise
                if trouble.pauses:  # the endpoint keeps us waiting, and all others
                    continue
                wait = self._wait(failed) if trouble.wait is None else trouble.wait
                if wait >= patience.left:
                    raise
            async with patience.running():
                await asyncio.sleep(wait)

    async def _ask(
        self, request: Request, tell: OnText, patience: Patience, *, stream: bool
    ) -> Reply:
        """One attempt, when its turn at the endpoint has come."""
        async with self._line.turn(request, patience) as turn, patience.running():
            try:
                reply = await self._post(request, tell, stream=stream)
            except Trouble as trouble:
                turn.spent = trouble.spent
                raise
            turn.spent = (reply.usage.prompt_tokens + reply.usage.completion_tokens) or None
            return reply

    def _wait(self, failed: int) -> float:
        """Seconds before the next attempt: exponential, and spread so that clients do not march."""
        return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failed - 1)) * self._jitter.uniform(0.5, 1.0)

    async def _post(self, request: Request, tell: OnText, *, stream: bool) -> Reply:
        """One exchange with the server."""
        assert self._client is not None, "in_flight lets nothing through before start"
        body = chat_body(self._model, request, stream=stream, extra=self._extra)
        transcript = Transcript(request)
        try:
            url, headers = f"{self._address}/chat/completions", {"Content-Type": "application/json"}
            content = json.dumps(body)  # ASCII: half a surrogate pair in a prompt stays sendable
            async with self._client.stream(
                "POST", url, content=content, headers=headers
            ) as response:
                if not response.is_success:
                    self._check(response, await self._read_body(response))
                await self._receive(response, transcript, tell)
            return transcript.reply()
        except httpx.HTTPError as error:
            raise unreachable(self._address, error) from None
        except WireError as error:
            raise read_wire_error(self._address, error) from None

    async def _receive(
        self, response: httpx.Response, transcript: Transcript, tell: OnText
    ) -> None:
        if "event-stream" not in response.headers.get("content-type", ""):
            tell(*transcript.add(await self._read_body(response)))
            return
        async for data in read_events(response.aiter_bytes()):
            if data == "[DONE]":
                return
            tell(*transcript.add(self._redact(data)))
        if not transcript.finished:
            failure = self._failure("broke off in the middle of an answer", retryable=True)
            raise Trouble(failure, again=True)

    async def _read_body(self, response: httpx.Response) -> str:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MOST_BYTES:
                raise WireError(f"sent more than {MOST_BYTES >> 20} MiB")
        return self._redact(body.decode("utf-8", "replace"))

    def _redact(self, text: str) -> str:
        """Some servers repeat the key in their complaints."""
        return text.replace(self._key, "[the key]") if self._key else text

    def _check(self, response: httpx.Response, body: str) -> None:
        """Raise what the server reported instead of an answer."""
        if response.is_success:
            return
        trouble = read_refusal(self._address, response, body)
        if trouble.pauses and trouble.wait is not None:
            self._endpoint.pause(trouble.wait, trouble.failure.message)
        raise trouble

    def _no_answer(self, patience: Patience) -> Failure:
        message = f"{self._address} gave no answer within {patience.seconds:g} s"
        if patience.paused:
            message += f", {patience.paused:.1f} of them rate limited"
        return Failure(kind="timeout", message=message, retryable=True)

    def _failure(self, what: str, *, retryable: bool = False) -> Failure:
        return address_failure(self._address, what, retryable=retryable)


def _refuse(request: Request) -> Failure | None:
    if request.options:
        message = "a chat endpoint cannot score options; ask it to write an answer"
    elif request.adapter is not None:
        message = f'an address has no adapters; name "{request.adapter}" as its model'
    else:
        return None
    return Failure(kind="refused", message=message)
