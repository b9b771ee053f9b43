"""The files of a study: finished seeds, and a tidy table of them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..graph.replay import RULES, Replay

__all__ = ["SeedFile", "write_seeds", "write_text"]


class SeedFile:
    """One line per finished seed: whatever is interrupted, these are kept.

    Args:
        path: The file; it may hold seeds of other studies.
        key: Of this study: its table and settings.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key

    def read(self) -> dict[int, tuple[list[Replay], list[str]]]:
        """Finished seeds of this study: replays, and what could not be replayed."""
        found: dict[int, tuple[list[Replay], list[str]]] = {}
        if not self.path.is_file():
            return found
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                if row["key"] == self.key:
                    replays = [Replay.from_json(replay) for replay in row["replays"]]
                    found[int(row["seed"])] = replays, list(row["lacking"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut off: that seed is replayed again
        return found

    def add(self, seed: int, replays: Sequence[Replay], lacking: Sequence[str]) -> None:
        """Keep a finished seed."""
        row = {
            "key": self.key,
            "seed": seed,
            "lacking": list(lacking),
            "replays": [replay.to_json() for replay in replays],
        }
        with self.path.open("a", encoding="utf-8") as file:
            # A line of its own, even after one that was cut off.
            file.write(("\n" if file.tell() else "") + json.dumps(row))


def write_seeds(
    path: Path, by_seed: Mapping[int, Sequence[Replay]], policies: Sequence[str]
) -> None:
    """Tidy: one row per policy, calls and seed."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        head = ("policy", "calls", "seed", "rule", "accuracy", "calls_mean", "tokens_mean", "ece")
        writer.writerow((*head, "n"))
        for seed, replays in by_seed.items():
            for r in (replay for replay in replays if replay.policy in policies):
                ece = "" if r.ece is None else round(r.ece, 5)
                told = (round(float(r.right_Q.mean()), 5), round(r.calls_mean, 5))
                written = (r.policy, r.calls, seed, RULES[r.policy], *told)
                writer.writerow((*written, round(r.tokens_mean, 1), ece, len(r.right_Q)))
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
