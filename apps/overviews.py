"""What there is, as tables: plans, pools, profiles and the state of this machine."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..agents import LoadPlan, Profile
from .doctor import Finding
from .pools import PoolCheck
from .tables import clean_text

__all__ = ["tabulate_checks", "tabulate_findings", "tabulate_plan", "tabulate_profile"]


def tabulate_plan(plan: LoadPlan) -> Table:
    """Every load in order, before anything runs."""
    table = Table(title="Plan", title_justify="left")
    for column in ("weights", "engine", "experts (calls)", "memory", "tokens", "seconds"):
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
            "?" if planned.seconds is None else f"{planned.seconds:,}",
        )
    table.caption = f"{plan.calls} calls, {plan.loads} loads"
    table.caption_justify = "left"
    return table


def tabulate_profile(profile: Profile) -> Table:
    """Right answers per expert and skill; the best of each skill stands out."""
    skills = sorted({skill for expert in profile.experts.values() for skill in expert.skills})
    table = Table(title="Profile: right answers per skill", title_justify="left")
    table.add_column("skill", overflow="fold")
    for alias in profile.experts:
        table.add_column(alias, justify="right", overflow="fold")
    for skill in skills:
        best = max(expert.estimate(skill) for expert in profile.experts.values())
        cells: list[str] = []
        for expert in profile.experts.values():
            tally = expert.skills.get(skill)
            cell = f"{tally.right}/{tally.total}" if tally else "—"
            cells.append(f"[bold]{cell}[/bold]" if expert.estimate(skill) == best else cell)
        table.add_row(clean_text(skill), *cells)
    table.add_section()
    totals = [f"{e.overall.right}/{e.overall.total}" for e in profile.experts.values()]
    table.add_row("all", *totals)
    return table


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
