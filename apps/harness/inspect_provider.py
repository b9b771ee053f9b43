"""A pool as a model of inspect-ai: `inspect eval TASK --model expertmix/panel -M pool=pool.yaml`.

inspect-ai finds this module by the entry point `inspect_ai`; importing it registers the provider.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from inspect_ai._util.error import PrerequisiteError  # no public module has it
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelCall,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from ...agents import Pool
from ...agents.engines import Failure, Message, Reply, Request, Sampling
from ...graph import Solution
from ...retrieval import InputError, Question
from .chats import join_turns, read_turns
from .spokesman import Saying, find_loss, speak
from .subject import Subject

__all__ = ["ExpertmixAPI", "Unanswered"]

NOT_HERE = (
    "best_of",
    "effort",
    "extra_body",
    "fallback_models",
    "frequency_penalty",
    "logit_bias",
    "modalities",
    "presence_penalty",
    "prompt_logprobs",
    "reasoning_effort",
    "reasoning_tokens",
    "top_k",
    "verbosity",
)
"""Settings that would change what is measured, and that no engine of a pool knows."""
OF_EXPERTS = ("max_tokens", "temperature", "top_p", "seed", "logprobs", "response_schema")
"""Settings that an expert heeds and a panel, whose experts have their own, does not."""
CONNECTIONS = 1000
"""Samples at one time where the harness does not adapt it: the pool collates them by model."""

logger = logging.getLogger(__name__)


class Unanswered(RuntimeError):
    """A request has no reply; `failure` says why, and whether asking again may help."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ExpertmixAPI(ModelAPI):
    """`expertmix/expert/ALIAS` is one expert of a pool, `expertmix/panel` its panel.

    Model arguments (`-M name=value`): `pool`, a pool file, needed; for panels every name of
    `PanelSettings` (profile, k, policy, adaptive, aggregator, …) and `say`, the spokesman's whole `text`
    (default) or the `answer` alone; `store`, a file that keeps every reply.

    A panel takes a chat as one open question and asks its experts with their own sampling. Tools are
    refused. With the Python API, `pool` may be an open `Pool`; say `memoize=False` then, since inspect-ai
    tells two models apart by arguments that are plain values.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 as in the base class
        pool: Pool | str | Path | None = None,
        say: Saying = "text",
        store: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        try:
            expert = _read_name(model_name)
            if pool is None:
                raise InputError("say which pool is meant: -M pool=FILE.yaml")
            if base_url is not None:
                raise InputError("there is no base URL here: addresses are in the pool file")
            if say not in get_args(Saying):
                raise InputError(f"say must be one of {', '.join(get_args(Saying))}, got {say!r}")
            # Samples come one by one, so models may have to give way to others: the file's patience.
            self.subject = Subject(
                pool, expert=expert, store=store, patience=None, settings=settings
            )
        except InputError as error:
            raise PrerequisiteError(f"{error}") from None
        self._say: Saying = say
        self._asked: Counter[str] = Counter()
        self._is_warned = False

    async def aclose(self) -> None:
        """Unload everything. inspect-ai leaves models open; their processes end with this one."""
        if self.subject.is_ours:
            await asyncio.to_thread(self.subject.pool.close)

    def max_connections(self) -> int:
        """Many: who shares a model is answered together."""
        return CONNECTIONS

    def connection_key(self) -> str:
        """Experts have connections of their own."""
        return self.model_name

    def should_retry(self, ex: Exception) -> bool:
        """Whether asking again, without changing anything, may help."""
        return isinstance(ex, Unanswered) and ex.failure.retryable

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> tuple[ModelOutput, ModelCall]:
        """Ask the expert or the panel.

        A prompt that does not fit is told as `model_length`, as other providers do.

        Raises:
            InputError: tools, media, or settings that no engine of a pool knows.
            Unanswered: the expert failed, or every expert of the panel did.
        """
        if tools and tool_choice != "none":
            raise InputError("experts get no tools: choose a task without tools for this model")
        _check(config)
        turns = _read_chat(input)
        self.subject.pool.open()
        if self.subject.expert is None:
            return await self._ask_panel(turns, config)
        return await self._ask_expert(self.subject.expert, turns, config)

    async def _ask_expert(
        self, expert: str, turns: Sequence[Message], config: GenerateConfig
    ) -> tuple[ModelOutput, ModelCall]:
        own = self.subject.pool.catalog[expert].sampling.to_sampling()
        request = Request(id="0", messages=tuple(turns), sampling=_read_sampling(config, own))
        [reply] = await self.subject.ask([request])
        call = ModelCall.create(
            {"expert": expert, "messages": list(turns), "sampling": request.sampling}, reply
        )
        if reply.failure is not None and reply.failure.kind == "context":
            message = reply.failure.message
            output = ModelOutput.from_content(
                self.model_name, message, stop_reason="model_length", error=message
            )
            return output, call
        if reply.failure is not None:
            raise Unanswered(reply.failure)
        return _tell_reply(self.model_name, reply), call

    async def _ask_panel(
        self, turns: Sequence[Message], config: GenerateConfig
    ) -> tuple[ModelOutput, ModelCall]:
        self._warn_of(config)
        text = join_turns(turns)
        # Epochs ask the same again: they must not get the same draws, and a second run must.
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        question = Question(id=f"{name}-{self._asked[name]}", text=text)
        self._asked[name] += 1
        [solution] = await self.subject.solve([question])
        if (loss := find_loss(solution)) is not None:
            raise Unanswered(Failure(kind="engine", message=f"every expert failed: {loss}"))
        said = speak(solution, self._say, stops=config.stop_seqs or ())
        call = ModelCall.create({"question": text}, dict(solution.row))
        return _tell_solution(self.model_name, solution, said), call

    def _warn_of(self, config: GenerateConfig) -> None:
        ignored = [name for name in OF_EXPERTS if getattr(config, name) is not None]
        if ignored and not self._is_warned:
            self._is_warned = True
            logger.warning(
                "a panel's experts have their own sampling in the pool file: %s not heeded",
                ", ".join(ignored),
            )


def _read_name(name: str) -> str | None:
    """The alias in `expert/ALIAS`; None for `panel`."""
    if name == "panel":
        return None
    kind, _, alias = name.partition("/")
    if kind != "expert" or not alias:
        raise InputError(
            f'there is no model "expertmix/{name}": it is expertmix/panel or expertmix/expert/ALIAS'
        )
    return alias


def _read_chat(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    for message in messages:
        parts = [] if isinstance(message.content, str) else message.content
        if any(part.type not in ("text", "reasoning") for part in parts):
            raise InputError("experts see no pictures and hear no sound: choose a task of text")
    return read_turns([{"role": m.role, "content": m.text} for m in messages])


def _check(config: GenerateConfig) -> None:
    for name in NOT_HERE:
        if getattr(config, name) is not None:
            raise InputError(f"engines of a pool do not know the setting {name}: leave it out")
    if (config.num_choices or 1) != 1:
        raise InputError("num_choices must be 1 here: ask for epochs instead")


def _read_sampling(config: GenerateConfig, own: Sampling) -> Sampling:
    """The expert's own way to draw, with what the harness says otherwise."""
    given: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "max_tokens", "seed")
        if (value := getattr(config, name)) is not None
    }
    if config.stop_seqs is not None:
        given["stop"] = tuple(config.stop_seqs)
    if config.logprobs:
        given["logprobs"] = config.top_logprobs or 0
    if config.response_schema is not None:
        given["json_schema"] = config.response_schema.json_schema.model_dump(exclude_none=True)
    return replace(own, **given)


