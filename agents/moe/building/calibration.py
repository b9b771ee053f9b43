"""Watching a dense model layer by layer, and splitting each layer by what was seen.

Layers are converted from below, so that each is fitted on what the converted ones below it hand up.

Shapes: T tokens of all prompts, P of one; D width of the residual stream; I neurons; S shared ones; E
experts of M neurons; C tokens of a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .clusters import balanced_clusters
from .mixture import Mixture
from .prompts import new_tokens
from .routers import Fit, RouterData, fit_router
from .split import FeedForward, Partition, Sizes

__all__ = ["SplitLayer", "split_layer", "split_layers"]

CHUNK = 256
"""Tokens whose experts' outputs are in memory together."""

PROFILED = 4096
"""Most tokens that a neuron's profile covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLayer:
    """A layer that became a mixture of experts."""

    number: int
    partition: Partition
    fit: Fit
    error: float
    """Share of the whole feed-forward output that is lost, squared, on held-out prompts."""


@torch.no_grad()
def split_layers(
    model: Any,
    encoded: Sequence[Sequence[int]],
    *,
    layers: int,
    experts: int,
    top_k: int,
    sizes: Sizes,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[SplitLayer]:
    """Split the last `layers` layers of `model`, one after another.

    Args:
        model: The dense model; its upper feed-forward networks are replaced one by one.
        encoded: Token ids of the calibration prompts.
        layers: How many layers from the top.
        experts: Routed experts of each.
        top_k: How many of them are on.
        sizes: Neurons of the shared and of a routed expert.
        progress: Told what was done.
    """
    total = len(model.model.layers)
    first = total - layers
    states, arguments = _lower_layers(model, encoded, first)
    fresh_T = torch.tensor([new for prompt in new_tokens(encoded) for new in prompt])
    prompts_T = torch.repeat_interleave(
        torch.arange(len(encoded)), torch.tensor([len(ids) for ids in encoded])
    )[fresh_T]
    for number in range(first, total):
        start = time.monotonic()
        layer = model.model.layers[number]
        inputs_TD, outputs_TD = _watch(layer, states, arguments)
        made = split_layer(
            _feed_forward(layer.mlp),
            inputs_TD[fresh_T],
            1 / outputs_TD[fresh_T].norm(dim=-1).clamp(min=1e-6),
            prompts_T,
            experts=experts,
            top_k=top_k,
            sizes=sizes,
            number=number,
        )
        layer.mlp = Mixture(layer.mlp, made.partition, made.fit.weight_ED, top_k)
        states = [
            layer(state_1PD, **keywords)
            for state_1PD, keywords in zip(states, arguments, strict=True)
        ]
        progress(
            f"layer {number}: {made.error:.1%} of the feed-forward output lost "
            f"({time.monotonic() - start:.0f} s)"
        )
        yield made


def split_layer(
    dense: FeedForward,
    inputs_TD: torch.Tensor,
    weight_T: torch.Tensor,
    prompts_T: torch.Tensor,
    *,
    experts: int,
    top_k: int,
    sizes: Sizes,
    number: int = 0,
) -> SplitLayer:
    """Split one network by its activations on `inputs_TD`.

    Args:
        dense: The network.
        inputs_TD: What it reads, float32.
        weight_T: What an error at a token counts: one over the residual stream's length, since the
            next layer sees nothing but its direction.
        prompts_T: The number of the prompt that a token belongs to.
        experts: Routed experts.
        top_k: How many of them are on.
        sizes: Neurons of the shared and of a routed expert.
        number: The layer's number, for the record.
    """
    active_TI = torch.nn.functional.silu(inputs_TD @ dense.gate_ID.T)
    active_TI *= inputs_TD @ dense.up_ID.T
    partition = _partition(active_TI, dense.down_DI.norm(dim=0), weight_T, experts, sizes)
    gram_TEE, whole = _gram(active_TI, dense.down_DI, weight_T, partition)
    data = RouterData(inputs_TD=inputs_TD, gram_TEE=gram_TEE, prompts_T=prompts_T)
    fit = fit_router(data, top_k)
    return SplitLayer(
        number=number,
        partition=partition,
        fit=fit,
        error=fit.error * float(gram_TEE.sum()) / whole,
    )


def _feed_forward(mlp: Any) -> FeedForward:
    return FeedForward(
        gate_ID=mlp.gate_proj.weight.float(),
        up_ID=mlp.up_proj.weight.float(),
        down_DI=mlp.down_proj.weight.float(),
    )


def _partition(
    active_TI: torch.Tensor,
    reach_I: torch.Tensor,
    weight_T: torch.Tensor,
    experts: int,
    sizes: Sizes,
) -> Partition:
    """The neurons that do most on average are shared; the others are clustered by when they do it."""
    profile_TI = active_TI.abs().mul_(reach_I).mul_(weight_T[:, None])
    order_I = torch.sort(profile_TI.mean(0), descending=True, stable=True).indices
    shared_S = order_I[: sizes.shared].sort().values
    routed_R = order_I[sizes.shared :].sort().values
    step = -(-len(profile_TI) // PROFILED)
    clusters_EM = balanced_clusters(profile_TI[::step, routed_R].T, experts)
    return Partition(shared_S=shared_S, routed_EM=routed_R[clusters_EM])


def _gram(
    active_TI: torch.Tensor, down_DI: torch.Tensor, weight_T: torch.Tensor, partition: Partition
) -> tuple[torch.Tensor, float]:
    """Weighted inner products of the experts' outputs, and the whole network's summed square."""
    routed_EM = partition.routed_EM
    down_EMD = down_DI.T[routed_EM]
    shared_SD = down_DI.T[partition.shared_S]
    grams: list[torch.Tensor] = []
    whole = 0.0
    for start in range(0, len(active_TI), CHUNK):
        part_CI = active_TI[start : start + CHUNK]
        outputs_ECD = torch.bmm(part_CI[:, routed_EM].transpose(0, 1).contiguous(), down_EMD)
        outputs_ECD *= weight_T[start : start + CHUNK, None]
        outputs_CED = outputs_ECD.transpose(0, 1)
        grams.append(outputs_CED @ outputs_CED.transpose(1, 2))
        shared_CD = part_CI[:, partition.shared_S] @ shared_SD
        shared_CD *= weight_T[start : start + CHUNK, None]
        whole += float((shared_CD + outputs_ECD.sum(0)).double().square().sum())
    return torch.cat(grams), whole


def _lower_layers(
    model: Any, encoded: Sequence[Sequence[int]], first: int
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """What layer `first` is called with for each prompt: hidden states and all the rest."""
    states: list[torch.Tensor] = []
    arguments: list[dict[str, Any]] = []

    def keep(_module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        states.append(inputs[0])
        arguments.append(keywords)
        raise _Reached

    handle = model.model.layers[first].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for ids in encoded:
            try:
                model.model(input_ids=torch.tensor([ids]), use_cache=False)
            except _Reached:
                continue
    finally:
        handle.remove()
    return states, arguments


def _watch(
    layer: Any, states: Sequence[torch.Tensor], arguments: Sequence[dict[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the feed-forward network reads and what the layer hands up, all prompts' tokens in a row."""
    inputs: list[torch.Tensor] = []

    def keep(_module: Any, given: tuple[torch.Tensor, ...]) -> None:
        inputs.append(given[0][0])

    handle = layer.mlp.register_forward_pre_hook(keep)
    try:
        outputs = [
            layer(state_1PD, **keywords)[0]
            for state_1PD, keywords in zip(states, arguments, strict=True)
        ]
    finally:
        handle.remove()
    return torch.cat(inputs).float(), torch.cat(outputs).float()


class _Reached(Exception):
    """The pass has come as far as it is needed."""
