"""What a comparison came to: one row per method, pairs at matched compute, and both in words."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..agents.calibration import expected_calibration_error
from ..retrieval import InputError
from .accounts import Spending
from .intervals import resample
from .lineup import YARDSTICK
from .matching import Pair, match_by
from .methods import BOUNDS, OURS, Method
from .result import Solution, wilson_interval
from .significance import compare_pairs
from .verdicts import count, tell_findings

__all__ = ["Comparison", "Entry"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method at one size, over all seeds."""

    method: Method
    by_seed: Mapping[int, Sequence[Solution]]
    """Solutions in the questions' order, the same questions for every seed."""
    spending: Spending
    energy: float | None = None
    """Joules per question, at the rate measured over the whole comparison."""

    @property
    def label(self) -> str:
        """Unique among the entries of a comparison."""
        return f"{self.method.name}@{self.method.calls}"

    @cached_property
    def right(self) -> list[Bools]:
        """Of each seed, which questions [Q] are right."""
        return [
            np.array([bool(s.correct) for s in self.by_seed[seed]]) for seed in sorted(self.by_seed)
        ]

    @property
    def is_ours(self) -> bool:
        """Whether it is this library's own way."""
        return self.method.name in OURS

    @property
    def is_bound(self) -> bool:
        """Whether it is no method but a bound."""
        return self.method.name in BOUNDS


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on the same questions, over the same pool."""

    entries: Sequence[Entry]
    """In the order of `METHODS`, then by size."""
    chance: float
    """Expected share right of blind guessing."""
    budgets: Sequence[int]
    """Calls per question at which methods were made to fit."""
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    """Methods that were not run, and why."""
    remarks: Sequence[str] = ()
    """What a reader should know of the data and the measurement."""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, label: str) -> Entry:
        for entry in self.entries:
            if entry.label == label:
                return entry
        raise InputError(
            f'there is no "{label}" here; there are {", ".join(e.label for e in self.entries)}'
        )

    @property
    def main(self) -> Entry | None:
        """The entry to look at one question after the other: our fixed panel at the first budget of several calls."""
        ours = [entry for entry in self.entries if entry.is_ours]
        ours = ours or [entry for entry in self.entries if not entry.is_bound]
        fixed = [entry for entry in ours if entry.method.name == "panel"] or ours
        budget = next((calls for calls in self.budgets if calls > 1), self.budgets[0])
        best = [entry for entry in fixed if entry.method.calls <= budget]
        return (best or fixed)[-1] if fixed else None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row per entry, as in `result.json`, and one for chance.

        Accuracies are means over seeds with 95 % bootstrap intervals over questions; `delta` is the difference to
        `single_best` with a paired one, and McNemar's p corrected by Holm over all rows. Calls and tokens are means
        per question. `loads` is for a device that holds one model at a time; `seconds_mean` is engine time at
        each expert's measured pace.
        """
        yard = next((e for e in self.entries if e.method.name == YARDSTICK), None)
        others = [e for e in self.entries if e is not yard and not e.is_bound]
        gains = (
            {}
            if yard is None
            else dict(
                zip(
                    (e.label for e in others),
                    compare_pairs([(e.right, yard.right) for e in others]),
                    strict=True,
                )
            )
        )
        rows: list[dict[str, Any]] = []
        for entry, interval in zip(self.entries, _find_intervals(self.entries), strict=True):
            gain = gains.get(entry.label)
            told = None if gain is None else gain.to_json()
            rows.append(
                {
                    **_describe(entry, interval),
                    "delta": told and {name: told[name] for name in ("mean", "low", "high")},
                    "against": None if told is None or yard is None else yard.label,
                    "p": told and told["p"],
                    "p_holm": told and told["p_holm"],
                    "verdict": told and told["verdict"],
                }
            )
        number = rows[0]["n"] if rows else 0
        return [*rows, _describe_chance(self.chance, number)]

    @cached_property
    def matched(self) -> list[Pair]:
        """Ours against every other method at the same number of calls, and of generated tokens."""
        return [*match_by("calls", self.entries, self.budgets), *match_by("tokens", self.entries)]

    @property
    def findings(self) -> list[str]:
        """What the figures say, in sentences, the most important first."""
        return tell_findings(self.rows, self.matched, skipped=self.skipped, remarks=self.remarks)

    def to_json(self) -> dict[str, Any]:
        """Everything but single answers, as plain JSON values."""
        return {
            "rows": self.rows,
            "matched": [pair.to_json() for pair in self.matched],
            "findings": self.findings,
            "skipped": dict(self.skipped),
            "budgets": list(self.budgets),
            "facts": dict(self.facts),
        }

    def to_pandas(self) -> Any:
        """One row per method and size as a `pandas.DataFrame`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("to_pandas needs pandas: pip install pandas") from None
        flat: list[dict[str, Any]] = []
        for row in map(dict, self.rows):
            delta = row.pop("delta") or {}
            flat.append({**row, **{f"delta_{name}": value for name, value in delta.items()}})
        return pd.DataFrame(flat)

    def save(self, path: str | Path) -> None:
        """Write `to_json` as a file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")

    def __repr__(self) -> str:
        number = self.rows[0]["n"]
        methods = len({entry.method.name for entry in self.entries})
        return (
            f"<Comparison of {count(len(self.entries), 'form')} of {count(methods, 'method')} "
            f"on {count(number, 'question')}>"
        )

    def _repr_html_(self) -> str:
        """A table for notebooks, with the findings above it."""
        columns = ("method", "calls", "tokens", "right", "95 %", "to the strongest alone")
        head = "".join(f"<th>{column}</th>" for column in columns)
        body = "".join(map(_html_row, self.rows))
        told = "".join(f"<li>{html.escape(line)}</li>" for line in self.findings)
        return (
            f"<p>{html.escape(repr(self))}</p><ul>{told}</ul><table><tr>{head}</tr>{body}</table>"
        )


