"""How well experts merge drafts, kept beside the profile, and who is chosen for it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..retrieval import InputError
from .drafts import aggregation_prompt_hash
from .outcomes import SkillWeights
from .pool import Pool
from .strength import beta_interval

__all__ = ["AggregatorScore", "AggregatorScores"]

FORMAT = 1
FILE = "aggregators.json"
TASK_PRIOR = 5.0
"""Cases that chance is worth to a candidate's share over the task: a lucky few prove nothing."""
SKILL_PRIOR = 20.0
"""Cases that a candidate's share over the task is worth to its share at a skill. Large on purpose:
choosing by question was worse than choosing by task in the paper (symbolic-moe.md §3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorScore:
    """How well one candidate merged. A case counts 1, however many samples it was asked for."""

    identity: str
    """As `ExpertProfile.identity`; empty where its weights are not there."""
    chance: float
    """As `Cases.chance`."""
    right: float = 0.0
    total: float = 0.0
    """Cases with a reply."""
    skills: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )
    """Skill to right and total, each case counted with the skill's share of it."""
    calls: int = 0
    unreadable: int = 0
    """Replies without an answer; they are wrong."""
    too_long: int = 0
    """Prompts that do not fit its context window; they are wrong, since they would not fit later."""
    failed: int = 0
    """Calls without a reply for any other reason; they say nothing about skill and count nowhere else."""
    crowded: int = 0
    """Replies to cases whose wrong drafts agree."""
    followed: int = 0
    """How many of these give the crowd's answer."""
    reason: str = ""
    """Why the first call failed, if one did."""

    @property
    def usable(self) -> bool:
        """Whether there is a reply to judge by; one that fits no prompt cannot merge anything."""
        return self.total > 0 and self.too_long < self.calls - self.failed

    @property
    def overall(self) -> float:
        """Estimated chance to be right on a case of the task, shrunk towards chance."""
        return (self.right + TASK_PRIOR * self.chance) / (self.total + TASK_PRIOR)

    def estimate(self, skill: str) -> float:
        """Estimated chance at a skill, shrunk towards `overall`; an unknown skill has just that."""
        right, total = self.skills.get(skill, (0.0, 0.0))
        return (right + SKILL_PRIOR * self.overall) / (total + SKILL_PRIOR)

    def weigh(self, skills: SkillWeights) -> float:
        """Estimated chance for a question; what no skill explains counts as `overall`."""
        gains = (share * (self.estimate(skill) - self.overall) for skill, share in skills.items())
        return self.overall + math.fsum(gains)

    def interval(self, skill: str | None = None) -> tuple[float, float]:
        """95 % credible interval of `overall`, or of `estimate` for a skill."""
        if skill is None:
            mean, size = self.overall, self.total + TASK_PRIOR
        else:
            mean = self.estimate(skill)
            size = self.skills.get(skill, (0.0, 0.0))[1] + SKILL_PRIOR
        return beta_interval(mean * size, (1 - mean) * size)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorScores:
    """Scores of candidates on the same cases, under one prompt."""

    cases: str
    """Fingerprint of the cases' questions."""
    prompts: str
    """Hash of the prompt by which candidates were asked."""
    seed: int
    samples: int
    number: int
    """Cases."""
    chance: float
    vote: float
    """As `Cases.vote`."""
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    candidates: Mapping[str, AggregatorScore] = field(default_factory=dict[str, AggregatorScore])

    def choose(self, skills: SkillWeights | None = None) -> str:
        """The candidate with the largest `weigh`, over the task if no skills are given.

        Ties go to the alias that comes first in the alphabet. Unusable candidates are never chosen.

        Raises:
            InputError: no candidate is usable.
        """
        usable = {alias: score for alias, score in self.candidates.items() if score.usable}
        if not usable:
            told = "; ".join(f'"{a}": {s.reason}' for a, s in sorted(self.candidates.items()))
            raise InputError(
                f"no candidate can merge drafts ({told or 'there are none'}); merge by vote, or "
                "benchmark aggregators again"
            )
        # Rounded: equal sums must not differ by the order of their terms.
        return min(usable, key=lambda alias: (-round(usable[alias].weigh(skills or {}), 12), alias))

    def check(self, pool: Pool, aliases: Iterable[str] | None = None) -> None:
        """Refuse to speak for experts that were not the ones benchmarked.

        Args:
            pool: The experts as they are now.
            aliases: Whom to check; by default all that could be chosen.

        Raises:
            InputError: an expert is unknown or was changed since, or the prompt was.
        """
        if self.prompts != aggregation_prompt_hash():
            raise InputError(
                "the aggregators were benchmarked with another prompt than this version asks; "
                "benchmark them again"
            )
        usable = [alias for alias, score in self.candidates.items() if score.usable]
        for alias in usable if aliases is None else aliases:
            if alias not in self.candidates:
                known = ", ".join(self.candidates) or "nobody"
                raise InputError(
                    f'"{alias}" was not benchmarked as an aggregator, only {known}; '
                    "benchmark it with the others"
                )
            if alias not in pool.catalog:
                raise InputError(
                    f'the benchmarked aggregator "{alias}" is not in the pool, which has '
                    f"{', '.join(pool.catalog)}; benchmark the pool's own experts"
                )
            if self.candidates[alias].identity != pool.identity(alias):
                raise InputError(
                    f'the aggregator "{alias}" is not the one that was benchmarked (its weights, '
                    "adapter, persona, style or sampling changed); benchmark it again"
                )

    def save(self, folder: str | Path) -> Path:
        """Write `aggregators.json` into a profile folder, replacing an older one in one step."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> AggregatorScores:
        """Read such a file, or `aggregators.json` in a folder.

        Raises:
            InputError: it is missing, or no scores of this version.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"no scores of aggregators at {path}: make them with `expertmix aggregators`"
            )
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The scores as plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> AggregatorScores:
        """Read what `to_json` made.

        Raises:
            InputError: it is something else, or of another version.
        """
        version = content.get("format") if isinstance(content, dict) else None
        if version != FORMAT:
            raise InputError(
                f"it has format {version} of aggregator scores, this version reads {FORMAT}; "
                "benchmark aggregators again"
            )
        try:
            rest = {key: value for key, value in content.items() if key != "format"}
            rest["candidates"] = {a: _read_score(row) for a, row in rest["candidates"].items()}
            return cls(**rest)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("it holds no scores of aggregators; benchmark them again") from None


_COUNTS = ("calls", "unreadable", "too_long", "failed", "crowded", "followed")


def _read_score(row: Mapping[str, Any]) -> AggregatorScore:
    skills = {
        skill: (float(right), float(total)) for skill, (right, total) in row["skills"].items()
    }
    for right, total in (*skills.values(), (float(row["right"]), float(row["total"]))):
        if not 0 <= right <= total < math.inf:
            raise ValueError
    if not all(type(row[name]) is int and row[name] >= 0 for name in _COUNTS):
        raise ValueError
    told: dict[str, Any] = {**row, "skills": skills, "chance": float(row["chance"])}
    return AggregatorScore(**told)
