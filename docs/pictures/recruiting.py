"""Draw whom three rules of recruiting prefer, from one made-up table: `python docs/pictures/recruiting.py`.

The numbers are computed by the library's own functions; only the table of answers is invented.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from canvas import IMAGES, Canvas

from expertmix.agents.originals import (
    count_tags,
    local_scores,
    net_scores,
    normalise,
    weigh_paper,
    weigh_reference,
)
from expertmix.agents.outcomes import MISSING, OutcomeTable
from expertmix.agents.strength import Strengths

# right and asked, at algebra and at law
ANSWERS = {
    "ada": ((12, 12), (2, 12)),
    "bob": ((9, 12), (9, 12)),
    "cyd": ((8, 12), (5, 12)),
    "dan": ((3, 12), (11, 12)),
    "eve": ((4, 12), (4, 12)),
    "fay": ((2, 2), (6, 12)),
}
SKILLS = ("algebra", "law")


def make_table() -> OutcomeTable:
    """Twelve questions of each skill with two options; the first is right."""
    labels = np.full((24, len(ANSWERS)), MISSING, dtype=np.int16)
    for column, parts in enumerate(ANSWERS.values()):
        for skill, (right, asked) in enumerate(parts):
            start = 12 * skill
            labels[start : start + asked, column] = 1
            labels[start : start + right, column] = 0
    return OutcomeTable(
        experts=tuple(ANSWERS),
        questions=tuple(f"q{at}" for at in range(24)),
        labels_NE=labels,
        gold_N=np.zeros(24, dtype=np.int16),
        options_N=np.full(24, 2, dtype=np.int16),
        skills=tuple({SKILLS[at // 12]: 1.0} for at in range(24)),
    )


def draw(path: Path) -> None:
    """Three columns: as published, as coded, ours."""
    table = make_table()
    scores = net_scores(table, SKILLS)
    local = local_scores(scores, count_tags([("algebra",)], SKILLS))
    published = weigh_paper(local, scores.sum(axis=1))[0]
    coded = weigh_reference(local, normalise(scores.sum(axis=1)))[0]
    strengths = Strengths.fit(table)
    canvas = Canvas(
        880,
        350,
        "Whom three rules of recruiting prefer for a question about algebra",
        "The published formula gives eve, the worst expert, more chance than cyd; ours shrinks thin counts.",
    )
    for x, words, more in (
        (20, "right answers", "at algebra · at law"),
        (246, "as published", "chance of each draw"),
        (452, "as coded", "chance of each draw"),
        (658, "ours", "estimate, 95 % interval"),
    ):
        canvas.text(x, 32, words, "ink strong")
        canvas.text(x, 51, more, "soft small")
    for row, (name, ((right, asked), (other, many))) in enumerate(ANSWERS.items()):
        y = 82 + row * 38
        canvas.line((20, y + 18), (860, y + 18), kind="grid")
        canvas.text(20, y + 5, name, "ink strong")
        canvas.text(62, y + 5, f"{right} of {asked} · {other} of {many}", "ink")
        for x, chance, kind in ((246, published[row], "c"), (452, coded[row], "a")):
            canvas.box(x, y - 8, max(120 * chance, 1), 16, kind, radius=2)
            canvas.text(
                x + 120 * chance + 8, y + 5, f"{abs(chance):.2%}".replace("%", " %"), "ink small"
            )
        _draw_estimate(canvas, y, strengths, name, right / asked)
    canvas.text(
        20,
        327,
        "eve is mostly wrong, here and overall: minus times minus is plus.",
        "c small strong",
    )
    canvas.text(658, 327, "ring: share right · disc: shrunk", "soft small")
    canvas.save(path)


def _draw_estimate(canvas: Canvas, y: float, strengths: Strengths, name: str, raw: float) -> None:
    low, high = strengths.interval(name, "algebra")
    estimate = float(strengths.skill_ES[strengths.experts.index(name), 0])
    x = 658
    canvas.line((x, y), (x + 160, y), kind="grid")
    canvas.line((x + 160 * low, y), (x + 160 * high, y), kind="line")
    canvas.dot(x + 160 * raw, y, 6, "head")
    canvas.dot(x + 160 * raw, y, 4.4, "card")
    canvas.dot(x + 160 * estimate, y, 5, "b")
    canvas.text(x + 170, y + 5, f"{estimate:.2f}", "ink small")


if __name__ == "__main__":
    draw((Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES) / "recruiting-rules.svg")
