"""Tiny random models of every family that can be re-mixed, for the tests of `agents/moe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from expertmix.agents.moe.architecture import MoeModel
from expertmix.agents.moe.gates import Steering, last_positions, steer
from expertmix.agents.moe.problem import Selection

TOKENS_O = torch.tensor([5, 9, 20, 33])
"""The tokens that stand for option letters."""

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 4,
    "topk_group": 2,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe": ("Olmoe", {"num_experts": 16, "num_experts_per_tok": 4, "num_key_value_heads": 4}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 20,
            "mlp_only_layers": [0],
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "head_dim": 8,
            "norm_topk_prob": True,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "mixtral_sliding": (
        "Mixtral",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 7},
    ),
    "deepseek_v2": (
        "DeepseekV2",
        DEEPSEEK | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.3},
    ),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK | {"routed_scaling_factor": 2.5}),
    "granitemoe": (
        "GraniteMoe",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "residual_multiplier": 0.7,
            "logits_scaling": 3.0,
            "embedding_multiplier": 4.0,
            "attention_multiplier": 0.4,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 8, "sliding_window": 6},
    ),
}


def make_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A random model in eval mode whose routers have opinions and whose biases are not zero."""
    name, changes = CONFIGS[family]
    config = getattr(transformers, f"{name}Config")(**(COMMON | changes))
    generator = torch.Generator().manual_seed(seed)
    model: Any = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in key or not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if "norm" in key:
                tensor.copy_(1 + 0.1 * drawn)
            elif isinstance(model.get_submodule(key.rpartition(".")[0]), nn.Embedding):
                tensor.copy_(drawn)
            elif tensor.dim() == 1:
                tensor.copy_(0.2 * drawn)
            elif "router" in key or "gate.weight" in key:
                tensor.copy_(drawn * 0.35)
            else:
                tensor.copy_(drawn * tensor.shape[-1] ** -0.5)
    if dtype == torch.float64:  # grouped products have no float64
        model.set_experts_implementation("eager")
    return model.to(dtype).eval()


def make_prompts(
    lengths: tuple[int, ...] = (12, 5, 9), *, side: str = "left", seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids and their mask, padded at one side."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids_BT = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, length in enumerate(lengths):
        place = slice(longest - length, None) if side == "left" else slice(0, length)
        ids_BT[row, place] = torch.randint(3, 96, (length,), generator=generator)
        mask_BT[row, place] = 1
    return ids_BT, mask_BT


def run(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Logits of every position, with positions counted from each row's first token."""
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT).logits


def draw_routing(rows: int, layers: int, experts: int, *, seed: int = 1) -> torch.Tensor:
    """Random routings in float64; rows sum to one."""
    generator = torch.Generator().manual_seed(seed)
    drawn_RCE = torch.rand(rows, layers, experts, generator=generator, dtype=torch.float64)
    return drawn_RCE / drawn_RCE.sum(-1, keepdim=True)


def strongest(routing_RCE: torch.Tensor, number: int) -> torch.Tensor:
    """A core of each row's strongest experts."""
    core_RCE = torch.zeros_like(routing_RCE, dtype=torch.bool)
    return core_RCE.scatter(-1, routing_RCE.detach().topk(number, -1).indices, True)


def run_steered(
    moe: MoeModel,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    layers: Sequence[int],
    routing_BCE: torch.Tensor,
    *,
    core_BCE: torch.Tensor | None = None,
    selection: Selection = "hard",
    keeps_mass: bool = False,
) -> torch.Tensor:
    """Logits of `TOKENS_O` by a pass of the whole model with the last tokens steered."""
    rows_B, last_B = torch.arange(len(ids_BT)), last_positions(mask_BT)
    steering = Steering(
        layers=tuple(layers),
        rows_R=rows_B,
        positions_R=last_B,
        routing_RCE=routing_BCE,
        core_RCE=core_BCE,
        selection=selection,
        keeps_mass=keeps_mass,
    )
    with steer(moe, steering):
        return run(moe.model, ids_BT, mask_BT)[rows_B, last_B][:, TOKENS_O]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRecompute:
    """An `Objective` without any cache: every call runs the whole model over all neighbours' prompts."""

    moe: MoeModel
    layers: tuple[int, ...]
    ids_RT: torch.Tensor
    mask_RT: torch.Tensor
    gold_QN: torch.Tensor
    options_QN: torch.Tensor

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        questions, number = self.gold_QN.shape
        logits_RO = run_steered(
            self.moe,
            self.ids_RT,
            self.mask_RT,
            self.layers,
            routing_QCE.repeat_interleave(number, 0),
            core_BCE=None if core_QCE is None else core_QCE.repeat_interleave(number, 0),
            selection=selection,
        )
        losses: list[torch.Tensor] = []
        for row_O, gold, options in zip(
            logits_RO, self.gold_QN.flatten(), self.options_QN.flatten(), strict=True
        ):
            losses.append(nn.functional.cross_entropy(row_O[: int(options)], gold))
        return torch.stack(losses).view(questions, number)

    def take(self, rows_R: torch.Tensor) -> FullRecompute:
        number = self.gold_QN.shape[1]
        flat = (rows_R[:, None] * number + torch.arange(number)).flatten()
        return FullRecompute(
            moe=self.moe,
            layers=self.layers,
            ids_RT=self.ids_RT[flat],
            mask_RT=self.mask_RT[flat],
            gold_QN=self.gold_QN[rows_R],
            options_QN=self.options_QN[rows_R],
        )
