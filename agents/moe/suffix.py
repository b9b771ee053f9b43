"""One token, from the first critical layer up: all that re-routing the last prompt token has to compute.

The model's own layers run, each on one token per row, against cached keys and values; what does not
depend on the routing is computed once. Many (question, neighbour) rows go together. The result is what
a full forward pass with the same steering gives (c3po.md §4.2).
Shapes: R rows, C critical layers, E experts, W experts that may be on, D hidden size, O option letters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...retrieval import InputError
from .architecture import MoeModel
from .attending import attending_once, can_attend_once
from .problem import Selection
from .replacing import Replacement, run_experts, run_shared
from .states import TokenStates

__all__ = ["SuffixEngine", "SuffixRows", "frozen", "window_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuffixRows:
    """Rows ready to be run again and again under different routings."""

    states: TokenStates
    core_RCE: torch.Tensor | None
    """Experts that may be on; None lets all."""
    rest_RD: torch.Tensor
    """What the first critical layer adds whatever the routing: its shared experts."""
    outputs_RWD: torch.Tensor
    """Outputs of that layer's core experts."""
    indices_RW: torch.Tensor
    """Which experts those are; rows with fewer are filled up."""

    def take(self, rows: torch.Tensor) -> SuffixRows:
        """Some of the rows, by their indices."""
        core = self.core_RCE
        return replace(
            self,
            states=_compact(self.states.take(rows)),
            core_RCE=None if core is None else core[rows],
            rest_RD=self.rest_RD[rows],
            outputs_RWD=self.outputs_RWD[rows],
            indices_RW=self.indices_RW[rows],
        )


class SuffixEngine:
    """Runs the last prompt token of many rows under given routings. Weights stay as they are."""

    def __init__(
        self,
        moe: MoeModel,
        layers: Sequence[int],
        tokens_O: torch.Tensor,
        *,
        keeps_mass: bool = False,
    ) -> None:
        """Store what is needed.

        Args:
            moe: Which model; its parameters get no gradients.
            layers: Decoder indices of the critical layers, ascending. Layers between them that are not
                named route as they always do.
            tokens_O: Tokens of the option letters, whose logits are returned.
            keeps_mass: See `Steering.keeps_mass`.

        Raises:
            InputError: layers without routed experts, or not ascending.
        """
        if not layers or list(layers) != sorted(set(layers)):
            raise InputError(f"critical layers must be ascending and differ; got {list(layers)}.")
        self.moe = moe
        self.layers = tuple(layers)
        self.tokens_O = tokens_O
        self.keeps_mass = keeps_mass
        self._critical = [moe.at(index) for index in layers]

    @property
    def first(self) -> int:
        """Decoder index of the first critical layer."""
        return self.layers[0]

    @torch.no_grad()
    def prepare(self, states: TokenStates, core_RCE: torch.Tensor | None = None) -> SuffixRows:
        """Compute what does not depend on the routing: the first critical layer's experts (§4.2, ii)."""
        layer = self._critical[0]
        rows, device = len(states), states.input_ND.device
        if core_RCE is None:
            indices_RW = torch.arange(layer.rule.experts, device=device).expand(rows, -1)
        else:
            core_RE = core_RCE[:, 0]
            width = int(core_RE.sum(-1).max())
            order = core_RE.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
            indices_RW = order[:, :width]
        return SuffixRows(
            states=_compact(states),
            core_RCE=core_RCE,
            rest_RD=run_shared(layer, states.input_ND),
            outputs_RWD=run_experts(layer, states.input_ND, indices_RW),
            indices_RW=indices_RW,
        )

    def run(
        self, rows: SuffixRows, routing_RCE: torch.Tensor, selection: Selection = "hard"
    ) -> torch.Tensor:
        """Logits of the option letters, [R, O] in float32 (float64 for a float64 model).

        Differentiable in the routing.

        Args:
            rows: From `prepare`.
            routing_RCE: Scores of all experts at each critical layer.
            selection: How gradients reach experts that are off.
        """
        states = rows.states
        hidden_RD = self._mix_first(rows, routing_RCE[:, 0], selection)
        hidden_R1D = hidden_RD[:, None]
        positions_R1 = states.lengths_N[:, None]
        embeddings = self.moe.base.rotary_emb(hidden_R1D, positions_R1)
        once = can_attend_once(self.moe)
        cache = _Own() if once else _Appended(states)
        more = {"cached_states": states} if once else {}
        masks: dict[int | None, torch.Tensor] = {}
        with frozen(self.moe.model), contextlib.ExitStack() as hooks:
            if once:
                hooks.enter_context(attending_once(self.moe))
            for place, layer in enumerate(self._critical[1:], 1):
                core = None if rows.core_RCE is None else rows.core_RCE[:, place]
                hook = Replacement(
                    layer, routing_RCE[:, place], core, selection, keeps_mass=self.keeps_mass
                )
                hooks.callback(layer.router.register_forward_hook(hook).remove)
                hooks.callback(layer.experts.register_forward_hook(hook.add_others).remove)
            for index in range(self.first + 1, len(self.moe.decoder)):
                layer: Any = self.moe.decoder[index]
                window = window_of(layer, self.moe.config)
                if window not in masks:
                    masks[window] = _mask(states, window, hidden_RD.dtype)
                hidden_R1D = layer(
                    hidden_R1D,
                    attention_mask=masks[window],
                    position_ids=positions_R1,
                    past_key_values=cache,
                    use_cache=True,
                    position_embeddings=embeddings,
                    **more,
                )
            final_RD = self.moe.base.norm(hidden_R1D)[:, 0]
            return self.moe.read_logits(final_RD, self.tokens_O)

    def _mix_first(
        self, rows: SuffixRows, routing_RE: torch.Tensor, selection: Selection
    ) -> torch.Tensor:
        """The hidden state after the first critical layer, from the outputs computed beforehand."""
        layer, states = self._critical[0], rows.states
        core_RE = None if rows.core_RCE is None else rows.core_RCE[:, 0]
        mass_R1 = None
        if self.keeps_mass:
            default_RE = states.pathway_at([layer.index])[:, 0]
            mass_R1 = layer.rule.mix(default_RE, bias_E=layer.bias_E).weights_NW.sum(
                -1, keepdim=True
            )
        mixture = layer.rule.mix(
            routing_RE, bias_E=layer.bias_E, core_NE=core_RE, selection=selection, mass_N1=mass_R1
        )
        shape = (len(states), layer.rule.experts)
        all_RE = mixture.weights_NW.new_zeros(shape).scatter_add(
            -1, mixture.indices_NW, mixture.weights_NW
        )
        weights_RW = all_RE.gather(-1, rows.indices_RW)
        # Summed in the weights' own precision: in bfloat16 a step of 0.01 would be lost.
        mixed_RD = torch.einsum("rw,rwd->rd", weights_RW, rows.outputs_RWD.to(weights_RW.dtype))
        added_RD = layer.multiplier * (mixed_RD.to(rows.rest_RD.dtype) + rows.rest_RD)
        return states.residual_ND + added_RD


