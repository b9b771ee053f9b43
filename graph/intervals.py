"""What replays come to: accuracies and differences over the same questions, with intervals.

Q test questions, R results, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .replay import RULES, Replay

__all__ = ["BASELINES", "RESAMPLES", "resample", "summarise"]

RESAMPLES = 2000
BASELINES = ("best_single", "best_single_hindsight", "top_k_vote", "reference")
"""Policies that are replayed whatever is asked for, since everything is compared with them."""
CHUNK = 200
"""Resamples drawn at once."""

Floats = npt.NDArray[np.float64]


def summarise(
    by_seed: Mapping[int, Sequence[Replay]], *, policies: Sequence[str], skills: str, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per policy and number of calls, in the order of `RULES`.

    Seeds are averaged for each question first; the interval is a paired bootstrap over questions, so it
    says how far other questions could move the figure, not other seeds. Every row has `policy`,
    `calls`, `calls_mean`, `accuracy`, `low`, `high`, `n`; and `rule`, `seeds`, `skills`, `ece`,
    `tokens_mean`, `seed_spread` (standard deviation over seeds), and `delta_best_single`,
    `delta_best_single_hindsight`, `delta_top3`, `delta_reference` (at the same calls): each mean, low
    and high of the difference in accuracy, or None.

    Args:
        by_seed: Replays of each seed, over the same questions.
        policies: Those to tell about.
        skills: Where skills came from, for the rows.
        seed: Of the resamples.
    """
    found: dict[tuple[str, int], list[Replay]] = {}
    for drawn in sorted(by_seed):
        for replay in by_seed[drawn]:
            found.setdefault((replay.policy, replay.calls), []).append(replay)
    # What a seed could not replay (trimming left nobody) would be compared over other seeds.
    whole = {key: replays for key, replays in found.items() if len(replays) == len(by_seed)}
    keys = sorted(whole, key=lambda key: (list(RULES).index(key[0]), key[1]))
    if not keys:
        return []
    right_QR = np.stack([np.mean([r.right_Q for r in whole[key]], axis=0) for key in keys], axis=1)
    means_BR = resample(right_QR, seed=seed)
    place = {key: at for at, key in enumerate(keys)}
    top3 = max((key for key in keys if key[0] == "top_k_vote" and key[1] <= 3), default=None)

    def compare(at: int, other: tuple[str, int] | None) -> dict[str, float] | None:
        base = None if other is None else place.get(other)
        if base is None:
            return None
        low, high = np.percentile(means_BR[:, at] - means_BR[:, base], (2.5, 97.5))
        mean = right_QR[:, at].mean() - right_QR[:, base].mean()
        return {"mean": _shorten(mean), "low": _shorten(low), "high": _shorten(high)}

    rows: list[dict[str, Any]] = []
    for at, (policy, calls) in enumerate(keys):
        if policy not in policies:
            continue
        replays = whole[policy, calls]
        low, high = np.percentile(means_BR[:, at], (2.5, 97.5))
        eces = [replay.ece for replay in replays if replay.ece is not None]
        tokens = float(np.mean([replay.tokens_mean for replay in replays]))
        rows.append(
            {
                "policy": policy,
                "calls": calls,
                "calls_mean": _shorten(np.mean([replay.calls_mean for replay in replays])),
                "accuracy": _shorten(right_QR[:, at].mean()),
                "low": _shorten(low),
                "high": _shorten(high),
                "n": len(right_QR),
                "rule": RULES[policy],
                "seeds": len(replays),
                "skills": skills,
                "seed_spread": _shorten(np.std([replay.right_Q.mean() for replay in replays])),
                "ece": _shorten(np.mean(eces)) if eces else None,
                "tokens_mean": round(tokens, 1) if tokens else None,
                "delta_best_single": compare(at, ("best_single", 1)),
                "delta_best_single_hindsight": compare(at, ("best_single_hindsight", 1)),
                "delta_top3": compare(at, top3),
                "delta_reference": compare(at, ("reference", calls)),
            }
        )
    return rows


def resample(values_QR: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means [B, R] over bootstrap resamples of the questions, the same ones for every result."""
    questions = len(values_QR)
    chance = np.random.default_rng(seed)
    means: list[Floats] = []
    for start in range(0, resamples, CHUNK):
        drawn_BQ = chance.integers(0, questions, (min(CHUNK, resamples - start), questions))
        times_BQ = np.stack([np.bincount(drawn_Q, minlength=questions) for drawn_Q in drawn_BQ])
        means.append(times_BQ @ values_QR / questions)
    return np.concatenate(means)


def _shorten(value: float | np.floating[Any]) -> float:
    return round(float(value), 5)
