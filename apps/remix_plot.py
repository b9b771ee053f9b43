"""Pictures of re-mixing: accuracy against cost, and a pathway before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot_pathways", "plot_remixing"]

GROUPS = {
    "base": "#222222",
    "remix": "#c21f1f",
    "ngd": "#d9641e",
    "kernel_regression": "#d9641e",
    "kernel_regression_0": "#d9641e",
    "mode_finding": "#d9641e",
    "task_bias": "#0b57a4",
    "letter_prior": "#0b57a4",
    "knn_few_shot": "#0b57a4",
    "oracle": "#7a4fa3",
}
CONTROL = "#8a8a8a"
STYLE: Any = {
    "svg.hashsalt": "expertmix",
    "font.family": "DejaVu Sans",
    "font.size": 9,
}


def plot_remixing(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw accuracy against cost, one panel per test set, as `remix.svg` and `remix.png`.

    Args:
        rows: As from `summarise_remixing`.
        out: The folder.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tests = list(dict.fromkeys(row["test"] for row in rows))
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(tests), 4.6), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        for at, test in enumerate(tests, 1):
            axes: Any = figure.add_subplot(1, len(tests), at)
            _draw_test(axes, [row for row in rows if row["test"] == test])
        figure.savefig(out / "remix.svg", metadata={"Date": None})
        figure.savefig(out / "remix.png", dpi=110)


def plot_pathways(
    before_CE: Sequence[Sequence[float]],
    after_CE: Sequence[Sequence[float]],
    layers: Sequence[int],
    out: Path | None = None,
) -> Any:
    """Heat maps of a pathway before and after, and of the change.

    Args:
        before_CE: Scores of all experts in each critical layer.
        after_CE: The same afterwards.
        layers: Decoder indices of those layers.
        out: A file to write (`.svg`, `.png`), if wanted.

    Returns:
        The figure, which a notebook shows.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    change = [
        [after - before for before, after in zip(*pair, strict=True)]
        for pair in zip(before_CE, after_CE, strict=True)
    ]
    largest = max(max(map(max, before_CE)), max(map(max, after_CE)))
    widest = max(max(map(abs, row)) for row in change) or 1e-9
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 2.6), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        for at, (title, values, colours, low, high) in enumerate(
            (
                ("before", before_CE, "Greys", 0.0, largest),
                ("after", after_CE, "Greys", 0.0, largest),
                ("change", change, "RdBu_r", -widest, widest),
            ),
            1,
        ):
            axes: Any = figure.add_subplot(1, 3, at)
            image = axes.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=high)
            axes.set_title(title, loc="left")
            axes.set_yticks(range(len(layers)), [f"layer {layer}" for layer in layers])
            axes.set_xlabel("expert")
            figure.colorbar(image, ax=axes)
        if out is not None:
            figure.savefig(out)
    return figure


def _draw_test(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        colour = GROUPS.get(row["method"], CONTROL)
        right, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
        axes.errorbar(
            [row["flops_ratio"]],
            [right],
            yerr=[[right - low], [high - right]],
            color=colour,
            marker="o",
            markersize=4,
            linewidth=0.8,
        )
        axes.annotate(
            row["method"].replace("_", " "),
            (row["flops_ratio"], right),
            textcoords="offset points",
            xytext=(5, 3),
            fontsize=7,
            color=colour,
        )
    axes.set_xlabel("FLOPs, in plain passes")
    axes.set_ylabel("right answers, %")
    axes.set_title(f"{rows[0]['test']}: {rows[0]['n']:,} questions", loc="left", color="#444444")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
