"""What a pool tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PoolEvent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """Something that a progress bar, a notebook or a log may want to show."""

    kind: Literal["loading", "ready", "failed", "unloaded", "asked", "replied"]
    weights: str
    """What a person calls the model."""
    alias: str | None = None
    """The expert, for `asked` and `replied`."""
    stage: str | None = None
    number: int = 0
    """Requests asked, or replies that came."""
    seconds: float = 0.0
    """How long loading took, for `ready`."""
    message: str = ""
    """The reason, for `failed`. It may quote a model or a server: untrusted text."""
