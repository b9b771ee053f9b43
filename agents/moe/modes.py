"""Mode finding: climb to where the routing of successful neighbours is densest (mean shift).

Shapes: Q questions, N neighbours, C critical layers, E routed experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from ...retrieval import InputError
from .kernels import Bandwidth, median_bandwidth
from .problem import Problem, Solution, move_core
from .regression import preserve_mass

__all__ = ["Metric", "ModeFinding"]

Metric = Literal["whole", "layer"]
"""`whole`: one distance over all critical layers together, as a pathway is one point. `layer`: each
layer has distances, and therefore weights of the neighbours, of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeFinding:
    """Repeat ω ← α ω + (1 − α) Σ K(ω_i, ω) ω_i / Σ K(ω_i, ω) (arXiv 2504.07964 §3; c3po.md §1.3).

    Neighbourhood and kernel, a Gaussian of the Euclidean distance, are in the space of pathways: the
    problem's kernel says only which neighbours exist. So give it many, or all, of the references. No
    loss is measured: nothing says that the result is better than the start.

    The paper leaves open alpha, the number of iterations (10 in R2-T2), bandwidth and metric.
    """

    alpha: float = 0.5
    iterations: int = 10
    bandwidth: Bandwidth = "median"
    """σ of the Gaussian. `median`: the median distance of the start to its neighbours."""
    metric: Metric = "whole"
    nearest: int | None = None
    """Only so many neighbours, nearest to where the climb has come, count; None: all."""
    top_k: int | None = None
    """As for `KernelRegression`: give rows back the mass that the start has on so many experts."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.iterations < 1:
            raise InputError(
                f"alpha is {self.alpha} and iterations {self.iterations}; give 0 to 1, and at least 1"
            )
        if self.nearest is not None and self.nearest < 1:
            raise InputError(f"nearest is {self.nearest}; give at least 1, or None for all")
        if self.bandwidth != "median" and not 0 < self.bandwidth < math.inf:
            raise InputError(
                f"a bandwidth is a positive number or 'median', not {self.bandwidth!r}"
            )

    def solve(self, problem: Problem) -> Solution:
        """Climb for all questions at once.

        Raises:
            InputError: the problem does not know the neighbours' routing.
        """
        points_QNCE = problem.neighbour_routing_QNCE
        if points_QNCE is None:
            raise InputError(
                "mode finding climbs among the neighbours' routing, but the problem has none; give "
                "neighbour_routing_QNCE"
            )
        start_QCE, core_QCE, simplex = problem.start_QCE, problem.core_QCE(), problem.simplex
        present_QN = problem.kernel_QN > 0
        points_QNCE = torch.where(present_QN[:, :, None, None], points_QNCE, 0.0)
        distance_QCN = self._measure(start_QCE, points_QNCE)
        present_QCN = present_QN[:, None, :].expand_as(distance_QCN)
        width: float | torch.Tensor = (
            median_bandwidth(distance_QCN, present_QCN)
            if self.bandwidth == "median"
            else self.bandwidth
        )
        routing_QCE = start_QCE
        for _ in range(self.iterations):
            weights_QCN = self._weigh(self._measure(routing_QCE, points_QNCE), width, present_QCN)
            mean_QCE = torch.einsum(
                "qcn,qnce->qce", weights_QCN.expand(-1, start_QCE.shape[1], -1), points_QNCE
            )
            moved_QCE = self.alpha * routing_QCE + (1 - self.alpha) * mean_QCE
            routing_QCE = move_core(moved_QCE, routing_QCE, core_QCE, simplex=simplex)
        if self.top_k is not None:
            routing_QCE = preserve_mass(
                routing_QCE, start_QCE, core_QCE, self.top_k, simplex=simplex
            )
        return Solution(
            routing_QCE=torch.where(present_QN.any(-1)[:, None, None], routing_QCE, start_QCE),
            curve_QS=start_QCE.new_full((len(start_QCE), 1), math.nan),
            passes=0,
        )

    def _measure(self, routing_QCE: torch.Tensor, points_QNCE: torch.Tensor) -> torch.Tensor:
        """Distances of each question's place to its points; one "layer" if they count together."""
        square_QNC = (points_QNCE - routing_QCE[:, None]).square().sum(-1)
        if self.metric == "whole":
            square_QNC = square_QNC.sum(-1, keepdim=True)
        return square_QNC.sqrt().transpose(1, 2)

    def _weigh(
        self,
        distance_QCN: torch.Tensor,
        width: float | torch.Tensor,
        present_QCN: torch.Tensor,
    ) -> torch.Tensor:
        distance_QCN = distance_QCN.masked_fill(~present_QCN, torch.inf)
        if self.nearest is not None and self.nearest < distance_QCN.shape[-1]:
            # A stable sort, so that of equally near ones the first counts whatever the machine.
            order_QCN = distance_QCN.sort(dim=-1, stable=True).indices
            distance_QCN = distance_QCN.scatter(-1, order_QCN[..., self.nearest :], torch.inf)
        # By logarithms, so that the nearest counts even if it is many bandwidths away.
        return (-(distance_QCN / width).square() / 2).softmax(-1).nan_to_num(nan=0.0)
