"""What came of a batch of questions: answers with their reasons, and how many were right."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agents import is_correct
from ..retrieval import InputError, Question
from .result_table import write_table

__all__ = ["Result", "Score", "Solution", "wilson_interval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A share with its uncertainty."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """The share that is right; 0 for nothing."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval."""
        return wilson_interval(self.right, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.3f} [{low:.3f}, {high:.3f}] ({self.right} of {self.total})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """One question with the panel's verdict; `row` is its line in `answers.jsonl`."""

    question: Question
    row: Mapping[str, Any]

    @property
    def answer(self) -> str | None:
        """A letter, a number or a short text; None if no expert gave a readable one."""
        return self.row["answer"]

    @property
    def confidence(self) -> float:
        """Chance that the answer is right; without a profile, the share of readable answers that agree."""
        return self.row["confidence"]

    @property
    def abstained(self) -> bool:
        """Whether there is no answer because the confidence was too small."""
        return self.row["abstained"]

    @property
    def skills(self) -> dict[str, float]:
        """What the question was found to need, each skill with its share of it."""
        return self.row["skills"]

    @property
    def experts(self) -> list[dict[str, Any]]:
        """Who was recruited, why, and what each one answered."""
        return self.row["experts"]

    @property
    def correct(self) -> bool | None:
        """Whether the answer equals the gold answer; None where there is no gold."""
        return None if self.question.gold is None else is_correct(self.answer, self.question)


class Result(Sequence[Solution]):
    """Solutions in the order of the questions, and the ledger of what they cost."""

    def __init__(self, solutions: Sequence[Solution], ledger: Mapping[str, Any]) -> None:
        self.solutions = list(solutions)
        self.ledger = dict(ledger)

    def __len__(self) -> int:
        return len(self.solutions)

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.solutions)

    def __getitem__(self, at: Any) -> Any:
        return self.solutions[at]

    @property
    def score(self) -> Score | None:
        """How many questions with a gold answer the panel got right; None if none has one."""
        marks = [s.correct for s in self.solutions if s.correct is not None]
        return Score(right=sum(marks), total=len(marks)) if marks else None

    @property
    def chance(self) -> float | None:
        """Expected share right of blind guessing: 1 / options for choices, 0 for open questions."""
        marked = [s.question for s in self.solutions if s.question.gold is not None]
        if not marked:
            return None
        return sum(1 / len(q.options) if q.options else 0.0 for q in marked) / len(marked)

    def score_experts(self) -> dict[str, Score]:
        """Right answers per expert, on the questions for which it was recruited and has a reply."""
        marks: dict[str, list[bool]] = {}
        for solution in self.solutions:
            if solution.question.gold is None:
                continue
            for row in solution.experts:
                if row["error"] is None:
                    right = is_correct(row["answer"], solution.question)
                    marks.setdefault(row["expert"], []).append(right)
        return {a: Score(right=sum(m), total=len(m)) for a, m in sorted(marks.items())}

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain JSON object per question, as in `answers.jsonl`."""
        return [dict(solution.row) for solution in self.solutions]

    def to_pandas(self) -> Any:
        """One row per question as a `pandas.DataFrame`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("to_pandas needs pandas: pip install pandas") from None
        return pd.DataFrame(self.to_rows())

    def save(self, path: str | Path) -> None:
        """Write one JSON object a line."""
        lines = (json.dumps(row) for row in self.to_rows())
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def __repr__(self) -> str:
        score = f", right {self.score}" if self.score else ""
        return f"<Result of {len(self)} questions{score}, {self.ledger.get('calls', 0)} calls>"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        headline = f"{len(self)} questions, {self.ledger.get('calls', 0)} calls"
        return write_table(self, f"{headline}, right {self.score}" if self.score else headline)


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); (0, 1) for no observations."""
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, z * z
    middle = (share + square / (2 * total)) / (1 + square / total)
    spread = share * (1 - share) / total + square / (4 * total * total)
    half = z / (1 + square / total) * math.sqrt(spread)
    return max(0.0, middle - half), min(1.0, middle + half)