def _find_intervals(entries: Sequence[Entry]) -> list[tuple[float, float]]:
    """The 95 % interval of each accuracy: by bootstrap, and Wilson's where resamples cannot differ."""
    if not entries:
        return []
    mean_QM = np.stack([np.mean(entry.right, axis=0) for entry in entries], axis=1)
    low_M, high_M = np.percentile(resample(mean_QM), (2.5, 97.5), axis=0)
    number = len(mean_QM)
    is_flat_M = (mean_QM == mean_QM[0]).all(0)
    return [
        wilson_interval(round(number * mean_QM[0, at]), number)
        if is_flat_M[at]
        else (float(low_M[at]), float(high_M[at]))
        for at in range(len(entries))
    ]


def _describe(entry: Entry, interval: tuple[float, float]) -> dict[str, Any]:
    shares = [right.mean() for right in entry.right]
    low, high = interval
    solutions = [s for seed in sorted(entry.by_seed) for s in entry.by_seed[seed]]
    number = len(solutions)
    spending = entry.spending
    ece = None
    if not entry.is_bound:
        sure = np.array([solution.confidence for solution in solutions])
        ece = round(expected_calibration_error(sure, np.concatenate(entry.right).astype(float)), 5)
    return {
        "label": entry.label,
        "method": entry.method.name,
        "title": entry.method.title,
        "source": entry.method.source,
        "calls": entry.method.calls,
        "calls_mean": round(spending.calls, 3),
        "prompt_tokens_mean": round(spending.prompt_tokens, 1),
        "tokens_mean": round(spending.tokens, 2),
        "seconds_mean": None if spending.seconds is None else round(spending.seconds, 4),
        "loads": spending.loads,
        "energy_mean": None if entry.energy is None else round(entry.energy, 3),
        "accuracy": round(float(np.mean(shares)), 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "n": len(entry.right[0]),
        "seeds": len(entry.right),
        "seed_spread": round(float(np.std(shares)), 5),
        "ece": ece,
        "unread": round(sum(s.answer is None for s in solutions) / number, 5),
        "failed": round(sum(bool(s.row["missing"]) for s in solutions) / number, 5),
        "is_ours": entry.is_ours,
        "is_bound": entry.is_bound,
    }


def _describe_chance(chance: float, number: int) -> dict[str, Any]:
    told = {"label": "chance", "method": "chance", "title": "blind guessing", "source": ""}
    costs = {"calls": 0, "calls_mean": 0.0, "prompt_tokens_mean": 0.0, "tokens_mean": 0.0}
    share = round(chance, 5)
    return {
        **told,
        **costs,
        "seconds_mean": 0.0,
        "loads": 0,
        "energy_mean": None,
        "accuracy": share,
        "low": share,
        "high": share,
        "n": number,
        "seeds": 1,
        "seed_spread": 0.0,
        "ece": None,
        "unread": 0.0,
        "failed": 0.0,
        "is_ours": False,
        "is_bound": True,
        "delta": None,
        "against": None,
        "p": None,
        "p_holm": None,
        "verdict": None,
    }


def _html_row(row: Mapping[str, Any]) -> str:
    delta = row["delta"]
    gain = (
        "—"
        if delta is None
        else f"{delta['mean']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}]"
    )
    name = html.escape(f"{row['label']}: {row['title']}")
    cells = (
        f"<b>{name}</b>" if row["is_ours"] else name,
        f"{row['calls_mean']:.3g}",
        f"{row['tokens_mean']:.0f}",
        f"{row['accuracy']:.3f}",
        f"{row['low']:.3f}–{row['high']:.3f}",
        gain,
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