@contextlib.contextmanager
def frozen(model: Any) -> Generator[None]:
    """Let no parameter get a gradient; afterwards each is as it was."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Appended:
    """A cache that puts the one new token behind those of the states and remembers nothing."""

    def __init__(self, states: TokenStates) -> None:
        self._states = states

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that the token attends to, its own last."""
        old_keys, old_values = self._states.keys[layer_idx], self._states.values[layer_idx]
        return (
            torch.cat([old_keys.to(keys.dtype), keys], dim=-2),
            torch.cat([old_values.to(values.dtype), values], dim=-2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the new one."""
        return next(iter(self._states.keys.values())).shape[-2] if self._states.keys else 0


class _Own:
    """No cache at all: the attention finds the cached tokens by itself."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new token's own keys and values."""
        return keys, values


def _compact(states: TokenStates) -> TokenStates:
    """The same with keys and values in one piece each, which products are quickest on."""
    return replace(
        states,
        keys={index: part.contiguous() for index, part in states.keys.items()},
        values={index: part.contiguous() for index, part in states.values.items()},
    )


def window_of(layer: Any, config: Any) -> int | None:
    """How many tokens a layer's attention sees; the attention knows, or its kind, or all are alike."""
    attention = layer.self_attn
    window = getattr(config, "sliding_window", None)
    if hasattr(attention, "sliding_window"):
        window = attention.sliding_window
    elif kinds := getattr(config, "layer_types", None):
        window = window if kinds[attention.layer_idx] == "sliding_attention" else None
    return window or None


def _mask(states: TokenStates, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [R, 1, 1, T + 1]: the row's cached tokens within the window, and the token itself."""
    lengths_R1 = states.lengths_N[:, None]
    longest = next(iter(states.keys.values())).shape[-2] if states.keys else 0
    places_T = torch.arange(longest, device=lengths_R1.device)
    seen_RT = places_T < lengths_R1
    if window is not None:
        seen_RT = seen_RT & (lengths_R1 - places_T < window)
    seen_RT = torch.nn.functional.pad(seen_RT, (0, 1), value=True)
    mask_RT = torch.zeros(seen_RT.shape, dtype=dtype, device=seen_RT.device)
    return mask_RT.masked_fill(~seen_RT, torch.finfo(dtype).min)[:, None, None]
