"""One thing that was looked at, and how it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Finding", "Status"]

Status = Literal["ok", "missing", "broken", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, how it is, and what would help."""

    name: str
    status: Status
    """`missing` is a choice not made, `broken` something installed that does not work."""
    detail: str
    remedy: str = ""
    """One sentence or command; empty where nothing needs to be done."""

    def to_json(self) -> dict[str, str]:
        """The finding as a plain JSON object with the fields above."""
        return asdict(self)
