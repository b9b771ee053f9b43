"""States of prompts as flat tensors: without padding, in full, as bfloat16, as int8, or as hidden states.

Shapes: N prompts, T tokens, S tokens of all prompts together, H key-value heads, D size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from .architecture import MoeModel
from .states import TokenStates

__all__ = ["StateKind", "choose_kind", "estimate_bytes", "pack", "unpack"]

StateKind = Literal["full", "bf16", "int8", "hidden"]
"""What is kept of the tokens before the last: keys and values in the model's own type, in bfloat16, in
int8 (with a float16 scale per token and head), or only hidden states before the first critical layer, from which
`restore` runs that layer and those above again (about 5/16 of a pass, c3po.md §4.3)."""

KINDS: tuple[StateKind, ...] = ("full", "bf16", "int8", "hidden")
SMALLEST = 2.0**-24
"""The smallest float16 above 0."""


def pack(states: TokenStates, kind: StateKind) -> dict[str, torch.Tensor]:
    """Named tensors for one safetensors file.

    Args:
        states: With `hidden_NTD` for kind `hidden`, otherwise with keys and values.
        kind: See `StateKind`.
    """
    packed = {
        "residual": states.residual_ND,
        "input": states.input_ND,
        "pathway": states.pathway_NME,
        "logits": states.logits_NO,
        "lengths": states.lengths_N,
    }
    if kind == "hidden":
        assert states.hidden_NTD is not None
        packed["hidden"] = _flatten(states.hidden_NTD[:, None], states.lengths_N + 1)[:, 0]
    else:
        for index, key_NHTD in states.keys.items():
            for name, tensor in (("key", key_NHTD), ("value", states.values[index])):
                packed |= _shrink(f"{name}.{index}", _flatten(tensor, states.lengths_N), kind)
    return {name: tensor.contiguous().cpu() for name, tensor in packed.items()}


def unpack(tensor: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor [S, H, D] in its working type."""
    flat_SHD = tensor[name]
    if f"{name}.scale" in tensor:
        return flat_SHD.to(dtype) * tensor[f"{name}.scale"].to(dtype)[..., None]
    return flat_SHD.to(dtype)


def estimate_bytes(
    moe: MoeModel, first: int, tokens: int, kind: StateKind, *, prompts: int = 1
) -> int:
    """Bytes that prompts of `tokens` tokens together take, apart from the little that every kind keeps.

    Keys and values are counted as the model's configuration states them; latent attention (MLA) as its
    latents.
    """
    config = moe.config
    if kind == "hidden":
        return tokens * config.hidden_size * moe.dtype.itemsize
    if hasattr(config, "kv_lora_rank"):
        heads, values = 1, config.kv_lora_rank + config.qk_rope_head_dim
    else:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_key_value_heads
        values = 2 * heads * size
    above = len(moe.decoder) - 1 - first
    itemsize = {"full": moe.dtype.itemsize, "bf16": 2, "int8": 1}[kind]
    scales = 2 * heads * 2 if kind == "int8" else 0
    return (tokens - prompts) * above * (values * itemsize + scales)


def choose_kind(
    moe: MoeModel, first: int, tokens: int, prompts: int, budget: int
) -> StateKind | None:
    """The most exact kind that fits; None if none does.

    Args:
        moe: Which model.
        first: Decoder index of the first critical layer.
        tokens: Of all prompts together.
        prompts: How many.
        budget: Bytes.
    """
    for kind in KINDS:
        if estimate_bytes(moe, first, tokens, kind, prompts=prompts) <= budget:
            return kind
    return None


def _flatten(tensor_NHTD: torch.Tensor, lengths_N: torch.Tensor) -> torch.Tensor:
    """[S, H, D]: the prompts' tokens one after another."""
    places_T = torch.arange(tensor_NHTD.shape[2], device=tensor_NHTD.device)
    return tensor_NHTD.transpose(1, 2)[places_T < lengths_N[:, None]]


def _shrink(name: str, flat_SHD: torch.Tensor, kind: StateKind) -> dict[str, torch.Tensor]:
    if kind == "full":
        return {name: flat_SHD}
    if kind == "bf16":
        return {name: flat_SHD.to(torch.bfloat16)}
    largest_SH = flat_SHD.abs().amax(-1).float()
    # Below the smallest float16 the scale would be 0, and what is divided by it no number.
    scale_SH = (largest_SH / 127).clamp(min=SMALLEST).to(torch.float16)
    whole_SHD = (flat_SHD.float() / scale_SH.float()[..., None]).round().clamp(-127, 127)
    return {name: whole_SHD.to(torch.int8), f"{name}.scale": scale_SH}
