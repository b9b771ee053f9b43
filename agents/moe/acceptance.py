"""Which questions get a new routing at all: unsure ones, with near neighbours, where it proves itself.

Shapes: Q questions, N neighbours, O answer options, C critical layers, E routed experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch

from .problem import Problem, Solution

__all__ = ["Accepted", "Verdict", "accept", "is_near", "is_unsure", "judge"]


class Verdict(StrEnum):
    """What became of a question's routing, and why; the first reason that holds."""

    CONFIDENT = "kept: confident"
    FAR = "kept: no near neighbours"
    NOTHING_GAINED = "kept: nothing gained"
    NOT_HELPED = "kept: held-back neighbour not helped"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Solution):
    """A solution with the start's routing wherever the new one was not accepted."""

    accepted_Q: torch.Tensor
    """Whether the new routing is used (bool)."""
    gained_Q: torch.Tensor
    """Whether the neighbours that it was fitted to gained enough (bool)."""
    fall_Q: torch.Tensor
    """How much the held-back neighbours' surrogate fell, in nats; NaN where it was not measured."""


def is_unsure(logits_QO: torch.Tensor, threshold: float) -> torch.Tensor:
    """Whether the two best options' probabilities differ by no more than the threshold (bool, `[Q]`).

    The gate of c3po.md §1.5: only unsure questions are worth the work. Options that a question lacks
    have the logit −inf; one option is sure; logits that are not numbers are not. A threshold of 0 shuts
    the gate for all, ties included.
    """
    shares_QO = logits_QO.softmax(-1)
    if shares_QO.shape[-1] < 2 or threshold == 0:
        return torch.zeros(len(shares_QO), dtype=torch.bool, device=logits_QO.device)
    best_Q2 = shares_QO.topk(2, dim=-1).values
    return ~(best_Q2[:, 0] - best_Q2[:, 1] > threshold)


def is_near(
    similarity_QN: torch.Tensor, floor: float, present_QN: torch.Tensor | None = None
) -> torch.Tensor:
    """Whether the nearest neighbour that exists is at least so similar (bool, `[Q]`)."""
    near_QN = similarity_QN >= floor
    return (near_QN if present_QN is None else near_QN & present_QN).any(-1)


def accept(
    problem_held: Problem, solution: Solution, *, margin: float = 0.0, least_gain: float = 0.0
) -> Accepted:
    """Go back to the start wherever the held-back neighbours' surrogate does not fall.

    Questions whose solution is no gain, or the start itself, are not measured: that costs no pass. A
    question without held-back neighbours proves nothing and goes back.

    Args:
        problem_held: The same questions, with neighbours that the solution was not fitted to.
        solution: To be tested.
        margin: The surrogate has to fall by more than this, in nats.
        least_gain: By its curve, the solution's lowest surrogate on the neighbours that it was fitted to
            lies more than this below the start's. Solutions without a curve are not held to it.
    """
    start_QCE, routing_QCE = problem_held.start_QCE, solution.routing_QCE
    gained_Q = (routing_QCE != start_QCE).flatten(1).any(-1) & _gains(solution, least_gain)
    fall_Q = start_QCE.new_full(gained_Q.shape, math.nan)
    rows_R = (gained_Q & (problem_held.neighbours_Q() > 0)).nonzero().squeeze(-1)
    passes = 0
    if len(rows_R):
        measured = problem_held if len(rows_R) == len(gained_Q) else problem_held.take(rows_R)
        passes = 2 * int(measured.neighbours_Q().sum())
        with torch.no_grad():
            before_R = measured.surrogate_Q(measured.start_QCE)
            after_R = measured.surrogate_Q(routing_QCE[rows_R])
        fall_Q[rows_R] = (before_R - after_R).to(fall_Q.dtype)
    accepted_Q = fall_Q > margin  # never where it is NaN
    return Accepted(
        routing_QCE=torch.where(accepted_Q[:, None, None], routing_QCE, start_QCE),
        curve_QS=solution.curve_QS,
        passes=solution.passes + passes,
        gradients=solution.gradients,
        accepted_Q=accepted_Q,
        gained_Q=gained_Q,
        fall_Q=fall_Q,
    )


def judge(
    *, unsure_Q: torch.Tensor, near_Q: torch.Tensor, accepted: Accepted | None = None
) -> list[Verdict]:
    """The verdict on each question, by the first gate that it does not pass.

    Args:
        unsure_Q: See `is_unsure`.
        near_Q: See `is_near`.
        accepted: See `accept`; None if nothing was held back, so that all that remain are changed.
    """
    verdicts = list(Verdict)
    code_Q = torch.full(unsure_Q.shape, verdicts.index(Verdict.CHANGED), device=unsure_Q.device)
    if accepted is not None:
        code_Q = code_Q.masked_fill(~accepted.accepted_Q, verdicts.index(Verdict.NOT_HELPED))
        code_Q = code_Q.masked_fill(~accepted.gained_Q, verdicts.index(Verdict.NOTHING_GAINED))
    code_Q = code_Q.masked_fill(~near_Q, verdicts.index(Verdict.FAR))
    code_Q = code_Q.masked_fill(~unsure_Q, verdicts.index(Verdict.CONFIDENT))
    return [verdicts[code] for code in code_Q.tolist()]


def _gains(solution: Solution, least_gain: float) -> torch.Tensor:
    start_Q = solution.curve_QS[:, 0]
    lowest_Q = solution.curve_QS.nan_to_num(nan=math.inf).min(-1).values
    return start_Q.isnan() | (start_Q - lowest_Q > least_gain)
