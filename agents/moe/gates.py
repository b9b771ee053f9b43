"""Reads and steers the routers of a model by forward hooks.

Nothing is patched and nothing is global: hooks live inside a `with` block, after which the model gives
bit for bit what it gave before. Shapes: B rows of a batch, T positions of a padded batch, R steered
rows, C steered layers, E routed experts, K experts that are on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...retrieval import InputError
from .architecture import MoeLayer, MoeModel
from .problem import Selection

__all__ = ["Recording", "Steering", "last_positions", "record", "steer"]


def last_positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """Where each row's last token is, whichever side is padded.

    Raises:
        InputError: a row without a token.
    """
    if not bool(mask_BT.bool().any(-1).all()):
        raise InputError("a prompt of the batch is empty; every row needs at least one token.")
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT.bool(), places_T, -1).amax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """Routings for chosen tokens of a batch. Everything about their meaning is said, nothing assumed."""

    layers: tuple[int, ...]
    """Decoder indices of the C layers that are steered."""
    rows_R: torch.Tensor
    """Rows of the batch."""
    positions_R: torch.Tensor
    """The token of each row at which steering begins, counted in the padded sequence from 0; usually the
    last of the prompt (`last_positions`)."""
    routing_RCE: torch.Tensor
    """Scores of all experts before the top k (`set`), or what is added to the router's logits (`add`)."""
    mode: Literal["set", "add"] = "set"
    scope: Literal["token", "onwards"] = "token"
    """`token`: that one token only, even while `generate` decodes on. `onwards`: it and all after it,
    which is what the published code does unawares (specs §3.3, 2)."""
    core_RCE: torch.Tensor | None = None
    """Experts that may be on; None lets all."""
    selection: Selection = "hard"
    keeps_mass: bool = False
    """Whether the weights keep the sum that the model's own choice has. Only changes families that do not
    renormalise."""


