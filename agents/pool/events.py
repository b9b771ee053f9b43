"""What a pool tells whoever watches it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["EventKind", "LoadWay", "PoolEvent"]

EventKind = Literal[
    "queued",  # requests of an expert arrived
    "finished",  # replies to requests of an expert came
    "loading",  # an engine begins to load weights
    "ready",  # it has them
    "working",  # an engine has something to generate
    "resting",  # and now no more
    "tokens",  # what an engine has generated since it last said so
    "died",  # an engine died, hung or answered wrongly; what it owes is asked again or fails
    "failed",  # weights could not be loaded, or a death was one too many
    "asleep",  # an engine gave its device's memory back and keeps its process
    "unloaded",  # an engine ended
    "warning",  # something that nobody has to act on now
]

LoadWay = Literal["fresh", "reload", "wake"]
"""How weights came onto a device: a new process, in place of others', or woken from sleep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """Something that a progress bar, a notebook, a log or a picture may want to show."""

    kind: EventKind
    weights: str
    """What a person calls the model."""
    at: float = 0.0
    """Seconds since the pool was opened."""
    device: str = ""
    engine: int = 0
    """Number of the engine, for events of one: replicas of the same weights have different ones."""
    alias: str | None = None
    """The expert, for `queued` and `finished`."""
    stage: str | None = None
    number: int = 0
    """Requests queued, replies that came, or tokens generated since the last `tokens`."""
    seconds: float = 0.0
    """How long loading took, for `ready`; the time that `number` tokens took, for `tokens`."""
    way: LoadWay = "fresh"
    """For `loading` and `ready`."""
    previous: str = ""
    """The weights that had to go for it, for `loading` and `ready`: a swap. Empty if none had to."""
    message: str = ""
    """The reason, for `died`, `failed` and `warning`. It may quote a model: untrusted text."""

    def to_json(self) -> dict[str, Any]:
        """The event as plain JSON values."""
        return asdict(self)
