"""Kernel regression: mix a question's routing with that of its neighbours.

Shapes: Q questions, R of them that are measured, N neighbours, C critical layers, E routed experts,
S places that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ...retrieval import InputError
from .problem import FLOOR, Problem, Solution, move_core, shift_logits, take_logits

__all__ = [
    "Blend",
    "KernelRegression",
    "Search",
    "Space",
    "average_neighbours",
    "preserve_mass",
    "temper",
]

Search = Literal["grid", "bracket"]
Space = Literal["prob", "logit"]
"""`prob`: arithmetic means of scores, as in the paper. `logit`: means of the router's logits, so that
scores are averaged geometrically, which flattens less."""

GOLDEN = (math.sqrt(5) - 1) / 2
GRID = tuple(step / 10 for step in range(10, -1, -1))
HALVINGS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend(Solution):
    """What kernel regression found."""

    alpha_Q: torch.Tensor
    """How much of the own routing is left: 1 is the start, 0 the neighbours' mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRegression:
    """α ω + (1 − α) ω̂ with ω̂ = Σ K_i ω_i / Σ K (arXiv 2504.07964 §3; c3po.md §1.3).

    A question without neighbours keeps its routing. Of equally good α the largest wins, which is the
    nearest to the model's own routing; a place whose loss is not a finite number is never chosen.
    """

    alpha: float | Search = "grid"
    """A number is used as it is, without any pass; 0 is what the published code does. `grid`: the best of
    1, 0.9, …, 0. `bracket`: golden-section search, for each question its own, which finds the minimum to
    within `tolerance` if there is but one, and is never worse than either end."""
    tolerance: float = 0.05
    space: Space = "prob"
    top_k: int | None = None
    """Give rows back the mass that the start has on so many experts, the number that the model turns
    on: averaging flattens, which scales down a layer whose top k are not renormalised (c3po.md §3.3)."""

    def __post_init__(self) -> None:
        known = self.alpha in ("grid", "bracket")
        if not known and (isinstance(self.alpha, str) or not 0 <= self.alpha <= 1):
            raise InputError(f"alpha is {self.alpha}; give 0 to 1, 'grid' or 'bracket'")
        if not 0 < self.tolerance < 1:
            raise InputError(f"the tolerance of alpha is {self.tolerance}; give a number in (0, 1)")

    def solve(self, problem: Problem) -> Blend:
        """Blend all questions at once."""
        has_Q = problem.kernel_QN.gt(0).any(-1)
        alpha_Q = problem.start_QCE.new_ones(len(has_Q))
        if isinstance(self.alpha, str):
            return self._search(problem, alpha_Q, has_Q.nonzero().squeeze(-1))
        alpha_Q[has_Q] = self.alpha
        return Blend(
            routing_QCE=self._lead(problem)(alpha_Q),
            alpha_Q=alpha_Q,
            curve_QS=alpha_Q.new_full((len(alpha_Q), 1), math.nan),
            passes=0,
        )

    def _search(self, problem: Problem, alpha_Q: torch.Tensor, rows_R: torch.Tensor) -> Blend:
        measured = problem if len(rows_R) == len(alpha_Q) else problem.take(rows_R)
        at = self._lead(measured)
        tried: list[torch.Tensor] = []
        found: list[torch.Tensor] = []

        def measure(alpha_R: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                value_R = measured.surrogate_Q(at(alpha_R)).to(alpha_R.dtype)
            tried.append(alpha_R)
            found.append(torch.where(value_R.isfinite(), value_R, math.inf))
            return found[-1]

        one_R = torch.ones_like(alpha_Q[rows_R])
        if len(rows_R):
            if self.alpha == "grid":
                for alpha in GRID:
                    measure(one_R * alpha)
            else:
                measure(one_R)
                measure(one_R * 0)
                _bracket(measure, one_R, self.tolerance)
        curve_QS = alpha_Q.new_full((len(alpha_Q), max(1, len(found))), math.nan)
        routing_QCE = problem.start_QCE.clone()
        if found:
            found_RS = torch.stack(found, -1)
            curve_QS[rows_R] = found_RS.where(found_RS.isfinite(), math.nan)
            alpha_Q[rows_R] = best_R = _choose(torch.stack(tried, -1), found_RS)
            routing_QCE[rows_R] = at(best_R)
        return Blend(
            routing_QCE=routing_QCE,
            alpha_Q=alpha_Q,
            curve_QS=curve_QS,
            passes=len(found) * int(measured.neighbours_Q().sum()),
        )

    def _lead(self, problem: Problem) -> Callable[[torch.Tensor], torch.Tensor]:
        """The way from the neighbours' mean to the start: from α of each question to its routing."""
        start_QCE, core_QCE, simplex = problem.start_QCE, problem.core_QCE(), problem.simplex
        mean_QCE = average_neighbours(problem, self.space)

        def at(alpha_Q: torch.Tensor) -> torch.Tensor:
            rest_Q11 = (1 - alpha_Q)[:, None, None]
            if self.space == "prob":
                target_QCE = move_core(mean_QCE, start_QCE, core_QCE, simplex=simplex)
                routing_QCE = start_QCE + rest_Q11 * (target_QCE - start_QCE)
            else:
                shift_QCE = take_logits(mean_QCE, simplex=simplex) - take_logits(
                    start_QCE, simplex=simplex
                )
                routing_QCE = shift_logits(
                    start_QCE, rest_Q11 * shift_QCE, core_QCE, simplex=simplex
                )
            if self.top_k is not None:
                routing_QCE = preserve_mass(
                    routing_QCE, start_QCE, core_QCE, self.top_k, simplex=simplex
                )
            return torch.where(rest_Q11 > 0, routing_QCE, start_QCE)

        return at


def average_neighbours(problem: Problem, space: Space = "prob") -> torch.Tensor:
    """The kernel-weighted mean ω̂ of the neighbours' routing, all experts; the start without neighbours.

    Raises:
        InputError: the problem does not know the neighbours' routing.
    """
    routing_QNCE = problem.neighbour_routing_QNCE
    if routing_QNCE is None:
        raise InputError(
            "kernel regression averages the neighbours' routing, but the problem has none; "
            "give neighbour_routing_QNCE"
        )
    weights_QN11 = problem.kernel_QN.to(routing_QNCE.dtype)[:, :, None, None]
    # What stands in the place of a neighbour that does not exist may be anything, NaN included.
    values_QNCE = torch.where(weights_QN11 > 0, routing_QNCE, 1.0)
    if space == "logit":
        values_QNCE = take_logits(values_QNCE, simplex=problem.simplex)
    mean_QCE = (weights_QN11 * values_QNCE).sum(1)
    if space == "logit":
        mean_QCE = mean_QCE.softmax(-1) if problem.simplex else mean_QCE.sigmoid()
    has_Q11 = problem.kernel_QN.gt(0).any(-1)[:, None, None]
    return torch.where(has_Q11, mean_QCE, problem.start_QCE)


def preserve_mass(
    routing_QCE: torch.Tensor,
    start_QCE: torch.Tensor,
    core_QCE: torch.Tensor,
    top_k: int,
    *,
    simplex: bool = True,
) -> torch.Tensor:
    """Let the strongest `top_k` core experts have as much mass together as the start's have.

    On the simplex each row is sharpened (or flattened) by the temperature that does it, found by
    bisection, and the core as a whole gets the start's mass; the other experts then keep the start's
    scores. Sigmoid scores, which need not sum to one, are scaled instead.

    Raises:
        InputError: the core is smaller than `top_k`.
    """
    if not len(routing_QCE):
        return routing_QCE
    if top_k < 1 or top_k > int(core_QCE.sum(-1).min()):
        raise InputError(
            f"top_k is {top_k}, but a core has {int(core_QCE.sum(-1).min())} experts; the experts that "
            "the model turns on must be among them"
        )
    start_in_QCE = torch.where(core_QCE, start_QCE, 0.0)
    wanted_QC1 = start_in_QCE.topk(top_k, dim=-1).values.sum(-1, keepdim=True)
    if not simplex:
        inside_QCE = torch.where(core_QCE, routing_QCE, 0.0)
        mass_QC1 = inside_QCE.topk(top_k, dim=-1).values.sum(-1, keepdim=True)
        scaled_QCE = routing_QCE * (wanted_QC1 / mass_QC1.clamp(min=FLOOR))
        return torch.where(core_QCE, scaled_QCE, start_QCE)
    low_QC1 = torch.full_like(wanted_QC1, -10.0)  # of log2 of the inverse temperature
    high_QC1 = -low_QC1
    for _ in range(HALVINGS):
        middle_QC1 = (low_QC1 + high_QC1) / 2
        tried_QCE = temper(routing_QCE, 2**-middle_QC1, start_QCE, core_QCE)
        inside_QCE = torch.where(core_QCE, tried_QCE, 0.0)
        flat_QC1 = inside_QCE.topk(top_k, dim=-1).values.sum(-1, keepdim=True) < wanted_QC1
        low_QC1, high_QC1 = (
            middle_QC1.where(flat_QC1, low_QC1),
            high_QC1.where(flat_QC1, middle_QC1),
        )
    return temper(routing_QCE, 2 ** (-(low_QC1 + high_QC1) / 2), start_QCE, core_QCE)


def temper(
    routing_QCE: torch.Tensor,
    temperature: float | torch.Tensor,
    start_QCE: torch.Tensor,
    core_QCE: torch.Tensor,
) -> torch.Tensor:
    """Core scores ∝ score^(1/T), with the mass that the start's core has; the others as in the start.

    With a core of all experts: the softmax of the router's logits divided by T.
    """
    logits_QCE = routing_QCE.clamp(min=FLOOR).log() / temperature
    shares_QCE = logits_QCE.masked_fill(~core_QCE, -torch.inf).softmax(-1)
    mass_QC1 = torch.where(core_QCE, start_QCE, 0.0).sum(-1, keepdim=True)
    return torch.where(core_QCE, shares_QCE * mass_QC1, start_QCE)


def _bracket(
    measure: Callable[[torch.Tensor], torch.Tensor], one_R: torch.Tensor, tolerance: float
) -> None:
    """Golden-section search on [0, 1]; of equal places the search goes on to the right."""
    low_R, high_R = one_R * 0, one_R
    left_R, right_R = one_R * (1 - GOLDEN), one_R * GOLDEN
    at_left_R, at_right_R = measure(left_R), measure(right_R)
    width = GOLDEN  # of the bracket after the comparison that comes next
    while width > tolerance:
        go_left_R = at_left_R < at_right_R
        low_R, high_R = low_R.where(go_left_R, left_R), right_R.where(go_left_R, high_R)
        width *= GOLDEN
        # One of the two inner places stays an inner place; the other one is new.
        fresh_R = torch.where(
            go_left_R, high_R - GOLDEN * (high_R - low_R), low_R + GOLDEN * (high_R - low_R)
        )
        at_fresh_R = measure(fresh_R)
        left_R, right_R, at_left_R, at_right_R = (
            fresh_R.where(go_left_R, right_R),
            left_R.where(go_left_R, fresh_R),
            at_fresh_R.where(go_left_R, at_right_R),
            at_left_R.where(go_left_R, at_fresh_R),
        )


def _choose(tried_RS: torch.Tensor, found_RS: torch.Tensor) -> torch.Tensor:
    """The largest of the best α; 1, the start, where nothing was finite."""
    best_RS = found_RS == found_RS.min(-1, keepdim=True).values
    return tried_RS.where(best_RS, -1.0).max(-1).values