@contextlib.contextmanager
def steer(moe: MoeModel, steering: Steering) -> Generator[None]:
    """Put routings on tokens of every forward pass inside the block.

    Rows and positions are those of the batch that the block runs; beam search reorders rows and is not
    supported. Passes of fewer rows than `rows_R` names raise an InputError. Gradients reach
    `routing_RCE`.

    Raises:
        InputError: layers without routed experts, or shapes that do not fit.
    """
    layers = [moe.at(index) for index in steering.layers]
    _check(steering, moe)
    view = _View()
    handles = [moe.base.register_forward_pre_hook(view.look, with_kwargs=True)]
    try:
        for place, layer in enumerate(layers):
            hook = _Steer(layer, place, steering, view)
            handles.append(layer.router.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(slots=True)
class Recording:
    """What routers said in the last forward pass of a `record` block."""

    scores: dict[int, torch.Tensor]
    """Decoder index → scores of all experts before the choice, [B, T, E], float32 or float64."""

    def at(self, positions_B: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """The pathway [B, C, E] of one token of each row (c3po.md §1.1)."""
        rows_B = torch.arange(len(positions_B), device=positions_B.device)
        return torch.stack([self.scores[index][rows_B, positions_B] for index in layers], dim=1)


@contextlib.contextmanager
def record(moe: MoeModel, layers: Sequence[int] | None = None) -> Generator[Recording]:
    """Record the routers' scores in every forward pass inside the block; the last pass is kept.

    Args:
        moe: Which model.
        layers: Decoder indices; all layers with routed experts by default.
    """
    wanted = moe.layers if layers is None else [moe.at(index) for index in layers]
    recording = Recording(scores={})
    view = _View()
    handles = [moe.base.register_forward_pre_hook(view.look, with_kwargs=True)]
    try:
        for layer in wanted:
            handles.append(layer.router.register_forward_hook(_Record(layer, recording, view)))
        yield recording
    finally:
        for handle in handles:
            handle.remove()


class _View:
    """Which tokens the running forward pass sees: B rows of T tokens after `past` cached ones."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.past = 0

    def look(self, module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = arguments[0] if arguments else keywords.get("input_ids")
        given = keywords.get("inputs_embeds") if given is None else given
        assert given is not None
        self.rows, self.tokens = given.shape[:2]
        cache = keywords.get("past_key_values")
        self.past = 0 if cache is None else int(cache.get_seq_length())


class _Record:
    def __init__(self, layer: MoeLayer, recording: Recording, view: _View) -> None:
        self._layer, self._recording, self._view = layer, recording, view

    def __call__(self, module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        scores_NE = self._layer.rule.score(output[self._layer.output[0]].detach())
        shape = (self._view.rows, self._view.tokens, -1)
        self._recording.scores[self._layer.index] = scores_NE.reshape(shape)


class _Steer:
    def __init__(self, layer: MoeLayer, place: int, steering: Steering, view: _View) -> None:
        self._layer, self._place, self._steering, self._view = layer, place, steering, view

    def __call__(
        self, module: Any, inputs: Any, output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        rows_P, tokens_P = self._find_tokens()
        if len(rows_P) == 0:
            return None
        at_logits, at_weights, at_indices = self._layer.output
        logits_NE, weights_NK, indices_NK = (output[i] for i in (at_logits, at_weights, at_indices))
        tokens_P = tokens_P.to(logits_NE.device)
        steering, rule = self._steering, self._layer.rule
        given_PE = steering.routing_RCE[rows_P, self._place].to(logits_NE.device)
        if steering.mode == "add":
            # Whichever is more precise, the model or what is added.
            given_PE = rule.score(logits_NE[tokens_P] + given_PE)
        core = steering.core_RCE
        mixture = rule.mix(
            given_PE,
            bias_E=self._layer.bias_E,
            core_NE=None if core is None else core[rows_P, self._place].to(logits_NE.device),
            selection=steering.selection,
            mass_N1=weights_NK[tokens_P].sum(-1, keepdim=True).to(given_PE.dtype)
            if steering.keeps_mass
            else None,
        )
        # Experts of weight 0 make up the width: of other tokens, or of these in a nested block.
        width = max(mixture.weights_NW.shape[-1], weights_NK.shape[-1])
        # Never below the hidden states' precision: some routers give float32 in a float64 model.
        wide = torch.promote_types(weights_NK.dtype, inputs[0].dtype)
        new = list(output)
        new[at_weights] = _widen(weights_NK.to(wide), width).index_put(
            (tokens_P,), _widen(mixture.weights_NW.to(wide), width)
        )
        new[at_indices] = _widen(indices_NK, width).index_put(
            (tokens_P,), _widen(mixture.indices_NW.to(indices_NK.dtype), width)
        )
        return tuple(new)

    def _find_tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which steering rows act in this pass, and on which of its flattened B x T tokens."""
        steering, view = self._steering, self._view
        seen_R = steering.positions_R - view.past
        rows_R = torch.arange(len(seen_R))
        if steering.scope == "token":
            here_R = ((seen_R >= 0) & (seen_R < view.tokens)).cpu()
            rows_P, place_P = rows_R[here_R], seen_R.cpu()[here_R]
        else:
            here_RT = torch.arange(view.tokens) >= seen_R.cpu()[:, None]
            rows_P, place_P = here_RT.nonzero(as_tuple=True)
        batch_P = steering.rows_R.cpu()[rows_P]
        # Only now: rows that are finished may leave the batch while others are decoded.
        if len(batch_P) and int(batch_P.max()) >= view.rows:
            raise InputError(
                f"row {int(batch_P.max())} is steered, but the batch has {view.rows} rows."
            )
        return rows_P, batch_P * view.tokens + place_P


def _widen(tensor_NK: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor_NK, (0, width - tensor_NK.shape[-1]))


def _check(steering: Steering, moe: MoeModel) -> None:
    rows = len(steering.rows_R)
    wanted = (rows, len(steering.layers), moe.experts)
    if tuple(steering.routing_RCE.shape) != wanted or len(steering.positions_R) != rows or not rows:
        raise InputError(
            f"the routing has shape {tuple(steering.routing_RCE.shape)} and there are "
            f"{len(steering.positions_R)} positions; {rows} rows (at least one), "
            f"{len(steering.layers)} layers and {moe.experts} experts need {wanted}."
        )
    core = steering.core_RCE
    if core is not None and tuple(core.shape) != wanted:
        raise InputError(f"the core has shape {tuple(core.shape)}; the routing has {wanted}.")
    if int(steering.rows_R.min()) < 0 or int(steering.positions_R.min()) < 0:
        raise InputError(
            "rows and positions are counted from 0 and cannot be negative; got rows "
            f"{steering.rows_R.tolist()} and positions {steering.positions_R.tolist()}."
        )
