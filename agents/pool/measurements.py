"""What a load of some weights was found to take and to give, remembered for the next one.

Plans predict with it, and probes are compared with it: weights may be swapped in place only once a fresh load
has left the log-probabilities that they have to give.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ..engines import Load

__all__ = ["Measurement", "Measurements", "compare_probes"]

TOLERANCE = {"float32": 2e-3}
"""Largest difference of log-probabilities that is still the same model, in nats, by type of the numbers."""
USUAL_TOLERANCE = 0.3
"""For 16-bit types, where another batch or processor moves them by up to 0.1; the silent corruption that this
is here to catch moves them by more than 1 (specs/vllm.md §5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One load, afresh."""

    seconds: float
    memory_bytes: int
    probe: tuple[float, ...] = ()

    @classmethod
    def of_load(cls, load: Load) -> Measurement:
        """What a load reported, without what only the first one waits for."""
        return cls(
            seconds=load.seconds - load.startup_seconds,
            memory_bytes=load.memory_bytes,
            probe=load.probe,
        )


class Measurements:
    """A folder of small JSON files, one for weights on a kind of device in a version of the engine.

    What cannot be read or written is as if it were not there: it only costs time.

    Args:
        folder: In the cache; made when first needed. None remembers nothing beyond this process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, Measurement] = {}

    def find(self, key: str) -> Measurement | None:
        """The last fresh load under a key."""
        if key not in self._known and self._folder is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                row = json.loads((self._folder / f"{key}.json").read_text(encoding="ascii"))
                self._known[key] = Measurement(
                    seconds=float(row["seconds"]),
                    memory_bytes=int(row["memory_bytes"]),
                    probe=tuple(map(float, row["probe"])),
                )
        return self._known.get(key)

    def keep(self, key: str, measurement: Measurement) -> None:
        """Remember a fresh load."""
        self._known[key] = measurement
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                json.dump(asdict(measurement), stream)
            Path(name).replace(self._folder / f"{key}.json")


def compare_probes(
    found: tuple[float, ...], expected: tuple[float, ...], *, dtype: str | None
) -> str:
    """Why two probes cannot come from the same weights; empty if they can."""
    if not all(map(math.isfinite, found)):
        return "its log-probabilities are not numbers"
    if not expected:
        return ""
    if len(found) != len(expected):
        return "the probe has another length"
    largest = max((abs(a - b) for a, b in zip(found, expected, strict=True)), default=0.0)
    limit = TOLERANCE.get(dtype or "", USUAL_TOLERANCE)
    if largest <= limit:
        return ""
    return f"its log-probabilities differ by up to {largest:.3g} from those of a fresh load"
