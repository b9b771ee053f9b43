"""Neighbourhood gradient descent: fit a question's routing to the answers of its neighbours.

Shapes: Q questions, R of them still under way, C critical layers, E routed experts, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ...retrieval import InputError
from .problem import Problem, Selection, Solution, move_core, shift_logits, weigh

__all__ = [
    "Descent",
    "Optimizer",
    "Parametrisation",
    "Schedule",
    "differentiate",
    "measure_divergence",
]

Optimizer = Literal["sgd", "adam"]
"""The paper writes plain gradient descent; the code of its forerunner R2-T2 uses Adam."""
Parametrisation = Literal["prob", "logit"]
"""`prob`: the scores themselves, as in the paper. `logit`: something added to the router's logits, for
which a rate of 0.1 to 1 is right."""
Schedule = Literal["cosine", "constant"]

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8  # those of torch.optim.Adam
HALVINGS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """NGD, the main method of C3PO (arXiv 2504.07964 §3; c3po.md §1.5 fills what it leaves open).

    ω ← ω − λ ∇ Σ K_i loss(f(x_i, ω), y_i) / Σ K, from the question's own routing, on core experts only.
    A question without neighbours keeps its routing and is never measured: its curve is all NaN. So
    does one whose loss or gradient stops being a finite number, from the best routing it had.
    """

    steps: int = 10
    rate: float = 1e-2
    last_rate: float = 1e-5
    """Where the cosine schedule would end, one step after the last."""
    schedule: Schedule = "cosine"
    optimizer: Optimizer = "sgd"
    parametrisation: Parametrisation = "prob"
    selection: Selection = "straight_through"
    best_iterate: bool = True
    """Give back the routing with the lowest surrogate, the earliest of equals; else the last one, as
    in the paper, which can be worse than the start."""
    tolerance: float | None = 1e-5
    """A question stops once the surrogate fell by less than this in `patience` steps running."""
    patience: int = 2
    max_divergence: float | None = None
    """Trust region: largest KL(start ‖ routing), in nats, mean over the layers. A step beyond it is
    shrunk towards the start."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.patience < 1:
            raise InputError(
                f"a descent has {self.steps} steps and patience {self.patience}; both must be at least 1"
            )
        if not (0 <= self.last_rate <= self.rate < math.inf):
            raise InputError(
                f"the rate falls from {self.rate} to {self.last_rate}; give 0 <= last_rate <= rate"
            )
        if self.max_divergence is not None and not self.max_divergence > 0:
            raise InputError(
                f"max_divergence is {self.max_divergence}; it must be positive, or None"
            )

    def solve(self, problem: Problem) -> Solution:
        """Descend for all questions at once."""
        start_QCE = problem.start_QCE
        best_QCE = start_QCE.clone()
        least_Q = start_QCE.new_full(start_QCE.shape[:1], math.inf)
        curve_QS = start_QCE.new_full((len(start_QCE), self.steps + 1), math.nan)
        passes = gradients = 0
        walk = self._begin(problem)
        for step in range(self.steps + 1):
            if not len(walk.rows_R):
                break
            measured = int(walk.problem.neighbours_Q().sum())
            passes += measured
            if step < self.steps:
                gradients += measured
                value_R, gradient_RCE = differentiate(
                    walk.problem,
                    walk.place_RCE,
                    walk.decode,
                    self.selection,
                    core_QCE=walk.core_RCE,
                )
                going_R = gradient_RCE.isfinite().flatten(1).all(-1)
            else:
                value_R, gradient_RCE = walk.measure(), None
                going_R = torch.zeros_like(value_R, dtype=torch.bool)
            finite_R = value_R.isfinite()
            curve_QS[walk.rows_R, step] = value_R.where(finite_R, math.nan)
            better_R = finite_R & ((value_R < least_Q[walk.rows_R]) | (not self.best_iterate))
            rows = walk.rows_R[better_R]
            least_Q[rows] = value_R[better_R]
            if step:  # the start stays what it is to the last bit
                best_QCE[rows] = walk.decode(walk.place_RCE)[better_R]
            going_R = going_R & finite_R & ~self._note_stall(walk, value_R)
            if gradient_RCE is not None:
                gradient_RCE = gradient_RCE[going_R]
                walk = walk.keep(problem, going_R)
                self._step(walk, gradient_RCE, step)
        return Solution(routing_QCE=best_QCE, curve_QS=curve_QS, passes=passes, gradients=gradients)

    def rates_S(self) -> list[float]:
        """The learning rate of each step: last + ½ (rate − last)(1 + cos(π t / steps))."""
        if self.schedule == "constant":
            return [self.rate] * self.steps
        span = (self.rate - self.last_rate) / 2
        return [
            self.last_rate + span * (1 + math.cos(math.pi * step / self.steps))
            for step in range(self.steps)
        ]

    def _begin(self, problem: Problem) -> _Walk:
        rows_R = problem.neighbours_Q().nonzero().squeeze(-1)
        problem = problem if len(rows_R) == len(problem.start_QCE) else problem.take(rows_R)
        zeros_RCE = torch.zeros_like(problem.start_QCE)
        return _Walk(
            rows_R=rows_R,
            problem=problem,
            core_RCE=problem.core_QCE(),
            parametrisation=self.parametrisation,
            place_RCE=problem.start_QCE if self.parametrisation == "prob" else zeros_RCE,
            mean_RCE=zeros_RCE,
            square_RCE=zeros_RCE,
            previous_R=zeros_RCE.new_full(rows_R.shape, math.inf),
            idle_R=torch.zeros_like(rows_R),
        )

    def _note_stall(self, walk: _Walk, value_R: torch.Tensor) -> torch.Tensor:
        """Count steps without a fall worth the name; which questions have had too many."""
        if self.tolerance is None:
            return torch.zeros_like(value_R, dtype=torch.bool)
        idle_R = walk.previous_R - value_R < self.tolerance
        walk.idle_R = (walk.idle_R + 1) * idle_R
        walk.previous_R = value_R
        return walk.idle_R >= self.patience

    def _step(self, walk: _Walk, gradient_RCE: torch.Tensor, step: int) -> None:
        rate = self.rates_S()[step]
        if self.optimizer == "sgd":
            place_RCE = walk.place_RCE - rate * gradient_RCE
        else:
            walk.mean_RCE = torch.lerp(walk.mean_RCE, gradient_RCE, 1 - MEAN_DECAY)
            walk.square_RCE = SQUARE_DECAY * walk.square_RCE + (1 - SQUARE_DECAY) * gradient_RCE**2
            spread_RCE = (walk.square_RCE / (1 - SQUARE_DECAY ** (step + 1))).sqrt() + EPSILON
            place_RCE = walk.place_RCE - rate / (1 - MEAN_DECAY ** (step + 1)) * (
                walk.mean_RCE / spread_RCE
            )
        walk.place_RCE = self._confine(walk, walk.project(place_RCE))

    def _confine(self, walk: _Walk, place_RCE: torch.Tensor) -> torch.Tensor:
        """Shrink towards the start where the trust region was left.

        The divergence grows steadily along the way from the start, in either parametrisation, so that
        bisection finds where it crosses the limit.
        """
        limit = self.max_divergence
        if limit is None or not len(place_RCE):
            return place_RCE
        start_RCE = walk.problem.start_QCE
        origin_RCE = start_RCE if self.parametrisation == "prob" else torch.zeros_like(place_RCE)
        near_R = place_RCE.new_zeros(len(place_RCE))
        far_R = torch.ones_like(near_R)
        outside_R = measure_divergence(start_RCE, walk.decode(place_RCE)) > limit
        for _ in range(HALVINGS if outside_R.any() else 0):
            middle_R = (near_R + far_R) / 2
            tried_RCE = origin_RCE + middle_R[:, None, None] * (place_RCE - origin_RCE)
            inside_R = measure_divergence(start_RCE, walk.decode(tried_RCE)) <= limit
            near_R, far_R = middle_R.where(inside_R, near_R), far_R.where(inside_R, middle_R)
        shrunk_RCE = origin_RCE + near_R[:, None, None] * (place_RCE - origin_RCE)
        return torch.where(outside_R[:, None, None], shrunk_RCE, place_RCE)


