"""What a report tells: whoever compares or solves fills this in, and the page shows it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...agents import Profile, Timeline
from ...graph import Solution

__all__ = ["ReportContent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """One comparison of methods on a data set, or one run.

    Everything but `title` may be empty: a section without data is left out. All texts count as
    untrusted. Shares (accuracy, ends of intervals, differences) are numbers from 0 to 1.
    """

    title: str
    """For instance `expertmix compare: questions.jsonl`."""
    main: str
    """Label of the method whose questions are shown one by one."""
    findings: Sequence[str] = ()
    """Sentences, the most important first: which differences are real, where mixing does not help."""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Data set, questions, pool, seeds, budgets, date, version, …: name to value."""
    rows: Sequence[Mapping[str, Any]] = ()
    """One per method and budget; keys that are missing or None are shown as a dash.

    `label` (unique, `debate@6`), `method`, `title` (in words), `source` (citation), `note`;
    `accuracy`, `low`, `high`, `n`, `seeds`; `calls` (at most per question), `calls_mean`, `tokens_mean`
    (generated per question), `prompt_tokens_mean`, `seconds_mean`, `loads`, `energy_mean` (joules), `ece`,
    `unread`, `failed`; `delta` (`mean`, `low`, `high`: minus that of the method `against`), `p`, `p_holm`;
    `is_ours`, `is_bound` (oracle, chance).
    """
    matched: Sequence[Mapping[str, Any]] = ()
    """Pairs at matched compute: `by` (`calls` or `tokens`), `at` (how many), `method`, `against` (labels),
    `mean`, `low`, `high` (of the difference), `p`, `p_holm`, `tokens_ratio` (`against` ÷ `method`),
    `verdict`."""
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    """Method to why it was not run."""
    solutions: Sequence[Solution] = ()
    """Of the method `main`."""
    others: Mapping[str, Mapping[str, tuple[str | None, bool | None]]] = field(
        default_factory=dict[str, Mapping[str, tuple[str | None, bool | None]]]
    )
    """What other methods answered: label → question id → (answer, whether it is right)."""
    profile: Profile | None = None
    """Who was known to be good at what."""
    timeline: Timeline | None = None
    """What ran when."""
    ledger: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """As `Ledger.to_json` gives it; a run folder's also holds a `forecast`."""
    hidden: Collection[str] = ()
    """Ids of questions that must not be shown, of confidential sets: of these the page holds the id, who
    was recruited, letters and marks, and no text, option, reply or word of a model."""
