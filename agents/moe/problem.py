"""What a re-mixing solver is given and what it returns.

Shapes: Q questions solved together, N neighbours of each, C critical layers, E routed experts, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

__all__ = [
    "FLOOR",
    "Objective",
    "Problem",
    "Selection",
    "Solution",
    "Solver",
    "find_core",
    "move_core",
    "renormalise",
    "shift_logits",
    "take_logits",
    "weigh",
]

Selection = Literal["hard", "straight_through"]
"""How gradients reach experts that are not among the top k. `hard`: not at all, as in the model itself.
`straight_through`: the forward pass is the model's own top k, but every core expert's weight gets the
gradient ⟨∂loss/∂y, E(x)⟩ that it would have if it were on (specs §1.5)."""

FLOOR = 1e-10
"""Smallest share of an expert: logarithms stay finite, and the published code clamps at the same."""


class Objective(Protocol):
    """The losses of neighbours when the question's own routing is put on their last prompt token."""

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        """Cross-entropies `[Q, N]` of the neighbours' gold answers, differentiable in the routing.

        Args:
            routing_QCE: Scores of all experts, before the top k.
            core_QCE: Experts that may be chosen (bool); None allows all. The others are never on.
            selection: See `Selection`.
        """
        ...

    def take(self, rows_R: torch.Tensor) -> Objective:
        """The same for some of the questions (indices), so that finished ones cost nothing more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Questions whose routing is to be improved, all at once."""

    start_QCE: torch.Tensor
    """The questions' default routing at their last prompt token, all experts, float32 or float64.
    Rows sum to one where the model scores by softmax."""
    objective: Objective
    kernel_QN: torch.Tensor
    """Weight of each neighbour; rows sum to one over the neighbours that exist, others have 0."""
    neighbour_routing_QNCE: torch.Tensor | None = None
    """The neighbours' own default routing; needed by kernel regression and mode finding."""
    core_experts: int | None = None
    """Only a question's so many strongest experts of each layer may change; None lets all."""
    chosen_QCE: torch.Tensor | None = None
    """Experts that the start turns on, where those are not simply its strongest (choice by bias or by groups):
    they belong to the core whatever their scores."""
    simplex: bool = True
    """Whether rows sum to one (softmax scoring), so that changed ones are renormalised."""

    def core_QCE(self) -> torch.Tensor:
        """Which experts may change: bool, the strongest of the start, of equal ones the lower index."""
        return find_core(self.start_QCE, self.core_experts, self.chosen_QCE)

    def surrogate_Q(self, routing_QCE: torch.Tensor, selection: Selection = "hard") -> torch.Tensor:
        """The kernel-weighted loss of each question's neighbours (c3po.md §1.3)."""
        losses_QN = self.objective(routing_QCE, core_QCE=self.core_QCE(), selection=selection)
        return weigh(losses_QN, self.kernel_QN)

    def neighbours_Q(self) -> torch.Tensor:
        """How many neighbours with a weight each question has."""
        return (self.kernel_QN > 0).sum(-1)

    def take(self, rows_R: torch.Tensor) -> Problem:
        """The same for some of the questions, by their indices."""
        neighbours, chosen = self.neighbour_routing_QNCE, self.chosen_QCE
        return replace(
            self,
            start_QCE=self.start_QCE[rows_R],
            chosen_QCE=None if chosen is None else chosen[rows_R],
            objective=self.objective.take(rows_R),
            kernel_QN=self.kernel_QN[rows_R],
            neighbour_routing_QNCE=None if neighbours is None else neighbours[rows_R],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver found."""

    routing_QCE: torch.Tensor
    """The routing to use; never worse on the surrogate than the start, where the solver measures it."""
    curve_QS: torch.Tensor
    """Surrogate after each step, the start first; NaN after a question stopped. A solver that never
    measures the surrogate has one column of NaN."""
    passes: int
    """Forward passes of one neighbour token through the suffix, in all; for the cost account."""
    gradients: int = 0
    """How many of those were followed by a backward pass."""


class Solver(Protocol):
    """Whatever looks for a better routing; a frozen dataclass of its settings."""

    def solve(self, problem: Problem) -> Solution:
        """Solve all questions together; what becomes of one never depends on the others."""
        ...


def find_core(
    start_QCE: torch.Tensor, number: int | None, chosen_QCE: torch.Tensor | None = None
) -> torch.Tensor:
    """The `number` strongest experts of each row (bool); of equal ones the lower index.

    Args:
        start_QCE: Default scores.
        number: None, or more than there are: all.
        chosen_QCE: Experts that come first whatever their scores; see `Problem.chosen_QCE`.
    """
    experts = start_QCE.shape[-1]
    ranked_QCE = start_QCE
    if chosen_QCE is not None:
        ranked_QCE = start_QCE + 2 * chosen_QCE  # scores are at most 1
    order = torch.sort(ranked_QCE, dim=-1, descending=True, stable=True).indices
    core = torch.zeros_like(start_QCE, dtype=torch.bool)
    return core.scatter(-1, order[..., : experts if number is None else number], True)


def weigh(losses_QN: torch.Tensor, kernel_QN: torch.Tensor) -> torch.Tensor:
    """Kernel-weighted mean; a neighbour without weight does not count even if its loss is not finite."""
    return (torch.where(kernel_QN > 0, losses_QN, 0.0) * kernel_QN.to(losses_QN.dtype)).sum(-1)


def renormalise(routing_QCE: torch.Tensor, *, simplex: bool = True) -> torch.Tensor:
    """Clamp scores at `FLOOR` and, on the simplex, let rows sum to one (the published code's rule)."""
    clamped = routing_QCE.clamp(min=FLOOR)
    return clamped / clamped.sum(-1, keepdim=True) if simplex else clamped


def move_core(
    values_QCE: torch.Tensor,
    start_QCE: torch.Tensor,
    core_QCE: torch.Tensor,
    *,
    simplex: bool = True,
) -> torch.Tensor:
    """Scores with new values for the core experts only.

    On the simplex the whole row is renormalised after that, as in the published code, so that the other
    experts keep their shares relative to each other.
    """
    moved_QCE = torch.where(core_QCE, values_QCE.clamp(min=FLOOR), start_QCE)
    return moved_QCE / moved_QCE.sum(-1, keepdim=True) if simplex else moved_QCE


def shift_logits(
    start_QCE: torch.Tensor,
    shift_QCE: torch.Tensor,
    core_QCE: torch.Tensor,
    *,
    simplex: bool = True,
) -> torch.Tensor:
    """Scores after something was added to the router's logits of the core experts.

    On the simplex softmax(log start + shift); sigmoid scores are independent of each other, so there it
    is sigmoid(logit(start) + shift). Differentiable in the shift.
    """
    logits_QCE = take_logits(start_QCE, simplex=simplex)
    if simplex:
        return (logits_QCE + torch.where(core_QCE, shift_QCE, 0.0)).softmax(-1)
    return torch.where(core_QCE, (logits_QCE + shift_QCE).sigmoid(), start_QCE)


def take_logits(scores: torch.Tensor, *, simplex: bool = True) -> torch.Tensor:
    """Logits that the router could have had for such scores; always finite."""
    if simplex:
        return scores.clamp(min=FLOOR).log()
    # A score of exactly 1 has no logit; the largest number below it has.
    return scores.clamp(FLOOR, 1 - torch.finfo(scores.dtype).eps).logit()
