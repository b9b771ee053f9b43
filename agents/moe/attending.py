"""Attention of one new token to cached ones that need no gradient.

Whatever transformers calls its attention by would be handed all keys as one tensor, own and cached, and
would compute the gradients of both, and copies of both for every head that shares them: several times
the work of the rest of a suffix pass. Here the cached ones stay where they are, as constants.
Shapes: R rows, H heads, G query heads for each key-value head, T cached tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch

from .architecture import MoeModel
from .states import TokenStates

__all__ = ["attending_once", "can_attend_once"]

NAME = "expertmix_one_token"


def can_attend_once(moe: MoeModel) -> bool:
    """Whether a model's attention is the plain one: not latent, without sinks, on torch's kernels."""
    attention = moe.decoder[-1].self_attn
    return moe.config._attn_implementation == "sdpa" and not hasattr(attention, "kv_b_proj")


@contextlib.contextmanager
def attending_once(moe: MoeModel) -> Generator[None]:
    """Let layers attend by way of this module; they must be given `cached_states` and one token a row."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config = moe.decoder[-1].self_attn.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any,
    query_RH1D: torch.Tensor,
    key_RH1D: torch.Tensor,
    value_RH1D: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    *,
    cached_states: TokenStates,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """In the form that transformers asks for; keys and values are the new token's own."""
    del ignored
    keys_RHTD = cached_states.keys[module.layer_idx].to(key_RH1D.dtype)
    values_RHTD = cached_states.values[module.layer_idx].to(value_RH1D.dtype)
    rows, heads, _, size = key_RH1D.shape
    query_RHGD = query_RH1D.reshape(rows, heads, -1, size)
    query_RHGD = query_RHGD * (size**-0.5 if scaling is None else scaling)
    # Scores are added up and normalised in float32, as torch's kernels do.
    precise = torch.promote_types(query_RHGD.dtype, torch.float32)
    precise_RHGD = query_RHGD.to(precise)
    cached_RHGT = precise_RHGD @ keys_RHTD.to(precise).transpose(-1, -2)
    own_RHG1 = (precise_RHGD * key_RH1D.to(precise)).sum(-1, keepdim=True)
    scores_RHGT = torch.cat([cached_RHGT, own_RHG1], dim=-1)
    shares_RHGT = (scores_RHGT + attention_mask).softmax(-1).to(query_RHGD.dtype)
    mixed_RHGD = shares_RHGT[..., :-1] @ values_RHTD + shares_RHGT[..., -1:] * value_RH1D
    return mixed_RHGD.reshape(rows, 1, -1, value_RH1D.shape[-1]), None
