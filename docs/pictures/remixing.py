"""Draw what re-mixing changes and what it costs: `python docs/pictures/remixing.py`.

The costs are computed by the library's account of multiply-accumulates for the shape of OLMoE-1B-7B.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from canvas import IMAGES, Canvas

LAYERS, CRITICAL, EXPERTS = 8, 3, 8


def draw_change(path: Path) -> None:
    """A prompt in a mixture: only the last token's experts in the last layers change."""
    canvas = Canvas(
        880,
        372,
        "What re-mixing changes",
        "In the last layers, the experts of the last prompt token are re-weighed by following the losses of solved "
        "questions that resemble this one. Everything else stays as it is.",
    )
    canvas.text(20, 34, "the question's own pass", "ink strong")
    top, left = 60, 108
    for layer in range(LAYERS):
        y = top + 29 * (LAYERS - 1 - layer)
        critical = layer >= LAYERS - CRITICAL
        canvas.text(96, y + 16, f"layer {layer + 9}", "soft small", "end")
        for token in range(6):
            changed = critical and token == 5
            canvas.box(left + 48 * token, y, 42, 23, "hot" if changed else "pale", radius=3)
    canvas.text(left, top + 252, "What", "soft small")
    canvas.text(left + 240, top + 252, "Answer:", "ink small strong")
    canvas.text(
        20, 348, "Only three boxes change here; five of sixteen layers in OLMoE.", "soft small"
    )

    canvas.text(432, 34, "one changed box: which experts are on", "ink strong")
    before, after = (9, 7, 6, 2, 1, 1, 1, 0), (6, 8, 2, 1, 7, 1, 0, 1)
    for row, (words, heights) in enumerate((("before", before), ("after", after))):
        base = 110 + 72 * row
        canvas.text(492, base - 2, words, "soft small", "end")
        for expert, height in enumerate(heights):
            on = sorted(heights)[-3] <= height
            canvas.box(
                506 + 30 * expert,
                base - 5 * height,
                20,
                5 * height + 2,
                "c" if on else "mid",
                radius=2,
            )
        canvas.line((502, base + 3), (746, base + 3), kind="grid")
    canvas.arrow("M398 84 H456", (466, 84), "right", "line dash")
    canvas.text(432, 238, "where the push comes from", "ink strong")
    for at, words in enumerate(("solved question 1", "solved question 2", "solved question 3")):
        y = 268 + 30 * at
        canvas.box(432, y - 16, 150, 24, "cool", radius=4)
        canvas.text(507, y + 1, words, "ink small", "middle")
        canvas.arrow(f"M582 {y - 4} C620 {y - 4} 620 294 646 294", (655, 294), "right")
    canvas.node(656, 294, 204, ["their loss, our routing", "ten gradient steps on it"], "box")
    canvas.arrow("M758 266 V210", (758, 200), "up")
    canvas.save(path)


def draw_cost(path: Path) -> None:
    """Ways to do the same ten steps, in plain passes, on a logarithmic scale."""
    import transformers

    from expertmix.agents.moe.flops import Shape, list_schemes

    shape = Shape.of_config(transformers.OlmoeConfig(intermediate_size=1024))
    schemes = list_schemes(shape, 100, range(11, 16))
    rows = [
        ("everything recomputed at every step", schemes["naive"], "c"),
        ("last token alone, neighbours run now", schemes["last token, neighbours online"], "a"),
        ("last token alone, neighbours cached", schemes["last token, neighbours cached"], "a"),
        (
            "the same, gradients for twenty experts",
            schemes["first layer cached, straight-through"],
            "a",
        ),
        (
            "for eight experts and four options",
            schemes["first layer cached, options only"],
            "b",
        ),
        ("kernel regression: no gradient at all", schemes["kernel regression, alpha 0"], "b"),
    ]
    canvas = Canvas(
        880,
        80 + 36 * len(rows),
        "What re-mixing costs",
        "Work in plain passes of a prompt of 100 tokens: "
        + ", ".join(f"{w} {v:.2f}" for w, v, _ in rows),
    )
    canvas.text(20, 34, "work for one answer, in plain passes of a 100-token prompt", "ink strong")
    start, decade = 320, 300
    for tick in (1, 2, 5, 10, 20, 50):
        x = start + decade * math.log10(tick)
        canvas.line((x, 50), (x, 56 + 36 * len(rows)), kind="grid")
        canvas.text(x, 72 + 36 * len(rows), f"{tick} ×", "soft small", "middle")
    for at, (words, value, kind) in enumerate(rows):
        y = 74 + 36 * at
        width = max(decade * math.log10(value), 2)
        canvas.text(start - 12, y + 5, words, "ink small", "end")
        canvas.box(start, y - 9, width, 18, kind, radius=2)
        canvas.text(start + width + 8, y + 5, f"{value:.2f}", "ink small strong")
    canvas.save(path)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    draw_change(folder / "remixing-change.svg")
    draw_cost(folder / "remixing-cost.svg")
