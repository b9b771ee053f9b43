"""How a request becomes prompts for vLLM, and how vLLM's outputs become a reply.

A request that wants text is one prompt. A request that wants options scored is one prompt if every
option is a single token (all are read off the prompt's last position), else one prompt an option,
whose log-probabilities vLLM reports token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ...retrieval import InputError
from .base import Failure, OptionScore, Reply, Request, TokenLogprob, Usage
from .reasons import root_reason
from .tokens import encode_chat, encode_option
from .tool_reading import read_tool_calls
from .tool_wording import answer_schema, must_call, offered_tools

__all__ = ["Job", "JobMaker", "Part", "Reads", "Refused", "finished_reply"]

_SINGLE_TOKENS = 128
"""vLLM's own limit on the tokens whose log-probability one pass reports."""

Reads: TypeAlias = Literal["text", "logprobs", "chosen", "prompt", "alone"]

_UNSUITED: dict[Reads, Reads] = {"chosen": "logprobs", "logprobs": "chosen"}


class Refused(Exception):
    """A request that this engine cannot answer; the others go on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One prompt in vLLM."""

    id: str
    token_ids: list[int]
    params: Any
    """vLLM's `SamplingParams`."""
    adapter: str | None
    reads: Reads
    """What vLLM reports of it: text; its tokens' log-probabilities too; those of chosen tokens;
    those of the prompt; or those of the prompt where only a batch of one can have them."""

    def suits(self, others: Set[Reads]) -> bool:
        """Whether vLLM can have it in one batch with parts that read `others`.

        With LoRA, log-probabilities of a prompt crash vLLM unless it is alone (vllm#16668). And
        where one request asks for chosen tokens, vLLM reports those to all that want any.
        """
        if self.reads == "alone" or "alone" in others:
            return not others
        return _UNSUITED.get(self.reads) not in others


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request on its way through vLLM."""

    number: int
    request: Request
    stream: bool
    prompt: list[int]
    options: list[list[int]]
    parts: list[Part] = field(default_factory=list[Part])
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    """vLLM's `RequestOutput` of each part that has finished."""
    sent: int = 0
    """Characters that have been streamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMaker:
    """What an engine knows that turns a request into a job."""

    tokenizer: Any
    template: str | None
    window: int
    """Tokens of prompt and answer together."""
    adapters: Mapping[str, Any]

    def make(self, number: int, request: Request, *, stream: bool) -> Job:
        """Encode a request and choose vLLM's parameters for it.

        Raises:
            Refused: the request cannot be answered as it is.
        """
        if request.adapter is not None and request.adapter not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "none"
            raise _refused(f"there is no adapter {request.adapter!r}; this engine has: {known}")
        job = self._encoded(number, request, stream)
        self._check_length(job)
        try:
            job.parts = self._scoring(job) if job.options else [self._generating(job)]
        except Exception as error:  # vLLM's own errors share no base with Python's
            raise _refused(f"vLLM refused the request: {root_reason(error)}") from error
        return job

    def _encoded(self, number: int, request: Request, stream: bool) -> Job:
        try:
            prompt = encode_chat(
                self.tokenizer,
                request.messages,
                chat_template=self.template,
                tools=offered_tools(request),
                bound=must_call(request),
            )
            options = [encode_option(self.tokenizer, prompt, text) for text in request.options]
        except InputError as error:
            raise _refused(str(error)) from error
        return Job(number=number, request=request, stream=stream, prompt=prompt, options=options)

    def _check_length(self, job: Job) -> None:
        longest = max(map(len, job.options), default=0)
        if len(job.prompt) + longest <= self.window - 1:
            return
        option = f" and an option of {longest}" if longest else ""
        message = (
            f"a prompt of {len(job.prompt)} tokens{option} leaves no room for an answer in the "
            f"context window of {self.window} tokens"
        )
        raise Refused(Failure(kind="context", message=message))

    def _generating(self, job: Job) -> Part:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import (  # pyright: ignore[reportMissingImports]
            RequestOutputKind,
            StructuredOutputsParams,
        )

        wish = job.request.sampling
        shape = answer_schema(job.request)
        schema = None if shape is None else StructuredOutputsParams(json=shape)
        params = SamplingParams(
            temperature=wish.temperature,
            top_p=wish.top_p,
            max_tokens=min(wish.max_tokens, self.window - len(job.prompt)),
            stop=list(wish.stop),
            seed=wish.seed,
            logprobs=wish.logprobs,
            structured_outputs=schema,
            output_kind=RequestOutputKind.CUMULATIVE
            if job.stream
            else RequestOutputKind.FINAL_ONLY,
        )
        return _part(job, 0, job.prompt, params, "text" if wish.logprobs is None else "logprobs")

    def _scoring(self, job: Job) -> list[Part]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        common: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": 1,
            "detokenize": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }
        # Versions of vLLM before 0.20 or so cannot be asked for chosen tokens.
        if _is_single(job) and hasattr(SamplingParams, "logprob_token_ids"):
            wanted = sorted({option[0] for option in job.options})
            params = SamplingParams(logprob_token_ids=wanted, **common)
            return [_part(job, 0, job.prompt, params, "chosen")]
        params = SamplingParams(prompt_logprobs=0, **common)
        return [
            _part(job, index, job.prompt + option, params, "alone" if self.adapters else "prompt")
            for index, option in enumerate(job.options)
        ]


def _is_single(job: Job) -> bool:
    """Whether every option is one token, so that a single pass scores them all."""
    return all(len(option) == 1 for option in job.options) and len(job.options) <= _SINGLE_TOKENS


def _part(
    job: Job,
    index: int,
    token_ids: list[int],
    params: Any,
    reads: Reads,
) -> Part:
    return Part(
        id=f"{job.number}.{index}",
        token_ids=token_ids,
        params=params,
        adapter=job.request.adapter,
        reads=reads,
    )


def _refused(message: str) -> Refused:
    return Refused(Failure(kind="refused", message=message))


def finished_reply(job: Job) -> Reply:
    """The reply of a job whose parts have all finished."""
    outputs = [job.outputs[part.id] for part in job.parts]
    for output in outputs:
        ending = output.outputs[0].finish_reason
        if ending not in ("stop", "length"):
            message = f"vLLM ended the request with {ending!r} instead of an answer"
            return Reply.failed(
                job.request, Failure(kind="engine", message=message, retryable=True)
            )
    return _scored(job, outputs) if job.options else _generated(job, outputs[0])


def _generated(job: Job, output: Any) -> Reply:
    answer = output.outputs[0]
    finish: Literal["stop", "length"] = "length" if answer.finish_reason == "length" else "stop"
    reply = Reply(
        request_id=job.request.id,
        text=answer.text,
        finish=finish,
        usage=_usage([output]) + Usage(completion_tokens=len(answer.token_ids)),
        logprobs=_logprobs(answer, job.request.sampling.logprobs),
    )
    return read_tool_calls(job.request, reply)


def _scored(job: Job, outputs: Sequence[Any]) -> Reply:
    if len(outputs) == len(job.options) and outputs[0].prompt_logprobs is not None:
        scores = [
            OptionScore(logprob=_option_logprob(output, option), tokens=len(option))
            for output, option in zip(outputs, job.options, strict=True)
        ]
    else:
        first = outputs[0].outputs[0].logprobs[0]
        scores = [OptionScore(logprob=first[option[0]].logprob, tokens=1) for option in job.options]
    return Reply(request_id=job.request.id, usage=_usage(outputs), scores=tuple(scores))


def _option_logprob(output: Any, option: Sequence[int]) -> float:
    positions = output.prompt_logprobs[-len(option) :]
    return sum(position[token].logprob for position, token in zip(positions, option, strict=True))


def _usage(outputs: Sequence[Any]) -> Usage:
    return Usage(
        prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
    )


def _logprobs(answer: Any, alternatives: int | None) -> tuple[TokenLogprob, ...]:
    if alternatives is None:
        return ()
    return tuple(
        _token_logprob(position, token, alternatives)
        for position, token in zip(answer.logprobs, answer.token_ids, strict=True)
    )


def _token_logprob(position: Mapping[int, Any], token: int, alternatives: int) -> TokenLogprob:
    # vLLM lists the drawn token and the likeliest ones, which may or may not include it.
    likeliest = sorted(position.values(), key=lambda entry: -entry.logprob)[:alternatives]
    return TokenLogprob(
        token=position[token].decoded_token or "",
        logprob=position[token].logprob,
        top=tuple((entry.decoded_token or "", entry.logprob) for entry in likeliest),
    )
