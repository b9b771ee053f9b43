"""What is answered, in OpenAI's shapes, and what a panel adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ...agents.engines import TokenLogprob, Usage
from ..panel_answer import Finish
from .errors import clean

__all__ = [
    "AnswerMessage",
    "CalledFunction",
    "ChatCompletion",
    "Choice",
    "ChoiceLogprobs",
    "ErrorBody",
    "ErrorDetails",
    "FunctionCall",
    "Health",
    "ModelCard",
    "ModelList",
    "PanelCompletion",
    "PanelDetails",
    "PanelExpert",
    "TokenCount",
    "TokenEntry",
    "TopLogprob",
    "tell_logprobs",
]

LEAST_LOGPROB = -9999.0
"""What OpenAI says for a token that cannot be; JSON knows no infinity."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class TokenCount(_Reply):
    """Tokens over all calls that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> TokenCount:
        """Count what engines counted."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        return cls(
            prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
        )


class TopLogprob(_Reply):
    """A token that could have stood there, and its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenEntry(TopLogprob):
    """A generated token."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(_Reply):
    """Of every generated token."""

    content: list[TokenEntry]
    refusal: None = None


class CalledFunction(_Reply):
    """A tool and what it is to be called with."""

    name: str
    arguments: str
    """JSON as the model wrote it: it may be no JSON, or not what the tool takes."""


class FunctionCall(_Reply):
    """A tool that the model wants to have called."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(_Reply):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """None where there are only calls."""
    refusal: None = None
    tool_calls: list[FunctionCall] | None = None
    reasoning_content: str | None = None
    """What the model thought before it answered, where its engine tells that apart."""


class Choice(_Reply):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Finish


class ChatCompletion(_Reply):
    """The answer to a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: TokenCount
    system_fingerprint: str


class PanelExpert(_Reply):
    """Who was recruited for a question, why, and what it answered."""

    expert: str
    reason: str
    answer: str | None
    """None where it failed, or no answer could be read from its words."""


class PanelDetails(_Reply):
    """How a panel came to its answer."""

    answer: str | None
    """A letter, a number or a short text; None where there is none."""
    confidence: float
    """With a profile the chance that the answer is right; without one the share that agrees."""
    method: str
    """`posterior`, `vote`, `model` (an aggregator merged drafts) or `none`."""
    abstained: bool
    skills: dict[str, float]
    experts: list[PanelExpert]
    votes: dict[str, list[str]]
    """Each answer with the experts that gave it."""
    dissent: dict[str, list[str]]
    missing: dict[str, str]
    """Experts that failed, with the kind of failure in a sentence."""
    note: str
    speaker: str | None
    """Who had the last word with the request's tools: the aggregator; None where there were none."""


class PanelCompletion(ChatCompletion):
    """The panel's answer, and how it came about."""

    expertmix: PanelDetails


class ModelCard(_Reply):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "expertmix"


class ModelList(_Reply):
    """The models that can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(_Reply):
    """Whether questions are taken."""

    status: Literal["ok", "draining"]
    version: str
    experts: list[str]


class ErrorDetails(_Reply):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Reply):
    """An error in OpenAI's shape."""

    error: ErrorDetails


def tell_logprobs(tokens: Sequence[TokenLogprob]) -> ChoiceLogprobs | None:
    """Log-probabilities as OpenAI tells them; None where the engine gave none."""
    if not tokens:
        return None
    entries = [
        TokenEntry(
            **_tell(token.token, token.logprob),
            top_logprobs=[TopLogprob(**_tell(name, value)) for name, value in token.top],
        )
        for token in tokens
    ]
    return ChoiceLogprobs(content=entries)


def _tell(token: str, logprob: float) -> Mapping[str, Any]:
    token = clean(token)
    return {
        "token": token,
        "logprob": max(logprob, LEAST_LOGPROB),
        "bytes": list(token.encode()),
    }
