"""Draw how a batch of questions goes through the graph: `python docs/pictures/panel.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from canvas import IMAGES, Canvas


def draw(path: Path) -> None:
    """Questions, skills, recruits, one call per expert, answers."""
    canvas = Canvas(
        880,
        300,
        "How a batch of questions is answered",
        "Skills are extracted, experts recruited, each expert gets all of its questions in one call, the answers "
        "are merged; in an adaptive panel disputed questions go round again.",
    )
    middle = 140
    canvas.node(20, middle, 120, ["questions", "a batch"], "cool")
    canvas.node(176, middle, 134, ["extract_skills", "what is needed?"])
    canvas.node(346, middle, 120, ["recruit", "who is good at it?"])
    for at, name in enumerate("ABC"):
        y = middle + (at - 1) * 78
        canvas.node(536, y, 122, [f"expert {name}", "one load, one call"], "hot")
        canvas.arrow(f"M466 {middle} C500 {middle} 500 {y} 526 {y}", (535, y), "right")
        canvas.arrow(f"M658 {y} C684 {y} 690 {middle} 706 {middle}", (715, middle), "right")
    canvas.node(716, middle, 144, ["aggregate", "weigh, or merge"])
    canvas.arrow(f"M140 {middle} H167", (175, middle), "right")
    canvas.arrow(f"M310 {middle} H337", (345, middle), "right")
    canvas.text(520, 58, "Send: all of its questions", "soft small", "end")
    canvas.arrow("M597 246 V268 H406 V178", (406, 169), "up", "line dash")
    canvas.text(
        500, 286, "adaptive: questions still in dispute go round again", "soft small", "middle"
    )
    canvas.arrow(f"M788 {middle + 27} V204", (788, 213), "down")
    canvas.node(708, 244, 160, ["answers", "reasons, votes, costs"], "cool")
    canvas.save(path)


if __name__ == "__main__":
    draw((Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES) / "panel.svg")
