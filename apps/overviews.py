"""What there is, as tables: plans, pools, profiles and the state of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from ..agents import AggregatorScores, LoadPlan, Profile, Strengths, Tally
from ..agents.pool import PlannedGroup
from .doctor import Finding
from .pools import PoolCheck
from .tables import clean_text
from .timeline_picture import text_timeline

__all__ = [
    "draw_plan",
    "tabulate_aggregators",
    "tabulate_checks",
    "tabulate_findings",
    "tabulate_outlooks",
    "tabulate_plan",
    "tabulate_profile",
]


def tabulate_plan(plan: LoadPlan) -> Table:
    """Every load in order, before anything runs."""
    table = Table(title="Plan", title_justify="left")
    for column in ("weights", "engine", "experts (calls)", "memory", "tokens", "seconds", "where"):
        table.add_column(column, overflow="fold")
    for planned in plan.groups:
        calls = ", ".join(f"{alias} ({number})" for alias, number in planned.calls.items())
        memory = planned.memory_bytes
        table.add_row(
            clean_text(planned.group.name),
            planned.group.specs[0].engine,
            calls,
            f"{memory / 2**30:.1f} GiB" if memory else "elsewhere",
            "?" if planned.tokens is None else f"{planned.tokens:,}",
            "?" if planned.seconds is None else f"{planned.seconds:,.0f}",
            _tell_places(planned),
        )
    table.caption = _tell_plan(plan)
    table.caption_justify = "left"
    return table


def draw_plan(plan: LoadPlan) -> RenderableType:
    """The plan as a small Gantt chart: what is where, when."""
    return text_timeline(plan.draw()) if plan.schedule is not None else ""


def _tell_places(planned: PlannedGroup) -> str:
    places = dict.fromkeys(placement.device for placement in planned.placements)
    copies = len(planned.placements)
    return ", ".join(places) + (f" ({copies} engines)" if copies > 1 else "")


def _tell_plan(plan: LoadPlan) -> str:
    parts = [f"{plan.calls} calls, {plan.loads} loads"]
    if plan.replicas:
        parts.append(f"{plan.replicas} more to share the work")
    for device, peak in plan.memory_peaks.items():
        parts.append(f"at most {peak / 2**30:.1f} GiB of {device}")
    if plan.makespan is not None:
        parts.append(f"about {plan.makespan:,.0f} s in all")
    elif plan.schedule is not None:
        parts.append("no profile: every call is taken to last as long as any other")
    return ", ".join(parts)


def tabulate_outlooks(outlooks: Iterable[Mapping[str, Any]]) -> Table:
    """What was planned, beside what came of it: rows of `Outlook.to_json()`."""
    table = Table(title="Planned and real", title_justify="left")
    table.add_column("figure")
    for column in ("planned", "real", "error"):
        table.add_column(column, justify="right")
    for row in outlooks:
        planned = "?" if row["planned"] is None else f"{row['planned']:,.4g}"
        error = "" if row["error"] is None else f"{row['error']:+.0%}"
        table.add_row(row["figure"], planned, f"{row['real']:,.4g}", error)
    return table


def tabulate_profile(profile: Profile) -> Table:
    """Right answers per expert and skill; who is estimated best at a skill stands out.

    A question counts for a skill by its share, so counts may be fractions.
    """
    strengths = Strengths.fit(profile.table())
    views = [profile[alias] for alias in strengths.experts]
    table = Table(title="Profile: right answers per skill", title_justify="left")
    table.add_column("skill", overflow="fold")
    for alias in strengths.experts:
        table.add_column(clean_text(alias), justify="right", overflow="fold")
    for column, skill in enumerate(strengths.skills):
        shares_E = strengths.skill_ES[:, column]
        cells = [_tell_tally(view.skills.get(skill, Tally())) for view in views]
        for row in np.flatnonzero(shares_E == shares_E.max()):
            cells[row] = f"[bold]{cells[row]}[/bold]"
        table.add_row(clean_text(skill), *cells)
    table.add_section()
    table.add_row("all", *(_tell_tally(view.overall) for view in views))
    table.add_section()
    table.add_row("tokens per call", *(f"{view.tokens_per_call:.0f}" for view in views))
    table.add_row("seconds per call", *(f"{view.seconds_per_call:.2f}" for view in views))
    if profile.failed:
        table.add_row("without a reply", *(str(view.failed or "—") for view in views))
    return table


def tabulate_aggregators(scores: AggregatorScores) -> Table:
    """How often each candidate gave the right answer out of one right and two wrong drafts."""
    table = Table(title=f"Merging drafts, {scores.number} cases", title_justify="left")
    for column in ("candidate", "right", "share", "95 % interval", "unreadable", "failed"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    best = scores.choose() if any(s.usable for s in scores.candidates.values()) else None
    for alias, score in scores.candidates.items():
        low, high = score.interval()
        name = clean_text(alias)
        table.add_row(
            f"[bold]{name}[/bold]" if alias == best else name,
            f"{score.right:g}/{score.total:g}",
            f"{score.overall:.3f}",
            f"{low:.3f}–{high:.3f}",
            str(score.unreadable),
            str(score.failed),
        )
    table.add_section()
    table.add_row("a draft at random", "", f"{scores.chance:.3f}", "", "", "")
    table.add_row("vote", "", f"{scores.vote:.3f}", "", "", "")
    table.caption = "shares are shrunk towards chance; " + (
        ", ".join(f"{n} references dropped: {why}" for why, n in scores.dropped.items())
        or "all used"
    )
    table.caption_justify = "left"
    return table


def _tell_tally(tally: Tally) -> str:
    if not tally.total:
        return "—"
    return f"{round(tally.right, 1):g}/{round(tally.total, 1):g}"


def tabulate_checks(checks: Sequence[PoolCheck]) -> Table:
    """One row per model of a pool file."""
    table = Table(title="Pool", title_justify="left")
    for column in ("weights", "engine", "experts", "memory", "state"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(
            clean_text(check.weights),
            check.engine,
            ", ".join(check.experts),
            f"{check.memory_bytes / 2**30:.1f} GiB" if check.memory_bytes else "—",
            f"[red]{clean_text(check.problem, 500)}" if check.problem else "[green]ready",
        )
    return table


def tabulate_findings(findings: Sequence[Finding]) -> Table:
    """One row per thing that was looked at, with what to do where it is not well."""
    table = Table(title="Doctor", title_justify="left", show_lines=False)
    for column in ("", "what", "state", "what to do"):
        table.add_column(column, overflow="fold")
    marks = {
        "ok": "[green]ok",
        "missing": "[yellow]missing",
        "broken": "[red]broken",
        "info": "info",
    }
    for finding in findings:
        table.add_row(
            marks[finding.status],
            clean_text(finding.name),
            clean_text(finding.detail, 400),
            clean_text(finding.remedy or "", 400),
        )
    return table
