"""What the graph tells whoever streams it with `stream_mode="custom"`: the schema of its events.

Every event is a flat JSON object with the key `event`. Fields are only ever added. Nothing in an event
quotes a question or an answer; `message` may quote a model or a server and is untrusted text.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

__all__ = [
    "AggregatorFinished",
    "AggregatorStarted",
    "ExpertFailedEvent",
    "ExpertFinished",
    "ExpertLoading",
    "ExpertProgress",
    "ExpertQueued",
    "ExpertReady",
    "ExpertRetried",
    "ExpertStarted",
    "ExpertTokens",
    "ExpertsRecruited",
    "GraphEvent",
    "PoolSwap",
    "PoolTrouble",
    "QuestionsMerged",
    "describe_events",
]


class ExpertsRecruited(TypedDict):
    """Recruiting has chosen whom to ask next."""

    event: Literal["experts_recruited"]
    round: int
    """1, or more where failed experts are replaced or an adaptive panel grows."""
    questions: int
    """Of the batch."""
    calls: dict[str, int]
    """Expert to the questions that it will be asked now, in the order in which experts are asked."""


class ExpertStarted(TypedDict):
    """An expert is asked everything that it was recruited for."""

    event: Literal["expert_started"]
    expert: str
    questions: int
    round: NotRequired[int]
    """Of a talk between experts (debate, mixture of agents)."""


class ExpertQueued(TypedDict):
    """What the answer store does not know waits for the expert's model."""

    event: Literal["expert_queued"]
    expert: str
    requests: int


class ExpertLoading(TypedDict):
    """The expert's model begins to load. Several experts may share one model: each is told."""

    event: Literal["expert_loading"]
    expert: str
    weights: str
    device: str
    way: Literal["fresh", "reload", "wake"]


class PoolSwap(TypedDict):
    """For that, another model had to go."""

    event: Literal["pool_swap"]
    expert: str
    weights: str
    previous: str
    device: str


class ExpertReady(TypedDict):
    """The expert's model is loaded."""

    event: Literal["expert_ready"]
    expert: str
    weights: str
    device: str
    seconds: float


class ExpertTokens(TypedDict):
    """What the expert's model has generated since it last said so, for whichever of its experts."""

    event: Literal["expert_tokens"]
    expert: str
    tokens: int
    seconds: float


class ExpertProgress(TypedDict):
    """Replies came, out of the answer store or from the model; at most a hundred of these for one asking."""

    event: Literal["expert_progress"]
    expert: str
    replies: int
    """So far."""
    of: int


class PoolTrouble(TypedDict):
    """An engine of the expert's model died, hung, or could not load."""

    event: Literal["pool_trouble"]
    expert: str
    message: str


class ExpertRetried(TypedDict):
    """Nothing came of the expert, and what was wrong may have passed: it is asked once more."""

    event: Literal["expert_retried"]
    expert: str
    attempt: int
    """2 for the first repetition."""


class ExpertFinished(TypedDict):
    """The expert has answered, or failed to, everything that it was asked."""

    event: Literal["expert_finished"]
    expert: str
    answers: int
    failed: int
    """How many of them are failures."""
    round: NotRequired[int]


class ExpertFailedEvent(TypedDict):
    """Nothing came of the expert: all that it was asked is reported as failed, and the others go on."""

    event: Literal["expert_failed"]
    expert: str
    questions: int
    message: str


class AggregatorStarted(TypedDict):
    """A model merges the drafts of disputed questions."""

    event: Literal["aggregator_started"]
    expert: str
    questions: int


class AggregatorFinished(TypedDict):
    """It has."""

    event: Literal["aggregator_finished"]
    expert: str
    failed: int


class QuestionsMerged(TypedDict):
    """Every question has its verdict."""

    event: Literal["questions_merged"]
    questions: int
    answered: int
    disputed: int
    """Questions to which experts gave different answers."""


GraphEvent = (
    ExpertsRecruited
    | ExpertStarted
    | ExpertQueued
    | ExpertLoading
    | PoolSwap
    | ExpertReady
    | ExpertTokens
    | ExpertProgress
    | PoolTrouble
    | ExpertRetried
    | ExpertFinished
    | ExpertFailedEvent
    | AggregatorStarted
    | AggregatorFinished
    | QuestionsMerged
)


def describe_events() -> dict[str, Any]:
    """The JSON Schema of `GraphEvent`, for user interfaces in other languages."""
    from pydantic import TypeAdapter

    return TypeAdapter[Any](GraphEvent).json_schema()
