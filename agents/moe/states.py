"""What stays constant when only the last prompt token is re-routed, taken from one forward pass.

With a routing that changes only at the last token, and only from the first critical layer up, every other
token's states are what they were (c3po.md §4.2). So one pass gives all that the suffix needs.
Shapes: N prompts, B prompts of a batch, T tokens, M layers with routed experts, E experts, D hidden
size, H key-value heads, O option letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .architecture import MoeModel
from .gates import last_positions, record

__all__ = ["TokenStates", "blank", "capture", "join_states"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStates:
    """The states of the last token of N prompts at the first critical layer, and what it attends to."""

    first: int
    """Decoder index of the first critical layer."""
    residual_ND: torch.Tensor
    """Residual stream of the last token after that layer's attention (`u`)."""
    input_ND: torch.Tensor
    """The same after the norm: what that layer's router and experts see (`x`)."""
    keys: Mapping[int, torch.Tensor]
    """Decoder index → [N, H, T, size]: keys of the tokens before the last in each layer above the first
    critical one, filled up at the right. Whatever the model caches: latents for MLA."""
    values: Mapping[int, torch.Tensor]
    lengths_N: torch.Tensor
    """Tokens before the last."""
    pathway_NME: torch.Tensor
    """Scores of all experts in all layers with routed experts, float32 or float64."""
    layers: tuple[int, ...]
    """Decoder indices of those M layers."""
    logits_NO: torch.Tensor
    """Logits of the option letters by default routing."""
    hidden_NTD: torch.Tensor | None = None
    """All tokens' states before the first critical layer, filled up at the right; only if asked for."""

    def __len__(self) -> int:
        return len(self.residual_ND)

    def pathway_at(self, layers: Sequence[int]) -> torch.Tensor:
        """The pathway of some layers, by decoder index: [N, C, E]."""
        return self.pathway_NME[:, [self.layers.index(index) for index in layers]]

    def take(self, rows_R: torch.Tensor) -> TokenStates:
        """The states of some prompts, by their indices; tokens that none of them has are cut off."""
        lengths_R = self.lengths_N[rows_R]
        longest = int(lengths_R.max()) if len(rows_R) else 0
        hidden = self.hidden_NTD
        return replace(
            self,
            residual_ND=self.residual_ND[rows_R],
            input_ND=self.input_ND[rows_R],
            keys={index: key[rows_R, :, :longest] for index, key in self.keys.items()},
            values={index: value[rows_R, :, :longest] for index, value in self.values.items()},
            lengths_N=lengths_R,
            pathway_NME=self.pathway_NME[rows_R],
            logits_NO=self.logits_NO[rows_R],
            hidden_NTD=None if hidden is None else hidden[rows_R, : longest + 1],
        )


def join_states(parts: Sequence[TokenStates]) -> TokenStates:
    """Put states of several batches together; shorter ones are filled up at the right.

    Args:
        parts: At least one, all of one model, first layer and option letters.
    """
    longest = max(int(part.lengths_N.max()) for part in parts)

    def join_padded(tensors: Sequence[torch.Tensor], length: int, dim: int) -> torch.Tensor:
        return torch.cat([_fill(tensor, length, dim) for tensor in tensors])

    first = parts[0]
    hidden = [part.hidden_NTD for part in parts if part.hidden_NTD is not None]
    return replace(
        first,
        residual_ND=torch.cat([part.residual_ND for part in parts]),
        input_ND=torch.cat([part.input_ND for part in parts]),
        keys={i: join_padded([part.keys[i] for part in parts], longest, 2) for i in first.keys},
        values={
            i: join_padded([part.values[i] for part in parts], longest, 2) for i in first.values
        },
        lengths_N=torch.cat([part.lengths_N for part in parts]),
        pathway_NME=torch.cat([part.pathway_NME for part in parts]),
        logits_NO=torch.cat([part.logits_NO for part in parts]),
        hidden_NTD=join_padded(hidden, longest + 1, 1) if hidden else None,
    )


@torch.no_grad()
def capture(
    moe: MoeModel,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    first: int,
    tokens_O: torch.Tensor,
    keeps_hidden: bool = False,
    keeps_cache: bool = True,
) -> TokenStates:
    """Run prompts once by default routing and keep what re-routing their last token needs.

    Args:
        moe: Which model.
        ids_BT: Prompts, padded at either side.
        mask_BT: 1 where there is a token.
        first: Decoder index of the first critical layer; it must have routed experts.
        tokens_O: Tokens of the option letters.
        keeps_hidden: Also keep all tokens' states before that layer, of which `restore` can make the
            rest again.
        keeps_cache: Keep keys and values.

    Raises:
        InputError: an empty prompt, or a first layer without routed experts.
    """
    from transformers import DynamicCache

    layer = moe.at(first)
    last_B = last_positions(mask_BT)
    rows_B = torch.arange(len(last_B), device=mask_BT.device)
    seen: dict[str, torch.Tensor] = {}

    def see(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = arguments[0] if arguments else keywords["hidden_states"]
            seen[name] = given.detach()

        return hook

    norm: Any = layer.layer.post_attention_layernorm
    handles = [
        layer.layer.register_forward_pre_hook(see("hidden"), with_kwargs=True),
        norm.register_forward_pre_hook(see("residual"), with_kwargs=True),
        layer.block.register_forward_pre_hook(see("input"), with_kwargs=True),
    ]
    # Without a configuration the cache keeps all tokens in sliding layers too; the mask knows the window.
    cache: Any = DynamicCache()
    try:
        with record(moe) as recording:
            output = moe.base(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=(mask_BT.cumsum(-1) - 1).clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
    finally:
        for handle in handles:
            handle.remove()
    layers = tuple(each.index for each in moe.layers)
    lengths_B = mask_BT.sum(-1) - 1
    above = range(first + 1, len(moe.decoder)) if keeps_cache else ()
    order_BT = _order(mask_BT)
    return TokenStates(
        first=first,
        residual_ND=seen["residual"][rows_B, last_B],
        input_ND=seen["input"][rows_B, last_B],
        keys={i: _align(cache.layers[i].keys, order_BT, lengths_B) for i in above},
        values={i: _align(cache.layers[i].values, order_BT, lengths_B) for i in above},
        lengths_N=lengths_B,
        pathway_NME=recording.at(last_B, layers),
        layers=layers,
        logits_NO=moe.read_logits(output.last_hidden_state[rows_B, last_B], tokens_O),
        hidden_NTD=_align(seen["hidden"][:, None], order_BT, lengths_B + 1)[:, 0]
        if keeps_hidden
        else None,
    )


def _order(mask_BT: torch.Tensor) -> torch.Tensor:
    """Places of each row's tokens in order, the padding after them."""
    return mask_BT.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)


def _align(tensor_BHTD: Any, order_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Move each row's first tokens to the left, with zeros behind them, as many as the longest has."""
    order_BT = order_BT[:, : int(lengths_B.max())]
    index = order_BT[:, None, :, None].expand(-1, tensor_BHTD.shape[1], -1, tensor_BHTD.shape[-1])
    return blank(tensor_BHTD.gather(2, index), lengths_B)


def blank(tensor_BHTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Zeros behind each row's tokens: what stands there must not depend on the other rows."""
    places_T = torch.arange(tensor_BHTD.shape[2], device=tensor_BHTD.device)
    here_BT = places_T < lengths_B[:, None]
    return tensor_BHTD.where(here_BT[:, None, :, None], 0.0)


def _fill(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)
