"""Tiny random models of every family that can be re-mixed, for the tests of `agents/moe`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

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