def _tell_reply(model: str, reply: Reply) -> ModelOutput:
    usage = reply.usage
    content = [
        Logprob(
            token=item.token,
            logprob=item.logprob,
            top_logprobs=[TopLogprob(token=t, logprob=value) for t, value in item.top] or None,
        )
        for item in reply.logprobs
    ]
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=reply.text, model=model, source="generate"),
        stop_reason="max_tokens" if reply.finish == "length" else "stop",
        logprobs=Logprobs(content=content) if content else None,
    )
    return ModelOutput(
        model=model,
        choices=[choice],
        usage=ModelUsage(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            input_tokens_cache_read=usage.cached_tokens or None,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        ),
        metadata=dict(reply.details) or None,
    )


def _tell_solution(model: str, solution: Solution, said: str) -> ModelOutput:
    output = ModelOutput.from_content(model, said)
    row = solution.row
    tokens = cast("dict[str, int]", row["usage"])
    output.usage = ModelUsage(
        input_tokens=tokens["prompt_tokens"],
        output_tokens=tokens["completion_tokens"],
        total_tokens=sum(tokens.values()),
    )
    told = ("answer", "confidence", "method", "abstained", "votes", "missing", "note")
    output.metadata = {name: row[name] for name in told}
    return output


modelapi(name="expertmix")(ExpertmixAPI)  # as a decorator it would hide the class behind a function
