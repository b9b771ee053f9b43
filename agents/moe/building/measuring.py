"""How often a model picks the right letter, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....retrieval import Question
from ..letters import Letters
from .training import letter_logits

__all__ = ["Accuracy", "measure_letters"]

BATCH = 16
Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Right answers to a number of choices."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """Right answers per question."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        # As `wilson_interval` of the floor above, which nothing here may import.
        n, p, square = self.total, self.share, Z95**2
        middle = (p + square / (2 * n)) / (1 + square / n)
        half = Z95 * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
        return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def measure_letters(model: Any, letters: Letters, questions: Sequence[Question]) -> Accuracy:
    """Ask labelled choices and count how often the gold letter is the likeliest."""
    right = 0
    ordered = sorted(questions, key=lambda q: len(q.text) + sum(map(len, q.options)))
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        picks = letter_logits(model, letters, batch).argmax(-1).tolist()
        right += sum(q.letters[pick] == q.gold for q, pick in zip(batch, picks, strict=True))
    return Accuracy(right=right, total=len(ordered))
