"""Accuracy against calls, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot_study"]

LOOKS = {
    "adaptive": ("adaptive (ours)", "#c21f1f", "o", 2.8),
    "skill": ("skill (ours)", "#0b57a4", "o", 2.8),
    "skill_vote": ("skill, plain vote", "#5b9bd9", "v", 1.3),
    "skill_shuffled": ("skill, but with another question's skills", "#8fa6bf", "x", 1.3),
    "knn": ("knn", "#7a4fa3", "^", 1.3),
    "top_k": ("strongest k", "#1f6b2c", "s", 1.3),
    "top_k_vote": ("strongest k, plain vote", "#57a05b", "", 2.2),
    "paper": ("paper, plain vote", "#b07d1a", "d", 1.3),
    "reference": ("published code, plain vote", "#d9641e", "d", 1.8),
    "random_vote": ("random, plain vote", "#8a8a8a", "", 1.8),
}
"""Name, colour, marker and width of each line."""
BANDS = ("adaptive", "skill", "top_k_vote", "reference")
"""Lines with their intervals; more bands would hide each other."""


def plot_study(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw `study.svg` and `study.png` into a folder.

    Args:
        rows: As from `summarise`.
        out: The folder.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A picture that depends on the numbers alone: no clock, no random ids, no style of this machine.
    style: Any = {"svg.hashsalt": "expertmix", "font.family": "DejaVu Sans", "font.size": 10}
    with rc_context(style):
        figure = Figure(figsize=(9.6, 5.2), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for policy in LOOKS:
            _draw_line(axes, policy, [row for row in rows if row["policy"] == policy])
        _draw_levels(axes, {row["policy"]: row for row in rows})
        _dress(axes, rows[0])
        figure.savefig(out / "study.svg", metadata={"Date": None})
        figure.savefig(out / "study.png", dpi=110)


def _draw_line(axes: Any, policy: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    ordered = sorted(rows, key=lambda row: (row["calls_mean"], row["calls"]))
    name, colour, marker, width = LOOKS[policy]
    calls = [row["calls_mean"] for row in ordered]
    right, low, high = ([100 * row[key] for row in ordered] for key in ("accuracy", "low", "high"))
    front = 3 if policy in ("adaptive", "skill") else 2
    axes.plot(
        calls,
        right,
        color=colour,
        marker=marker or ("o" if len(ordered) == 1 else ""),
        markersize=5,
        linewidth=width,
        label=name,
        zorder=front,
    )
    if policy in BANDS and len(ordered) > 1:
        axes.fill_between(calls, low, high, color=colour, alpha=0.12, linewidth=0)
    elif policy in BANDS:
        axes.vlines(calls, low, high, color=colour, alpha=0.4, linewidth=3)


def _draw_levels(axes: Any, by_policy: dict[str, dict[str, Any]]) -> None:
    single = by_policy.get("best_single")
    if single is not None:
        level = 100 * single["accuracy"]
        name = f"best single expert: {level:.1f}"
        axes.axhline(level, color="#222222", linewidth=1.2, linestyle=":", label=name)
    oracle = by_policy.get("oracle")
    if oracle is not None:
        # Drawn to scale it would squeeze everything else together.
        name = f"oracle, any of {oracle['calls']} right: {100 * oracle['accuracy']:.1f} (not drawn)"
        axes.plot([], [], color="#222222", linewidth=1.2, linestyle="--", label=name)


def _dress(axes: Any, row: dict[str, Any]) -> None:
    handles, names = axes.get_legend_handles_labels()
    # From the highest line to the lowest, as they end; levels and the oracle last.
    lines = {name for name, *_ in LOOKS.values()}
    order = sorted(
        range(len(names)),
        key=lambda at: (names[at] not in lines, -max(handles[at].get_ydata(), default=0.0)),
    )
    axes.legend(
        [handles[at] for at in order],
        [names[at] for at in order],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=9,
        labelspacing=0.8,
    )
    axes.set_xlabel("expert calls per question (mean)")
    axes.set_ylabel("right answers, %")
    axes.set_title(
        f"{row['n']:,} questions, mean of {row['seeds']} seeds; bands: 95 % intervals",
        loc="left",
        fontsize=10,
        color="#444444",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
