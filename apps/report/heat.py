"""Tables whose shades tell who is recruited for what, and who is good at what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...agents import Profile, Tally
from ...graph import Solution
from .curtain import Curtain
from .wording import DASH, clean, count, keep_start

__all__ = ["HeatCell", "HeatLine", "HeatTable", "level", "shade_profile", "shade_recruits"]

LEVELS = 9
"""The darkest shade; 0 is none."""
MOST = 40
"""Skills in one table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """A figure on a shade."""

    text: str = ""
    level: int = 0
    told: str = ""
    """The figure in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatLine:
    """A skill and its figures."""

    name: str
    number: str = ""
    cells: Sequence[HeatCell]
    is_total: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatTable:
    """A line per skill, a column per expert."""

    corner: str
    number: str
    """Head of the numbers beside the skills."""
    experts: Sequence[str]
    lines: Sequence[HeatLine]
    rest: int = 0
    """Further skills that are not shown."""


def level(share: float) -> int:
    """The shade of a share of 1."""
    return round(LEVELS * max(0.0, min(1.0, share)))


def shade_recruits(solutions: Sequence[Solution], curtain: Curtain) -> HeatTable | None:
    """For each skill the share of its questions for which each expert was recruited.

    A question counts once for every skill that it was found to need.

    Args:
        solutions: Of one method.
        curtain: Says which skills of hidden questions may be named; without any they count in the last
            line only.

    Returns:
        None where nobody was recruited.
    """
    asked: Counter[str] = Counter()
    called: Counter[tuple[str, str]] = Counter()
    overall: Counter[str] = Counter()
    for solution in solutions:
        experts = {str(row.get("expert")) for row in solution.row.get("experts") or ()}
        overall.update(experts)
        skills = tuple(curtain.skills(solution))
        asked.update(skills)
        called.update((skill, expert) for skill in skills for expert in experts)
    if not overall:
        return None
    columns = sorted(overall)
    skills = sorted(asked, key=lambda skill: (-asked[skill], skill))
    lines = [
        HeatLine(
            name=keep_start(skill, 60),
            number=f"{asked[skill]:,}",
            cells=[
                _recruited(expert, skill, called[skill, expert], asked[skill]) for expert in columns
            ],
        )
        for skill in skills[:MOST]
    ]
    cells = [_recruited(expert, "", overall[expert], len(solutions)) for expert in columns]
    lines.append(HeatLine(name="all", number=f"{len(solutions):,}", cells=cells, is_total=True))
    return HeatTable(
        corner="Skill",
        number="Questions",
        experts=[clean(expert) for expert in columns],
        lines=lines,
        rest=max(0, len(skills) - MOST),
    )


def shade_profile(profile: Profile) -> HeatTable | None:
    """Right answers of all, for each expert and skill, on the profile's references; None if it is empty."""
    views = {alias: profile[alias] for alias in profile.experts}
    if not any(view.overall.total for view in views.values()):
        return None
    weights: Counter[str] = Counter()
    for reference in profile.questions.values():
        weights.update(dict(reference.skills))
    skills = sorted(weights, key=lambda skill: (-round(weights[skill], 6), skill))
    lines = [
        HeatLine(
            name=keep_start(skill, 60),
            cells=[_known(a, skill, view.skills.get(skill, Tally())) for a, view in views.items()],
        )
        for skill in skills[:MOST]
    ]
    cells = [_known(alias, "", view.overall) for alias, view in views.items()]
    lines.append(HeatLine(name="all", cells=cells, is_total=True))
    return HeatTable(
        corner="Skill",
        number="",
        experts=[clean(alias) for alias in views],
        lines=lines,
        rest=max(0, len(skills) - MOST),
    )


def _recruited(expert: str, skill: str, called: int, asked: int) -> HeatCell:
    share = called / asked if asked else 0.0
    of = f"{count(asked, 'question')} about {skill}" if skill else f"all {count(asked, 'question')}"
    return HeatCell(
        text=f"{100 * share:.0f}" if called else "",
        level=level(share),
        told=clean(f"{expert} was recruited for {called:,} of {of}"),
    )


def _known(expert: str, skill: str, tally: Tally) -> HeatCell:
    if not tally.total:
        return HeatCell(text=DASH, told=clean(f"{expert} has answered nothing about {skill}"))
    right, total = _tell_tally(tally.right), _tell_tally(tally.total)
    about = f" about {skill}" if skill else ""
    return HeatCell(
        text=f"{right}/{total}",
        level=level(tally.right / tally.total),
        told=clean(f"{expert}: {right} of {total} right{about} ({tally.right / tally.total:.0%})"),
    )


def _tell_tally(number: float) -> str:
    return f"{number:,.1f}".removesuffix(".0")
