"""Chooses a study's settings on the references alone, each left out of its own neighbours.

The test sets are never looked at: what is chosen here is what would be chosen for sets nobody has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..agents.moe.controls import RouterTemperature
from ..agents.moe.settings import RemixSettings
from .remix_field import RemixField, RemixReplay
from .remix_methods import Tuned, fit_bias

__all__ = [
    "CANDIDATES",
    "HELD_BACK",
    "TEMPERATURES",
    "UNSURE",
    "is_reliable",
    "keep_as_given",
    "tune",
]

CANDIDATES: tuple[dict[str, Any], ...] = (
    {},  # the paper's: probabilities, plain gradient, 3 neighbours
    {"optimizer": "adam"},
    {
        "optimizer": "adam",
        "parametrisation": "logit",
        "rate": 0.1,
        "neighbours": 8,
        "balanced": True,
    },
)
TEMPERATURES = (0.5, 0.8, 1.25, 2.0)
UNSURE = (0.1, 0.2, 0.4, 1.0)
"""How narrow the two best options must be for a question to be re-mixed."""
HELD_BACK = 8
"""Neighbours that a change must help: one alone says next to nothing about loss."""

Tell = Callable[[str], None]


def tune(
    references: RemixField,
    settings: RemixSettings,
    *,
    candidates: Sequence[dict[str, Any]] = CANDIDATES,
    epochs: int = 5,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> Tuned:
    """Choose solver, gate and temperature by accuracy on the references, and learn the task bias.

    A reference counts whether the model answers it right or wrong; its neighbours are right ones, and
    never itself. Of equal candidates the first wins, so that nothing fancier than the paper's method is
    chosen without a reason. The gate is the one under which most references are right, of equal ones the
    strictest, if that is more than chance would give (`is_reliable`); else it stays shut, and `remix` is
    the plain model: what cannot be seen to help on the references is not done to the tests.

    Args:
        references: The references as a field of questions.
        settings: What candidates change.
        candidates: Settings to try.
        epochs: For the task bias.
        seed: For the task bias.
        tell: Told what was found.
    """
    base = references.base()
    free = settings.model_copy(update={"held_back": 0, "unsure_below": 1.0})
    told: dict[str, Any] = {"base": _share(base), "n": len(base.right_Q), "candidates": []}
    best: tuple[float, RemixSettings] | None = None
    for changes in candidates:
        tried = free.model_copy(update=changes)
        replay = references.remix(tried, references.near(tried.neighbours, balanced=tried.balanced))
        share = _share(replay)
        told["candidates"].append({**changes, "accuracy": share})
        tell(f"references, {changes or 'as in the paper'}: {share:.3f} (base {_share(base):.3f})")
        if best is None or share > best[0]:
            best = (share, tried)
    assert best is not None
    ngd = best[1]
    remix = _choose_gate(references, ngd, base, told, tell)
    temperature = _choose_temperature(references, ngd, told)
    bias = fit_bias(references, ngd, epochs=epochs, seed=seed)
    told["task_bias_curve"] = [round(value, 4) for value in bias.curve]
    told["ngd"], told["remix"] = ngd.model_dump(), remix.model_dump()
    return Tuned(ngd=ngd, remix=remix, temperature=temperature, bias=bias, told=told)


def keep_as_given(
    references: RemixField,
    settings: RemixSettings,
    *,
    epochs: int = 5,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> Tuned:
    """The settings as they are; only the task bias is learnt and the temperature chosen."""
    told: dict[str, Any] = {"base": _share(references.base()), "n": len(references.own)}
    free = settings.model_copy(update={"held_back": 0, "unsure_below": 1.0})
    temperature = _choose_temperature(references, free, told)
    bias = fit_bias(references, free, epochs=epochs, seed=seed)
    tell(f"task bias: held-out loss {bias.curve[0]:.3f} -> {min(bias.curve):.3f}")
    told["task_bias_curve"] = [round(value, 4) for value in bias.curve]
    told["ngd"], told["remix"] = free.model_dump(), settings.model_dump()
    return Tuned(ngd=free, remix=settings, temperature=temperature, bias=bias, told=told)


def is_reliable(right_Q: npt.NDArray[np.float64], base_Q: npt.NDArray[np.float64]) -> bool:
    """Whether more questions were repaired than broken, by more than a coin would give at 1 % (sign test).

    Strict, because the best of several candidates and gates is looked at.
    """
    fixed, broken = float((right_Q > base_Q).sum()), float((right_Q < base_Q).sum())
    return fixed - broken > 2.58 * (fixed + broken) ** 0.5


def _choose_gate(
    references: RemixField,
    ngd: RemixSettings,
    base: RemixReplay,
    told: dict[str, Any],
    tell: Tell,
) -> RemixSettings:
    """The gate that leaves most references right; it is simulated on one run with held-back neighbours."""
    held = ngd.model_copy(update={"held_back": HELD_BACK})
    number = held.neighbours + held.held_back
    replay = references.remix(held, references.near(number, balanced=held.balanced))
    margin_Q = references.margin_Q
    best: tuple[float, float] = (_share(base), 0.0)
    told["gates"] = []
    for unsure in UNSURE:
        right_Q = np.where(margin_Q <= unsure, replay.right_Q, base.right_Q)
        share = float(right_Q.mean())
        told["gates"].append({"unsure_below": unsure, "accuracy": round(share, 4)})
        tell(f"references, re-mixed where the two best differ by at most {unsure}: {share:.3f}")
        if share > best[0] and is_reliable(right_Q, base.right_Q):
            best = (share, unsure)
    return held.model_copy(update={"unsure_below": best[1]})


def _choose_temperature(references: RemixField, ngd: RemixSettings, told: dict[str, Any]) -> float:
    best: tuple[float, float] = (_share(references.base()), 1.0)
    near = references.near(1)
    one = ngd.model_copy(update={"neighbours": 1})
    for temperature in TEMPERATURES:
        solver = RouterTemperature(temperature=temperature)
        share = _share(references.remix(one, near, solver=solver))
        if share > best[0]:
            best = (share, temperature)
    told["temperature"] = best[1]
    return best[1]


def _share(replay: RemixReplay) -> float:
    return round(float(replay.right_Q.mean()), 4)
