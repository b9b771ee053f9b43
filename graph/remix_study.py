"""Re-mixing methods and their controls over test sets: accuracies with intervals, and what they cost.

Shapes: Q questions, M methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..agents.moe.flops import Shape, plain_pass, prepare_pass, suffix_pass
from .intervals import resample
from .remix_field import RemixField, RemixReplay
from .remix_methods import Tuned

__all__ = ["count_cost", "summarise_remixing"]


def count_cost(replay: RemixReplay, questions: RemixField, tuned: Tuned) -> float:
    """A method's FLOPs, in plain passes of the same questions (c3po.md §4.3).

    Neighbours' states are cached; a question whose routing was not touched costs its own pass alone.

    Args:
        replay: What the method did.
        questions: Over which set.
        tuned: Layers, core and selection.
    """
    own = questions.own
    shape, layers = Shape.of(own.moe), own.moe.last(tuned.ngd.layers)
    tokens = (own.lengths_N + 1).tolist()
    core = tuned.ngd.core_experts
    core = None if core is None or core >= own.moe.experts else core
    plain = sum(plain_pass(shape, length).macs for length in tokens)
    if replay.prompt_tokens:
        return float(sum(plain_pass(shape, t).macs for t in replay.prompt_tokens) / plain)
    settings: dict[str, Any] = {"core": core, "head_rows": len(own.letters.tokens)}
    once = prepare_pass(shape, layers, core=core).macs
    total = plain + replay.prepared * once
    if replay.passes:
        forward = suffix_pass(shape, replay.near_tokens, layers, **settings).macs
        both = suffix_pass(
            shape,
            replay.near_tokens,
            layers,
            gradient=True,
            selection=tuned.ngd.selection,
            **settings,
        ).macs
        total += (replay.passes - replay.gradients) * forward + replay.gradients * both
    last = np.mean([suffix_pass(shape, length, layers, **settings).macs for length in tokens])
    return float((total + replay.last_runs * (last + once)) / plain)


def summarise_remixing(
    questions: RemixField, replays: Mapping[str, Sequence[RemixReplay]], tuned: Tuned
) -> list[dict[str, Any]]:
    """One row per method, in the order given.

    Seeds are averaged for each question first; intervals are a paired bootstrap over questions. Rows have
    `test`, `method`, `accuracy`, `low`, `high`, `n`, `flops_ratio`, `accepted` (share of questions whose
    routing was changed), `delta_base` (mean, low, high), `fixed` and `broken` (questions, mean of seeds),
    `gap_closed` (of the distance from base to oracle; None where the oracle is not above it), `seeds`, and
    `by_confidence`: accuracy and base accuracy in thirds of the base's margin, the least sure first.

    Args:
        questions: The test set.
        replays: Method → one replay per seed; `base` must be there.
        tuned: For the costs.
    """
    names = list(replays)
    right_QM = np.stack(
        [np.mean([replay.right_Q for replay in replays[name]], axis=0) for name in names], axis=1
    )
    means_BM = resample(right_QM)
    at_base = names.index("base")
    base_Q = right_QM[:, at_base]
    best = right_QM[:, names.index("oracle")].mean() if "oracle" in names else None
    gap = 0.0 if best is None else float(best - base_Q.mean())
    order_Q = np.argsort(questions.margin_Q, kind="stable")
    rows: list[dict[str, Any]] = []
    for at, name in enumerate(names):
        right_Q = right_QM[:, at]
        low, high = np.percentile(means_BM[:, at], (2.5, 97.5))
        less, more = np.percentile(means_BM[:, at] - means_BM[:, at_base], (2.5, 97.5))
        gain = float(right_Q.mean() - base_Q.mean())
        rows.append(
            {
                "test": questions.name,
                "method": name,
                "accuracy": round(float(right_Q.mean()), 4),
                "low": round(float(low), 4),
                "high": round(float(high), 4),
                "n": len(right_Q),
                "flops_ratio": round(
                    float(np.mean([count_cost(r, questions, tuned) for r in replays[name]])), 4
                ),
                "accepted": round(
                    float(np.mean([replay.accepted_Q.mean() for replay in replays[name]])), 4
                ),
                "delta_base": {
                    "mean": round(gain, 4),
                    "low": round(float(less), 4),
                    "high": round(float(more), 4),
                },
                "fixed": round(float(np.clip(right_Q - base_Q, 0, 1).sum()), 2),
                "broken": round(float(np.clip(base_Q - right_Q, 0, 1).sum()), 2),
                "gap_closed": round(gain / gap, 4) if gap > 0 else None,
                "seeds": len(replays[name]),
                "by_confidence": [
                    {
                        "base": round(float(base_Q[third].mean()), 4),
                        "accuracy": round(float(right_Q[third].mean()), 4),
                        "n": len(third),
                    }
                    for third in np.array_split(order_Q, 3)
                    if len(third)
                ],
            }
        )
    return rows
