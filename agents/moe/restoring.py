"""Makes keys and values again from hidden states: the layers from the first critical one up, all tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .architecture import MoeModel
from .states import TokenStates, blank
from .suffix import window_of

__all__ = ["restore"]


@torch.no_grad()
def restore(moe: MoeModel, states: TokenStates, hidden_NTD: torch.Tensor) -> TokenStates:
    """Fill in the keys and values of states that were kept as hidden states.

    Costs the layers from the first critical one up over all tokens: 5/16 of a pass for five of sixteen.

    Args:
        moe: The model that they are of.
        states: Without keys and values.
        hidden_NTD: All tokens before the first critical layer, filled up at the right.
    """
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    length = hidden_NTD.shape[1]
    places_T = torch.arange(length, device=hidden_NTD.device)
    positions_NT = places_T.expand(len(hidden_NTD), -1)
    embeddings = moe.base.rotary_emb(hidden_NTD, positions_NT)
    real_NT = places_T <= states.lengths_N[:, None]
    for index in range(states.first, len(moe.decoder)):
        layer: Any = moe.decoder[index]
        window = window_of(layer, moe.config)
        seen_TT = places_T[:, None] >= places_T
        if window is not None:
            seen_TT = seen_TT & (places_T[:, None] - places_T < window)
        seen_NTT = seen_TT & real_NT[:, None]
        # A padded row would attend to nothing, which some attention kernels answer with NaN.
        seen_NTT = seen_NTT | torch.eye(length, dtype=torch.bool, device=seen_NTT.device)
        mask_NTT = torch.zeros(seen_NTT.shape, dtype=moe.dtype, device=seen_NTT.device)
        hidden_NTD = layer(
            hidden_NTD,
            attention_mask=mask_NTT.masked_fill(~seen_NTT, torch.finfo(moe.dtype).min)[:, None],
            position_ids=positions_NT,
            past_key_values=_Shifted(cache, states.first),
            use_cache=True,
            position_embeddings=embeddings,
        )
    above = range(states.first + 1, len(moe.decoder))

    def before_last(tensor_NHTD: Any) -> torch.Tensor:
        return blank(tensor_NHTD[:, :, : length - 1], states.lengths_N)

    return replace(
        states,
        keys={i: before_last(cache.layers[i - states.first].keys) for i in above},
        values={i: before_last(cache.layers[i - states.first].values) for i in above},
    )


class _Shifted:
    """A cache whose first layer is the first critical one: transformers fills layers from 0 up."""

    def __init__(self, cache: Any, first: int) -> None:
        self._cache, self._first = cache, first

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Pass on under the shifted index."""
        return self._cache.update(keys, values, layer_idx - self._first)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing came before."""
        return 0