@dataclass(slots=True, kw_only=True)
class _Walk:
    """The questions still under way and where they are."""

    rows_R: torch.Tensor
    problem: Problem
    core_RCE: torch.Tensor
    parametrisation: Parametrisation
    place_RCE: torch.Tensor
    mean_RCE: torch.Tensor
    square_RCE: torch.Tensor
    previous_R: torch.Tensor
    idle_R: torch.Tensor

    def decode(self, place_RCE: torch.Tensor) -> torch.Tensor:
        """The routing that a place stands for."""
        if self.parametrisation == "prob":
            return place_RCE
        return shift_logits(
            self.problem.start_QCE, place_RCE, self.core_RCE, simplex=self.problem.simplex
        )

    def project(self, place_RCE: torch.Tensor) -> torch.Tensor:
        """Back to what can be a routing: clamped, and renormalised on the simplex."""
        if self.parametrisation == "logit":
            return place_RCE
        return move_core(place_RCE, self.place_RCE, self.core_RCE, simplex=self.problem.simplex)

    @torch.no_grad()
    def measure(self) -> torch.Tensor:
        """The surrogate without its gradient; the forward pass of either selection is the same."""
        return self.problem.surrogate_Q(self.decode(self.place_RCE))

    def keep(self, problem: Problem, going_R: torch.Tensor) -> _Walk:
        """Only the questions that go on; `problem` is the whole one."""
        if going_R.all():
            return self
        rows_R = self.rows_R[going_R]
        return _Walk(
            rows_R=rows_R,
            problem=problem.take(rows_R),
            core_RCE=self.core_RCE[going_R],
            parametrisation=self.parametrisation,
            place_RCE=self.place_RCE[going_R],
            mean_RCE=self.mean_RCE[going_R],
            square_RCE=self.square_RCE[going_R],
            previous_R=self.previous_R[going_R],
            idle_R=self.idle_R[going_R],
        )


