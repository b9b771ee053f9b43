"""Kernels: how much a neighbour counts, by how similar it is to the question.

All vectors are unit vectors, so |a − b|² = 2 − 2 cos(a, b), and a cosine is all that a kernel needs.
Shapes: Q questions, N neighbours of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from ...retrieval import InputError

__all__ = [
    "Bandwidth",
    "Kernel",
    "Smoothness",
    "gaussian",
    "linear",
    "matern",
    "median_bandwidth",
    "polynomial",
    "take_distances",
    "weigh_neighbours",
]

Kernel = Literal["gaussian", "linear", "polynomial", "matern", "cosine"]
"""`cosine`, the weights of the published code (sim / Σ sim), is what the paper's `linear` comes to."""
Bandwidth = float | Literal["median"]
"""σ of the Gaussian and ℓ of the Matérn kernel, which the paper leaves open (c3po.md §0, item 6).
`median`: the median distance of the neighbours, for each question its own."""
Smoothness = Literal["1/2", "3/2", "5/2"]
"""ν of the Matérn kernel; these three have closed forms."""

NARROWEST = 1e-6
"""Smallest bandwidth: neighbours that all lie at the same place as the question get equal weights."""


def take_distances(similarity: torch.Tensor) -> torch.Tensor:
    """Euclidean distances of unit vectors from their cosines; rounding beyond ±1 is cut off."""
    return (2 - 2 * similarity.clamp(-1, 1)).sqrt()


def gaussian(similarity: torch.Tensor, bandwidth: float | torch.Tensor) -> torch.Tensor:
    """exp(−|e_i − e|² / 2σ²): the paper's kernel (the formula is RoMA's eq. 5, arXiv 2511.07419)."""
    return _log_gaussian(similarity, bandwidth).exp()


def linear(similarity: torch.Tensor) -> torch.Tensor:
    """The dot product; 0 where it is negative, since a loss cannot count negatively."""
    return similarity.clamp(0, 1)


def polynomial(similarity: torch.Tensor, degree: int = 2) -> torch.Tensor:
    """((1 + cos) / 2)^degree: the inhomogeneous polynomial kernel, scaled to 1 for equal vectors."""
    return ((1 + similarity.clamp(-1, 1)) / 2) ** degree


def matern(
    similarity: torch.Tensor, bandwidth: float | torch.Tensor, smoothness: Smoothness = "3/2"
) -> torch.Tensor:
    """The Matérn kernel of the distance d, with r = √(2ν) d / ℓ (Rasmussen and Williams, eq. 4.14).

    Args:
        similarity: Cosines.
        bandwidth: ℓ.
        smoothness: ν; 1/2 is exp(−d/ℓ), and the Gaussian is the limit of large ones.
    """
    return _log_matern(similarity, bandwidth, smoothness).exp()


def median_bandwidth(
    distance_QN: torch.Tensor, present_QN: torch.Tensor | None = None
) -> torch.Tensor:
    """The median heuristic, `[Q, 1]`: each question's median distance to the neighbours it has.

    1 for a question without any, so that nothing is divided by zero.
    """
    if present_QN is not None:
        distance_QN = distance_QN.masked_fill(~present_QN, torch.nan)
    if not distance_QN.shape[-1]:
        return distance_QN.new_ones((*distance_QN.shape[:-1], 1))
    median_Q1 = distance_QN.nanquantile(0.5, dim=-1, keepdim=True)
    return median_Q1.nan_to_num(nan=1.0).clamp(min=NARROWEST)


def weigh_neighbours(
    similarity_QN: torch.Tensor,
    kernel: Kernel = "gaussian",
    *,
    bandwidth: Bandwidth = "median",
    degree: int = 2,
    smoothness: Smoothness = "3/2",
    present_QN: torch.Tensor | None = None,
) -> torch.Tensor:
    """The neighbours' weights K_i / Σ K (eqs. 1–8 of arXiv 2504.07964).

    Rows sum to one over the neighbours that exist. A row is all zero, and stays so, if the question has
    no neighbour, or if its kernel is zero for all of them (`linear`, with opposite vectors only). A
    similarity that is not a finite number counts as no neighbour.

    Args:
        similarity_QN: Cosines of the question's and the neighbours' vectors.
        kernel: See `Kernel`.
        bandwidth: Of the Gaussian and the Matérn kernel.
        degree: Of the polynomial kernel.
        smoothness: Of the Matérn kernel.
        present_QN: Neighbours that exist (bool); None: all.

    Raises:
        InputError: the bandwidth is not positive, or the degree is below 1.
    """
    if degree < 1:
        raise InputError(f"the degree of a polynomial kernel is at least 1, not {degree}")
    if bandwidth != "median" and not (0 < bandwidth < math.inf):
        raise InputError(f"a bandwidth is a positive number or 'median', not {bandwidth!r}")
    finite_QN = similarity_QN.isfinite()
    present_QN = finite_QN if present_QN is None else present_QN & finite_QN
    width: float | torch.Tensor = (
        median_bandwidth(take_distances(similarity_QN), present_QN)
        if bandwidth == "median"
        else max(bandwidth, NARROWEST)
    )
    logarithms: dict[Kernel, Callable[[], torch.Tensor]] = {
        "gaussian": lambda: _log_gaussian(similarity_QN, width),
        "matern": lambda: _log_matern(similarity_QN, width, smoothness),
        "polynomial": lambda: polynomial(similarity_QN, degree).log(),
        "linear": lambda: linear(similarity_QN).log(),
        "cosine": lambda: linear(similarity_QN).log(),
    }
    # By logarithms: with a narrow bandwidth all of K would round to zero, but never all of K / Σ K.
    log_QN = logarithms[kernel]().masked_fill(~present_QN, -torch.inf)
    return log_QN.softmax(-1).nan_to_num(nan=0.0)


def _log_gaussian(similarity: torch.Tensor, bandwidth: float | torch.Tensor) -> torch.Tensor:
    return (similarity.clamp(-1, 1) - 1) / bandwidth**2


def _log_matern(
    similarity: torch.Tensor, bandwidth: float | torch.Tensor, smoothness: Smoothness
) -> torch.Tensor:
    order = {"1/2": 0.5, "3/2": 1.5, "5/2": 2.5}[smoothness]
    reach = math.sqrt(2 * order) * take_distances(similarity) / bandwidth
    factors = {"1/2": torch.ones_like(reach), "3/2": 1 + reach, "5/2": 1 + reach + reach**2 / 3}
    return factors[smoothness].log() - reach
