"""Finds the routers, experts and layers of a Hugging Face mixture-of-experts model.

Families are told by the class of their router, not by the model's name: what is steered is the module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...retrieval import InputError
from .routing import RoutingRule

__all__ = ["FAMILIES", "Family", "MoeLayer", "MoeModel", "find_moe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What one family of models calls its parts. A new architecture is one more of these."""

    router_class: str
    block: str
    """The mixture-of-experts block in a decoder layer."""
    router: str
    """The router in the block."""
    rule: Callable[[Any, Any], RoutingRule]
    """From the router module and the configuration."""
    output: tuple[int, int, int] = (0, 1, 2)
    """Where the router's output has its logits, weights and indices."""


def _softmax(router: Any, config: Any) -> RoutingRule:
    del config
    norm = bool(getattr(router, "norm_topk_prob", False))
    return RoutingRule(experts=router.num_experts, top_k=router.top_k, renormalises=norm)


def _renormalised(router: Any, config: Any) -> RoutingRule:
    del config
    return RoutingRule(experts=router.num_experts, top_k=router.top_k, renormalises=True)


def _deepseek_v2(router: Any, config: Any) -> RoutingRule:
    del config
    grouped = router.topk_method == "group_limited_greedy"
    return RoutingRule(
        experts=router.num_experts,
        top_k=router.top_k,
        scale=router.routed_scaling_factor,
        groups=router.num_group if grouped else 1,
        kept_groups=router.topk_group if grouped else 1,
    )


def _deepseek_v3(router: Any, config: Any) -> RoutingRule:
    del config
    return RoutingRule(
        experts=router.num_experts,
        top_k=router.top_k,
        scoring="sigmoid",
        renormalises=router.norm_topk_prob,
        scale=router.routed_scaling_factor,
        groups=router.num_group,
        kept_groups=router.topk_group,
        group_score="top2",
    )


FAMILIES = (
    Family(router_class="OlmoeTopKRouter", block="mlp", router="gate", rule=_softmax),
    Family(router_class="Qwen2MoeTopKRouter", block="mlp", router="gate", rule=_softmax),
    Family(router_class="Qwen3MoeTopKRouter", block="mlp", router="gate", rule=_softmax),
    Family(router_class="MixtralTopKRouter", block="mlp", router="gate", rule=_renormalised),
    Family(router_class="DeepseekV2TopkRouter", block="mlp", router="gate", rule=_deepseek_v2),
    Family(router_class="DeepseekV3TopkRouter", block="mlp", router="gate", rule=_deepseek_v3),
    Family(
        router_class="GraniteMoeTopKRouter",
        block="block_sparse_moe",
        router="router",
        rule=_renormalised,
        output=(2, 1, 0),
    ),
    Family(router_class="GptOssTopKRouter", block="mlp", router="router", rule=_renormalised),
)
"""OLMoE, Qwen2-MoE, Qwen3-MoE, Mixtral, DeepSeek-V2 and V3, GraniteMoE, gpt-oss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLayer:
    """One decoder layer with routed experts."""

    index: int
    """Of the decoder layer, from 0."""
    layer: nn.Module
    block: nn.Module
    router: nn.Module
    experts: nn.Module
    rule: RoutingRule
    output: tuple[int, int, int]
    """See `Family.output`."""

    @property
    def bias_E(self) -> torch.Tensor | None:
        """What is added to scores for the choice only."""
        return getattr(self.router, "e_score_correction_bias", None)

    @property
    def multiplier(self) -> float:
        """What the block's output is multiplied by before it is added to the residual (Granite)."""
        return float(getattr(self.layer, "residual_multiplier", 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeModel:
    """A causal language model with its parts at hand; it owns nothing and changes nothing."""

    model: Any
    """The `PreTrainedModel`."""
    layers: tuple[MoeLayer, ...]
    """Those with routed experts, from the bottom up."""

    @property
    def config(self) -> Any:
        """Of the text model."""
        return self.model.config.get_text_config()

    @property
    def base(self) -> Any:
        """The decoder without the output layer: `embed_tokens`, `layers`, `norm`, `rotary_emb`."""
        return self.model.model

    @property
    def decoder(self) -> Sequence[Any]:
        """All decoder layers, dense ones included."""
        return self.base.layers

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.device

    @property
    def experts(self) -> int:
        """Routed experts of a layer."""
        return self.layers[0].rule.experts

    def at(self, index: int) -> MoeLayer:
        """The mixture-of-experts layer at a decoder index.

        Raises:
            InputError: the layer has no routed experts.
        """
        for layer in self.layers:
            if layer.index == index:
                return layer
        known = ", ".join(str(layer.index) for layer in self.layers)
        raise InputError(f"layer {index} has no routed experts; layers {known} have.")

    def last(self, number: int) -> tuple[int, ...]:
        """Indices of the last `number` mixture-of-experts layers, the critical ones by default (§1.4)."""
        if not 1 <= number <= len(self.layers):
            raise InputError(
                f"{number} critical layers were asked for; the model has {len(self.layers)} "
                "layers with routed experts."
            )
        return tuple(layer.index for layer in self.layers[-number:])

    def read_logits(self, hidden_ND: torch.Tensor, tokens_O: torch.Tensor) -> torch.Tensor:
        """Logits of a few tokens for final hidden states, float32 or float64: only their rows of the head.

        Args:
            hidden_ND: After the last norm.
            tokens_O: Token ids.
        """
        head: Any = self.model.get_output_embeddings()
        # In bfloat16 a logit near 18 is known to an eighth: one question in fifteen would be a tie.
        precise = torch.promote_types(hidden_ND.dtype, torch.float32)
        bias = head.bias[tokens_O].to(precise) if getattr(head, "bias", None) is not None else None
        weight_OD = head.weight[tokens_O].to(precise)
        logits_NO = nn.functional.linear(hidden_ND.to(precise), weight_OD, bias)
        return logits_NO / float(getattr(self.config, "logits_scaling", 1.0))


def find_moe(model: Any) -> MoeModel:
    """Find the routers of a model.

    Raises:
        InputError: a dense model, or routers of a family that is not known; says what was looked for.
    """
    layers: list[MoeLayer] = []
    decoder: Any = getattr(getattr(model, "model", None), "layers", None)
    for index, layer in enumerate(decoder if decoder is not None else ()):
        for family in FAMILIES:
            block: Any = getattr(layer, family.block, None)
            router: Any = getattr(block, family.router, None)
            if type(router).__name__ == family.router_class:
                layers.append(
                    MoeLayer(
                        index=index,
                        layer=layer,
                        block=block,
                        router=router,
                        experts=block.experts,
                        rule=family.rule(router, model.config),
                        output=family.output,
                    )
                )
    if not layers:
        raise InputError(_explain(model))
    return MoeModel(model=model, layers=tuple(layers))


def _explain(model: Any) -> str:
    looked = sorted({f"layers.N.{f.block}.{f.router} ({f.router_class})" for f in FAMILIES})
    others = sorted(
        {
            f"{name} ({type(module).__name__})"
            for name, module in model.named_modules()
            if type(module).__name__.lower().endswith(("router", "gate"))
        }
    )
    what = f"its routers {others[0]} are of an unknown kind" if others else "it is a dense model"
    return (
        f"{type(model).__name__} cannot be re-mixed: {what}. Take a mixture-of-experts model of a known "
        "family, or make one of a small dense model with: expertmix moe build --out DIR. "
        f"Looked for model.{', '.join(looked)}."
    )