def differentiate(
    problem: Problem,
    place_QCE: torch.Tensor,
    decode: Callable[[torch.Tensor], torch.Tensor],
    selection: Selection,
    *,
    core_QCE: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each question's surrogate and its gradient, by one backward pass for all.

    A question's gradient is that of its own surrogate, since no other depends on its routing; for the
    same reason a loss that is not finite spoils no other question's gradient.

    Args:
        problem: The questions.
        place_QCE: Where the gradient is wanted.
        decode: From a place to a routing, row by row.
        selection: See `Selection`.
        core_QCE: The problem's own, if it is known already.

    Returns:
        Surrogates `[Q]`, and gradients with respect to `place_QCE`, 0 outside the core.
    """
    core_QCE = problem.core_QCE() if core_QCE is None else core_QCE
    with torch.enable_grad():
        leaf_QCE = place_QCE.detach().requires_grad_()
        losses_QN = problem.objective(decode(leaf_QCE), core_QCE=core_QCE, selection=selection)
        value_Q = weigh(losses_QN, problem.kernel_QN)
        (gradient_QCE,) = torch.autograd.grad(value_Q.sum(), leaf_QCE)
    return value_Q.detach().to(place_QCE.dtype), torch.where(core_QCE, gradient_QCE, 0.0)


def measure_divergence(start_QCE: torch.Tensor, routing_QCE: torch.Tensor) -> torch.Tensor:
    """KL(start ‖ routing) in nats, `[Q]`, the mean over the layers.

    Σ p log(p/q) − p + q, which is the same for rows that sum to one, and for sigmoid scores, which do
    not, is still zero for equal scores only.
    """
    ratio_QCE = start_QCE / routing_QCE.clamp(min=torch.finfo(routing_QCE.dtype).tiny)
    terms_QCE = torch.xlogy(start_QCE, ratio_QCE) - start_QCE + routing_QCE
    return terms_QCE.sum(-1).mean(-1)
