"""A layer whose tokens are given their mixtures of experts, and its parts run one by one.

Shapes: R rows, one token each, E experts, K that are on, W that may be on, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch

from .architecture import MoeLayer
from .problem import Selection
from .routing import Mixture

__all__ = ["Replacement", "run_experts", "run_shared"]


class Replacement:
    """Gives every row its own mixture of experts.

    Experts that are off but may get a gradient have weight 0: nothing flows back through them, so they
    run beside the layer's own experts and without a graph.
    """

    def __init__(
        self,
        layer: MoeLayer,
        routing_RE: torch.Tensor,
        core_RE: torch.Tensor | None,
        selection: Selection,
        *,
        keeps_mass: bool,
    ) -> None:
        """Store what is needed; one row of the batch is one row of the routing."""
        self._layer, self._routing_RE, self._core_RE = layer, routing_RE, core_RE
        self._selection: Selection = selection
        self._keeps_mass = keeps_mass
        self._others = routing_RE.new_zeros(0, 0, dtype=torch.long), routing_RE.new_zeros(0, 0)

    def __call__(
        self, module: Any, inputs: Any, output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """A hook on the router: the mixture in place of what it says."""
        _, at_weights, at_indices = self._layer.output
        own_RK = output[at_weights]
        mixture: Mixture = self._layer.rule.mix(
            self._routing_RE,
            bias_E=self._layer.bias_E,
            core_NE=self._core_RE,
            selection=self._selection,
            mass_N1=own_RK.sum(-1, keepdim=True).to(self._routing_RE.dtype)
            if self._keeps_mass
            else None,
        )
        # Never below the hidden states' precision: some routers give float32 in a float64 model.
        weights_RW = mixture.weights_NW.to(torch.promote_types(own_RK.dtype, inputs[0].dtype))
        indices_RW, number = mixture.indices_NW, self._layer.rule.top_k
        if indices_RW.shape[-1] > number:
            chosen_RK = self._layer.rule.choose(
                self._routing_RE, bias_E=self._layer.bias_E, core_NE=self._core_RE
            )
            on_RE = torch.zeros_like(self._routing_RE).scatter(-1, chosen_RK, 1.0)
            order_RW = on_RE.gather(-1, indices_RW).argsort(dim=-1, descending=True, stable=True)
            indices_RW, weights_RW = (
                indices_RW.gather(-1, order_RW),
                weights_RW.gather(-1, order_RW),
            )
        self._others = indices_RW[:, number:], weights_RW[:, number:]
        new = list(output)
        new[at_weights], new[at_indices] = weights_RW[:, :number], indices_RW[:, :number]
        return tuple(new)

    def add_others(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """A hook on the experts: nothing in value; in the backward pass, the
        gradients of the weights of experts that are off.
        """
        indices_RW, weights_RW = self._others
        if not weights_RW.requires_grad or not indices_RW.shape[-1]:
            return output
        with torch.no_grad():
            outputs_RWD = run_experts(self._layer, inputs[0].detach(), indices_RW)
        added_RD = torch.einsum("rw,rwd->rd", weights_RW.to(outputs_RWD.dtype), outputs_RWD)
        return output + added_RD.view_as(output)


def run_experts(layer: MoeLayer, input_RD: torch.Tensor, indices_RW: torch.Tensor) -> torch.Tensor:
    """Each named expert's own output, [R, W, D]: the model's experts, one at a time with weight 1."""
    rows, width = indices_RW.shape
    repeated_PD = input_RD.repeat_interleave(width, dim=0)
    indices_P1 = indices_RW.reshape(-1, 1)
    ones_P1 = torch.ones(indices_P1.shape, dtype=input_RD.dtype, device=input_RD.device)
    # Not by calling the module: hooks on it are none of ours.
    return layer.experts.forward(repeated_PD, indices_P1, ones_P1).view(rows, width, -1)


def run_shared(layer: MoeLayer, input_RD: torch.Tensor) -> torch.Tensor:
    """What the block gives when its routed experts count nothing: the shared experts, if it has any."""
    _, weights, indices = layer.output

    def silence(module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        new = list(output)
        new[weights] = torch.zeros_like(output[weights][:, :1])
        new[indices] = output[indices][:, :1]
        return tuple(new)

    handle = layer.router.register_forward_hook(silence)
    try:
        given = layer.block(input_RD[:, None])
    finally:
        handle.remove()
    return (given[0] if isinstance(given, tuple) else given)[:, 0]
