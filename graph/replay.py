"""What a study replays, and what came of one replay."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RULES", "Replay"]

RULES: dict[str, str] = {
    "skill": "posterior",
    "adaptive": "posterior",
    "skill_vote": "vote",
    "skill_shuffled": "posterior",
    "top_k": "posterior",
    "top_k_vote": "vote",
    "knn": "posterior",
    "random": "posterior",
    "random_vote": "vote",
    "reference": "vote",
    "paper": "vote",
    "paper-trimmed": "vote",
    "best_single": "alone",
    "best_single_hindsight": "alone",
    "oracle": "any",
}
"""What a study replays, and how it merges. `skill_shuffled` gives every test question another one's skills;
`best_single_hindsight` is the best on the test itself; `oracle` is right where any expert is."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One policy at one number of calls with one seed."""

    policy: str
    calls: int
    right_Q: npt.NDArray[np.bool_]
    calls_mean: float
    tokens_mean: float
    """Of all calls about a question together; 0 where lengths are not known."""
    ece: float | None = None
    """Expected calibration error; None for rules that state no confidence."""

    def to_json(self) -> dict[str, Any]:
        """The replay as plain JSON values, a bit per question."""
        packed = base64.b64encode(np.packbits(self.right_Q).tobytes()).decode()
        return {**asdict(self), "right_Q": packed, "questions": len(self.right_Q)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Replay:
        """Read what `to_json` gave.

        Raises:
            ValueError: it is not that.
        """
        content: dict[str, Any] = {**row}
        bits = np.frombuffer(base64.b64decode(content.pop("right_Q")), np.uint8)
        number = int(content.pop("questions"))
        if not 0 <= number <= 8 * len(bits):
            raise ValueError(f"{len(bits)} bytes hold no {number} questions")
        return cls(**content, right_Q=np.unpackbits(bits, count=number).astype(np.bool_))
