"""What the residency loop may decide to do. Each names the resident whose state already says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .groups import Group
from .residents import Resident, Slice

__all__ = ["Action", "Begin", "End", "Refuse", "Rest", "Start", "Swap", "Wake"]


@dataclass(frozen=True, slots=True)
class Begin:
    """Give a slice of requests to an engine."""

    resident: Resident
    slice: Slice


@dataclass(frozen=True, slots=True)
class Start:
    """Load weights into a new engine."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class Swap:
    """Load weights in place of those that an engine has."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake an engine that sleeps."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class Rest:
    """Put an engine to sleep."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class End:
    """End an engine."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a group that there is no memory for it, although nothing of ours is in the way."""

    group: Group


Action: TypeAlias = Begin | Start | Swap | Wake | Rest | End | Refuse
