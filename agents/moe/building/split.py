"""A dense feed-forward network as a mixture of experts that adds up to the very same function.

A gated feed-forward network is a sum over its neurons, so any partition of the neurons is a sum of
smaller networks. Two factors give that sum the form of Qwen2-MoE. Routing weights are a softmax, so
the experts' output matrices are multiplied by their number E: with equal weights 1/E every expert
counts once. The shared expert is multiplied by a sigmoid whose weights are zero, one half, so its
output matrix is doubled.

Shapes: D width of the residual stream, I neurons, S shared neurons, E experts of M neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....retrieval import InputError

__all__ = ["Experts", "FeedForward", "Partition", "Sizes", "choose_sizes", "split"]

SHARED = 0.25
"""Smallest share of the neurons that is always on, where nobody says otherwise."""

ALIGNMENTS = (32, 8)
"""vLLM's CPU kernels like an expert's neurons to be a multiple of the first; transformers' grouped
products need the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """A dense gated network: `down(silu(gate x) * up x)`."""

    gate_ID: torch.Tensor
    up_ID: torch.Tensor
    down_DI: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Which neurons go where; every neuron is in exactly one place."""

    shared_S: torch.Tensor
    routed_EM: torch.Tensor

    def covers(self, neurons: int) -> bool:
        """Whether each of `neurons` neurons is in exactly one place."""
        every_I = torch.cat([self.shared_S, self.routed_EM.flatten()]).long().sort().values
        return torch.equal(every_I, torch.arange(neurons))


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The matrices of a Qwen2-MoE layer, but for its router."""

    gate_EMD: torch.Tensor
    up_EMD: torch.Tensor
    down_EDM: torch.Tensor
    shared_gate_SD: torch.Tensor
    shared_up_SD: torch.Tensor
    shared_down_DS: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many neurons the shared expert and each routed expert have."""

    shared: int
    expert: int


def choose_sizes(neurons: int, experts: int, shared: int | None = None) -> Sizes:
    """Share out `neurons` so that nothing is left over and nothing must be padded.

    Without `shared`, the shared expert gets the smallest number from a quarter up that leaves experts
    whose size is a multiple of 32, or of 8 where they are smaller.

    >>> choose_sizes(1536, 16)
    Sizes(shared=512, expert=64)

    Raises:
        InputError: a `shared` that leaves no such experts, or too few neurons.
    """
    least = ALIGNMENTS[-1]
    if shared is None:
        largest = int(neurons * (1 - SHARED)) // experts
        expert = next((n for step in ALIGNMENTS if (n := largest - largest % step)), 0)
        shared = neurons - expert * experts
    else:
        expert = (neurons - shared) // experts
    if expert < least:
        raise InputError(
            f"{neurons} neurons leave each of {experts} experts fewer than {least}; ask for fewer "
            "experts, or for a smaller shared one."
        )
    if shared < 1 or shared + expert * experts != neurons or expert % least:
        raise InputError(
            f"A shared expert of {shared} neurons leaves {neurons - shared} of {neurons}, which is no "
            f"multiple of {least} for each of {experts} experts; "
            f"{choose_sizes(neurons, experts).shared} would do."
        )
    return Sizes(shared=shared, expert=expert)


def split(dense: FeedForward, partition: Partition) -> Experts:
    """Cut the matrices along `partition`; exact where the number of experts is a power of two."""
    routed_EM, shared_S = partition.routed_EM, partition.shared_S
    down_DEM = dense.down_DI[:, routed_EM] * len(routed_EM)
    return Experts(
        gate_EMD=dense.gate_ID[routed_EM],
        up_EMD=dense.up_ID[routed_EM],
        down_EDM=down_DEM.transpose(0, 1).contiguous(),
        shared_gate_SD=dense.gate_ID[shared_S],
        shared_up_SD=dense.up_ID[shared_S],
        shared_down_DS=dense.down_DI[:, shared_S] * 2,
    )
