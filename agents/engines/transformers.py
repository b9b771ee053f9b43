"""Hugging Face models in this process, for models that need hands inside them and for small jobs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from ...retrieval import InputError
from .base import Chunk, EngineError, Failure, FailureKind, Load, Reply, Request, Usage
from .decoding import Draft, decode, score_options
from .loading import LoadedModel, explain, load_model
from .tokens import encode_chat, encode_option
from .tool_wording import must_call, offered_tools

__all__ = ["TransformersEngine"]

Say = Callable[[tuple[str, Chunk]], None]
"""Takes a request's id and the next piece of its answer; the last piece has the reply."""

CLOSED = "it was closed before the answer was finished."
STOPPED = "it has stopped; start it anew."
NO_ADAPTERS = "transformers runs no LoRA adapters here; use engine: vllm for this expert."
NO_SCHEMAS = "transformers cannot hold an answer to a JSON Schema; use engine: vllm or openai."

NO_BOUND_CALLS = "transformers cannot hold an answer to a tool call; leave tool_choice at auto, or use engine: vllm."


class TransformersEngine:
    """A causal language model run by transformers, in a thread of its own.

    Requests of one call are answered in batches of up to `max_batch`, sorted by length; each has its
    own temperature, seed, stop strings and log-probabilities. Slower than vLLM (about half its
    tokens a second), but it shares this process's torch, whose global settings it leaves alone.
    Adapters, JSON Schemas and answers that have to be a tool call are refused; vLLM has all three. Tools
    that the model may call or not are told to it, and its calls are read.
    """

    def __init__(
        self,
        name: str,
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        context_length: int | None = None,
        chat_template: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        device: Literal["auto", "cpu", "cuda"] | str = "auto",
        max_batch: int = 16,
    ) -> None:
        """Store the settings; nothing is loaded before `start`.

        Args:
            name: For messages.
            model: A folder with safetensors, or a Hugging Face id.
            revision: The commit of a Hugging Face id, which must be pinned.
            dtype: Type of the weights in memory: `auto` (as stored), `float32`, `bfloat16`, …
            context_length: Tokens of prompt and answer together; at most the model's own.
            chat_template: Jinja text, or the name of a template that ships with us.
            adapters: Refused by `start`; present so that engines are built alike.
            device: `auto` takes CUDA if there is any.
            max_batch: Most requests that run together.
        """
        self.name = name
        self._model = model
        self._revision = revision
        self._dtype = dtype
        self._context_length = context_length
        self._chat_template = chat_template
        self._adapters = adapters
        self._device = device
        self._max_batch = max_batch
        self._starting = asyncio.Lock()
        self._load: Load | None = None
        self._loaded: LoadedModel | None = None
        self._closed = threading.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"transformers-{name}")

    async def start(self) -> Load:
        """Load the model. A second call returns the first call's answer.

        Raises:
            EngineError: the model could not be loaded; one sentence with the reason.
        """
        async with self._starting:
            if self._closed.is_set():
                raise EngineError(Failure(kind="load", message=f"{self.name} was closed."))
            load = self._load
            if load is None:
                loop = asyncio.get_running_loop()
                self._load = load = await loop.run_in_executor(self._worker, self._read)
            return load

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Answer all requests; replies come in their order.

        Args:
            requests: With ids that differ.
            on_reply: Called with each reply as soon as it is finished.

        Cancelling the call stops the model before its next token.
        """
        replies: dict[str, Reply] = {}
        async with contextlib.aclosing(self._answer(requests)) as chunks:
            async for _, chunk in chunks:
                if chunk.reply is not None:
                    replies[chunk.reply.request_id] = chunk.reply
                    if on_reply is not None:
                        on_reply(chunk.reply)
        return [replies[request.id] for request in requests]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """Answer one request piece by piece. Closing the iterator stops the model."""
        async with contextlib.aclosing(self._answer([request])) as chunks:
            async for _, chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """Release the model. Requests still in flight end in failures. Safe to call twice."""
        self._closed.set()
        await asyncio.to_thread(self._worker.shutdown, wait=True)
        if self._loaded is not None:
            on_gpu = self._loaded.model.device.type == "cuda"
            self._loaded = None
            gc.collect()  # a model is full of reference cycles
            if on_gpu:
                import torch

                torch.cuda.empty_cache()

    async def _answer(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[str, Chunk]]:
        """Hand the requests to the worker and pass on what it says, until every one has its reply."""
        if len({request.id for request in requests}) < len(requests):
            raise ValueError("Two requests of one call have the same id.")
        if self._load is None:
            raise RuntimeError(f"{self.name} must be started before it is asked.")
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[tuple[str, Chunk] | None] = asyncio.Queue()
        stop = threading.Event()

        def say(news: tuple[str, Chunk] | None) -> None:
            # The loop may be gone when a cancelled call's last token comes.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(said.put_nowait, news)

        waiting = {request.id: request for request in requests}
        try:
            self._submit(requests, say, stop)
            while news := await said.get():
                if news[1].reply is not None:
                    del waiting[news[0]]
                yield news
        finally:
            stop.set()
        for request in waiting.values():  # whatever went wrong, nothing is left without a reply
            yield request.id, Chunk(reply=self._failed(request, "engine", STOPPED))

    def _submit(
        self,
        requests: Sequence[Request],
        say: Callable[[tuple[str, Chunk] | None], None],
        stop: threading.Event,
    ) -> None:
        """Have the worker answer the requests and then say None."""
        try:
            work = self._worker.submit(self._work, list(requests), say, stop)
        except RuntimeError:  # close() has shut it down
            say(None)
        else:
            work.add_done_callback(lambda _: say(None))

    def _read(self) -> Load:
        """Load model and tokenizer; runs in the worker."""
        if self._adapters:
            raise EngineError(Failure(kind="load", message=f"{self.name}: {NO_ADAPTERS}"))
        began = time.perf_counter()
        try:
            self._loaded = loaded = load_model(
                self._model,
                revision=self._revision,
                dtype=self._dtype,
                device=self._device,
                context_length=self._context_length,
            )
        except Exception as error:
            message = f"{self.name} could not be loaded: {explain(error)}"
            raise EngineError(Failure(kind="load", message=message)) from error
        return Load(
            seconds=time.perf_counter() - began,
            memory_bytes=loaded.memory_bytes,
            context_length=loaded.window,
        )

    def _work(self, requests: Sequence[Request], say: Say, stop: threading.Event) -> None:
        """Answer requests in the worker: every one gets a reply, if only that it will not be."""
        import torch

        drafts: list[Draft] = []
        with torch.inference_mode():
            for request in requests:
                made = self._begin(request, stop)
                if isinstance(made, Draft):
                    drafts.append(made)
                else:
                    say((request.id, Chunk(reply=made)))
            drafts.sort(key=lambda draft: len(draft.prompt_ids))  # neighbours need little padding
            for first in range(0, len(drafts), self._max_batch):
                self._write(drafts[first : first + self._max_batch], say, stop)

    def _write(self, drafts: Sequence[Draft], say: Say, stop: threading.Event) -> None:
        reason = CLOSED
        try:
            for updated in () if self._is_over(stop) else self._decode(drafts):
                for draft in updated:
                    done = draft.finish is not None
                    text = draft.take()
                    if text or done:
                        reply = draft.reply() if done else None
                        say((draft.request.id, Chunk(text=text, reply=reply)))
                if self._is_over(stop):
                    break
        except Exception as error:  # out of memory, say: the next batch may be smaller
            reason = f"it raised {explain(error)}"
        for draft in drafts:
            if draft.finish is None:
                failed = self._failed(draft.request, "engine", reason)
                say((draft.request.id, Chunk(reply=failed)))

    def _decode(self, drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
        assert self._loaded is not None
        return decode(self._loaded.model, drafts, self._loaded.ends)

    def _is_over(self, stop: threading.Event) -> bool:
        """Whether nobody waits any more, or the engine was closed."""
        return stop.is_set() or self._closed.is_set()

    def _begin(self, request: Request, stop: threading.Event) -> Draft | Reply:
        """A draft to be written, or the reply where nothing has to be."""
        if self._is_over(stop):
            return self._failed(request, "engine", CLOSED)
        if request.adapter is not None:
            return self._failed(request, "refused", NO_ADAPTERS)
        if request.sampling.json_schema is not None:
            return self._failed(request, "refused", NO_SCHEMAS)
        if must_call(request):
            return self._failed(request, "refused", NO_BOUND_CALLS)
        if request.sampling.max_tokens < 1:
            return self._failed(request, "refused", "max_tokens must be at least 1.")
        try:
            return self._encode(request)
        except InputError as error:
            return self._failed(request, "refused", str(error))
        except Exception as error:
            return self._failed(request, "engine", f"it raised {explain(error)}")

    def _encode(self, request: Request) -> Draft | Reply:
        assert self._loaded is not None
        tokenizer = self._loaded.tokenizer
        prompt_ids = self._prompt(request)
        if not prompt_ids:
            raise InputError("the chat template makes an empty prompt of these messages.")
        if request.options:
            return self._score(request, prompt_ids)
        room = self._room(prompt_ids)
        if room < 1:
            return self._too_long(request, len(prompt_ids))
        return Draft(request, prompt_ids, min(room, request.sampling.max_tokens), tokenizer)

    def _prompt(self, request: Request) -> list[int]:
        """The tokens that the answer follows."""
        assert self._loaded is not None
        return encode_chat(
            self._loaded.tokenizer,
            request.messages,
            chat_template=self._chat_template,
            tools=offered_tools(request),
        )

    def _score(self, request: Request, prompt_ids: Sequence[int]) -> Reply:
        assert self._loaded is not None
        options = [
            encode_option(self._loaded.tokenizer, prompt_ids, option) for option in request.options
        ]
        needed = max(map(len, options))
        if self._room(prompt_ids) < needed:
            return self._too_long(request, len(prompt_ids) + needed)
        scores = score_options(self._loaded.model, prompt_ids, options)
        usage = Usage(prompt_tokens=len(prompt_ids) + sum(map(len, options)))
        return Reply(request_id=request.id, scores=tuple(scores), usage=usage)

    def _room(self, prompt_ids: Sequence[int]) -> int:
        assert self._loaded is not None
        return (self._loaded.window or 1 << 30) - len(prompt_ids)

    def _too_long(self, request: Request, tokens: int) -> Reply:
        assert self._loaded is not None
        return self._failed(
            request,
            "context",
            f"the prompt has {tokens} tokens and the context window {self._loaded.window}; "
            "shorten the question or raise the context length.",
        )

    def _failed(self, request: Request, kind: FailureKind, reason: str) -> Reply:
        return Reply.failed(request, Failure(kind=kind, message=f"{self.name}: {reason}"))
