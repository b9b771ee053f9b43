"""A dense network that acts as its mixture of experts: for calibrating and training.

Every neuron's activation is multiplied by the weight of the expert that owns it, which is the mixture
exactly and costs no more than the dense network. The matrices stay the parent's own, so a low-rank
update of one of them is an update of all experts.

Shapes: D width of the residual stream, I neurons, E experts, T tokens, R rank, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .split import Partition

__all__ = ["LowRank", "Mixture"]


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two thin matrices."""

    def __init__(self, base: nn.Linear, down_RD: torch.Tensor, up_OR: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.down_RD = nn.Parameter(down_RD)
        self.up_OR = nn.Parameter(up_OR)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The layer's output with the update."""
        return self.base(x_TD) + (x_TD @ self.down_RD.T) @ self.up_OR.T


class Mixture(nn.Module):
    """Stands in for a dense `mlp`, whose three projections it goes on using."""

    def __init__(self, dense: Any, partition: Partition, router_ED: torch.Tensor, top_k: int):
        super().__init__()
        self.gate_proj: nn.Module = dense.gate_proj
        self.up_proj: nn.Module = dense.up_proj
        self.down_proj: nn.Module = dense.down_proj
        self.router_ED = nn.Parameter(router_ED.to(dense.gate_proj.weight.dtype))
        self.router_ED.requires_grad_(False)
        self.top_k = top_k
        experts = len(partition.routed_EM)
        owners_I = torch.full((dense.gate_proj.weight.shape[0],), experts)
        owners_I[partition.routed_EM] = torch.arange(experts)[:, None]
        self.register_buffer("owners_I", owners_I, persistent=False)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The mixture's output; the router's gradient flows through the weights of the chosen ones."""
        experts = self.router_ED.shape[0]
        logits_TE = x_TD @ self.router_ED.T
        shares_TE = logits_TE.softmax(-1, dtype=torch.promote_types(torch.float32, x_TD.dtype))
        top = shares_TE.topk(self.top_k, dim=-1)
        on_TE = torch.zeros_like(shares_TE).scatter(-1, top.indices, top.values * experts)
        # One more column, always 1: the shared expert.
        weights_TE = nn.functional.pad(on_TE, (0, 1), value=1.0).to(x_TD.dtype)
        weights_TI = weights_TE[..., self.get_buffer("owners_I")]
        hidden_TI = nn.functional.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD)
        return self.down_proj(hidden_TI * weights_TI)
