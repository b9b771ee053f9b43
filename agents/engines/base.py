"""What every way of running a model has in common: requests in, replies out, nothing lost.

A request that cannot be answered becomes a `Reply` that carries a `Failure`; exceptions are kept
for engines that cannot start at all. So one bad question never costs the rest of its batch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

from ...retrieval import Question

__all__ = [
    "Chunk",
    "Engine",
    "EngineError",
    "Failure",
    "Load",
    "Message",
    "OptionScore",
    "Pulsed",
    "Reply",
    "Request",
    "Sampling",
    "Sleeper",
    "Swapper",
    "TokenLogprob",
    "ToolCall",
    "Usage",
]

FailureKind = Literal[
    "load",  # the model could not be started
    "engine",  # the engine died or raised while it worked on the request
    "context",  # prompt and answer do not fit the context window
    "address",  # an address did not answer, or answered with an error after all retries
    "timeout",  # no answer within the time allowed
    "refused",  # the engine cannot do what the request asks for
    "missing",  # a recording holds no answer to this request
]


class ToolCall(TypedDict):
    """A tool that a model wants to have called."""

    id: str
    """Unique within a conversation; the turn with the result names it."""
    name: str
    arguments: str
    """JSON as the model wrote it. Untrusted: it may be no JSON, or not what the tool takes."""


class Message(TypedDict):
    """One turn of a chat. A final `assistant` turn is continued, not answered."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: NotRequired[list[ToolCall]]
    """Of an assistant's turn."""
    tool_call_id: NotRequired[str]
    """Of a tool's turn: the call of which `content` is the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw an answer. The defaults are greedy and therefore repeatable."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    """Upper bound on generated tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    seed: int | None = None
    """Seed of this request alone, independent of whatever else is in its batch."""
    logprobs: int | None = None
    """Return the log-probability of each generated token and of this many alternatives."""
    json_schema: Mapping[str, Any] | None = None
    """Constrain the answer to this JSON Schema (for a pydantic model: `Model.model_json_schema()`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing to ask one model."""

    id: str
    """Unique within one call of `Engine.generate`; the reply carries it back."""
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str | None = None
    """Name of a LoRA adapter that the engine was built with; None is the base model."""
    options: tuple[str, ...] = ()
    """If given, nothing is generated: each option is scored as the continuation of `messages`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may ask to have called: `{"name", "description", "parameters"}`, the last a
    JSON Schema. Nothing is called here."""
    tool_choice: str = "auto"
    """`auto`, `none`, `required` (at least one tool), or the name of the tool that must be called."""
    question_id: str | None = None
    """The question this is about. Recordings are looked up by it; live engines ignore it."""
    question: Question | None = None
    """The question itself, where an engine in this process may look up what resembles it (re-mixing)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that one request cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were already in the engine's cache."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A generated token, its natural-log probability, and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionScore:
    """Log-likelihood of one option as the continuation of the prompt."""

    logprob: float
    """Natural log, summed over the option's tokens."""
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request has no answer, in one sentence for the person who can fix it."""

    kind: FailureKind
    message: str
    retryable: bool = False
    """Whether asking again, without changing anything, may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of one request: text or option scores, or the failure that explains their absence."""

    request_id: str
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """What the model wants to have called, for a request with tools."""
    reasoning: str = ""
    """What the model thought before it answered, where the engine receives it apart from `text`."""
    finish: Literal["stop", "length", "error"] = "stop"
    usage: Usage = field(default_factory=Usage)
    logprobs: tuple[TokenLogprob, ...] = ()
    scores: tuple[OptionScore, ...] = ()
    """One per option of the request, in its order."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What an engine has to tell about how the reply came about, as plain JSON values."""
    failure: Failure | None = None

    @classmethod
    def failed(cls, request: Request, failure: Failure) -> Reply:
        """The reply of a request that got no answer."""
        return cls(request_id=request.id, finish="error", failure=failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a streamed answer. The last one has the whole `reply` and usually no text.

    Tool calls are not streamed: the last chunk's reply has them.
    """

    text: str = ""
    reasoning: str = ""
    reply: Reply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What starting an engine cost and gave."""

    seconds: float = 0.0
    startup_seconds: float = 0.0
    """The part of them that only the first load waits for: importing the engine's libraries."""
    memory_bytes: int = 0
    """Resident memory of the model's process (or its share of ours); 0 when it runs elsewhere."""
    context_length: int | None = None
    """Tokens that prompt and answer may have together; None when the engine does not know."""
    probe: tuple[float, ...] = ()
    """Log-probabilities of a fixed text under the loaded weights, where the engine measures them: what
    the same weights must give again however they are loaded."""


class EngineError(RuntimeError):
    """An engine could not be started. Whoever owns it marks its experts as failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@runtime_checkable
class Engine(Protocol):
    """A model that can be asked. Built cheaply, started once, closed once."""

    name: str
    """For messages and logs; an engine never looks anything up by it."""

    async def start(self) -> Load:
        """Load the model. A second call returns the first call's answer.

        Raises:
            EngineError: the model could not be loaded; the message is one sentence with the reason.
        """
        ...

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        """Answer all requests together; replies come in the order of the requests.

        Args:
            requests: Answered as one batch where the engine can. Ids must differ.
            on_reply: Called with each reply as soon as it is finished, so that nothing finished is
                lost if the rest is interrupted.

        Cancelling the call aborts what is still running. The engine must have been started.
        """
        ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Answer one request piece by piece. Closing the iterator aborts the request."""
        ...

    async def close(self) -> None:
        """Release everything. Requests still in flight end in failures. Safe to call twice."""
        ...


@runtime_checkable
class Swapper(Protocol):
    """An engine that can take other weights of the same shape in place, in a fraction of a start."""

    async def swap(self, model: str, name: str) -> Load:
        """Replace the weights while nothing is in flight.

        Args:
            model: Folder of weights with the same architecture, shapes, tokenizer and template.
            name: What the engine is called from now on.

        Raises:
            EngineError: it did not work, or a probe shows that the result is not the model it should
                be; the engine is of no further use and must be closed.
        """
        ...


@runtime_checkable
class Sleeper(Protocol):
    """An engine that can give its device's memory back without ending its process."""

    @property
    def can_sleep(self) -> bool:
        """Whether the platform has it; told after `start`."""
        ...

    async def sleep(self, level: Literal[1, 2]) -> None:
        """Free the device: weights go to main memory (1), or are read from disk again later (2).

        Raises:
            EngineError: the engine is of no further use and must be closed.
        """
        ...

    async def wake(self) -> Load:
        """Take the memory again; `seconds` is what that took.

        Raises:
            EngineError: it did not work, or a probe shows other weights than before.
        """
        ...


@runtime_checkable
class Pulsed(Protocol):
    """An engine that shows that it is alive between replies."""

    @property
    def pulse(self) -> float:
        """When it last made progress (`time.monotonic`)."""
        ...

    @property
    def generated_tokens(self) -> int:
        """Tokens that it has generated so far, those of unfinished replies included."""
        ...
