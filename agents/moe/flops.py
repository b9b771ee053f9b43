"""What re-mixing costs, in multiply-accumulates: an account, which `counting` can check.

The account follows the matrix products of the modules as they run (c3po.md §4.3): projections, scores,
routers, experts, head. It leaves out norms, softmax, rotary embeddings and activations. Attention is
counted as causal and within its window, whether or not a kernel computes the masked part as well; a
kernel that recomputes scores in its backward pass is not charged for that. Multi-head latent attention
expands the cached latents anew in every pass, as transformers does, and is charged for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .architecture import MoeModel, find_moe
from .problem import Selection, Solution
from .suffix import window_of

__all__ = [
    "Cost",
    "LayerShape",
    "Shape",
    "list_schemes",
    "naive_pass",
    "plain_pass",
    "prepare_pass",
    "solution_ratio",
    "suffix_pass",
]

LETTERS = 10
"""Rows of the head that a decision between option letters reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """An amount of work."""

    macs: float

    @property
    def flops(self) -> float:
        """Two for each multiply-accumulate."""
        return 2 * self.macs

    def ratio(self, other: Cost) -> float:
        """How many times the other's work this is."""
        return self.macs / other.macs

    def __add__(self, other: Cost) -> Cost:
        return Cost(macs=self.macs + other.macs)

    def __mul__(self, times: float) -> Cost:
        return Cost(macs=self.macs * times)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Multiply-accumulates of one decoder layer, for each token unless something else is said."""

    projections: int
    """All linear layers of the attention."""
    per_pair: int
    """For each token that a token attends to, itself included."""
    per_cached: int
    """For each cached token, however many new ones there are (latent attention)."""
    window: int | None
    router: int
    """0 in a dense layer."""
    expert: int
    """One routed expert."""
    rest: int
    """Linear layers that are always on: shared experts and their gate, or the dense feed-forward."""
    experts: int
    top_k: int

    def attend(self, tokens: float) -> float:
        """One token's attention, the last of so many, with the others cached."""
        seen = tokens if self.window is None else min(tokens, self.window)
        return self.per_pair * seen + self.per_cached * (tokens - 1)

    def attend_all(self, tokens: int) -> int:
        """The scores of a prompt, each token attending to itself and those before it."""
        ramp = tokens if self.window is None else min(tokens, self.window)
        return self.per_pair * (ramp * (ramp + 1) // 2 + (tokens - ramp) * ramp)

    @property
    def linear(self) -> int:
        """One token through everything but the scores."""
        return self.projections + self.router + self.top_k * self.expert + self.rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the cost of a model depends on."""

    hidden: int
    vocabulary: int
    layers: tuple[LayerShape, ...]
    """All decoder layers."""

    @classmethod
    def of(cls, moe: MoeModel) -> Shape:
        """Read the shapes of a model's modules; their weights may be on the device `meta`."""
        routed = {layer.index: layer for layer in moe.layers}
        shapes: list[LayerShape] = []
        for index, layer in enumerate(moe.decoder):
            attention = layer.self_attn
            inside = _linear(attention)
            latent = attention.kv_b_proj.weight.numel() if hasattr(attention, "kv_b_proj") else 0
            found: Any = routed.get(index)
            outside = _linear(layer) - inside
            router = expert = experts = top_k = 0
            if found is not None:
                router = found.router.weight.numel()
                # A router or experts made of linear layers would be among the rest.
                outside -= _linear(found.router) + _linear(found.experts)
                experts, top_k = found.rule.experts, found.rule.top_k
                weights = (part.numel() for part in found.experts.parameters() if part.dim() > 2)
                expert = sum(weights) // experts
            latent_size = getattr(attention, "qk_head_dim", None)
            queries = latent_size or attention.head_dim
            values = getattr(attention, "v_head_dim", queries)
            shapes.append(
                LayerShape(
                    projections=inside,
                    per_pair=moe.config.num_attention_heads * (queries + values),
                    per_cached=latent,
                    window=window_of(layer, moe.config),
                    router=router,
                    expert=expert,
                    rest=outside,
                    experts=experts,
                    top_k=top_k,
                )
            )
        head = moe.model.get_output_embeddings().weight
        return cls(hidden=head.shape[1], vocabulary=head.shape[0], layers=tuple(shapes))

    @classmethod
    def of_config(cls, config: Any) -> Shape:
        """The shape of a model that is not there, from its transformers configuration.

        Raises:
            InputError: a dense model, or a family that is not known.
        """
        import transformers

        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        return cls.of(find_moe(model))


def plain_pass(shape: Shape, tokens: int) -> Cost:
    """One prompt up to the distribution of its next token."""
    linear = sum(layer.linear for layer in shape.layers) * tokens
    scores = sum(layer.attend_all(tokens) for layer in shape.layers)
    return Cost(macs=linear + scores + shape.vocabulary * shape.hidden)


def prepare_pass(shape: Shape, layers: Sequence[int], *, core: int | None = None) -> Cost:
    """Once for each row: what the first critical layer's experts make of its last token (§4.2, ii).

    Args:
        shape: Of the model.
        layers: Decoder indices of the critical layers.
        core: How many experts may be on; None is all.
    """
    first = shape.layers[layers[0]]
    # The block runs once with a single silenced expert, to find what else it adds.
    silenced = first.router + first.expert + first.rest
    return Cost(macs=(core or first.experts) * first.expert + silenced)


def suffix_pass(
    shape: Shape,
    tokens: float,
    layers: Sequence[int],
    *,
    gradient: bool = False,
    selection: Selection = "hard",
    core: int | None = None,
    head_rows: int | None = LETTERS,
    cached: bool = True,
) -> Cost:
    """The last of `tokens` tokens from the first critical layer up, on cached keys and values.

    The backward pass is with respect to activations only: everything once, without the routers whose
    output is replaced; the cached keys get no gradient, except in latent attention. With `straight_through`, experts that are off are evaluated, but
    nothing flows back through them.

    Args:
        shape: Of the model.
        tokens: Of the prompt, the last one included. The cost is affine in it without windows, so a mean
            over rows will do.
        layers: Decoder indices of the critical layers, ascending.
        gradient: Whether a backward pass follows.
        selection: See `Selection`.
        core: How many experts may be on; None is all.
        head_rows: How many logits are read; None is the whole head.
        cached: Whether the first critical layer's expert outputs were kept. Otherwise that layer runs as
            a whole, backwards too, as in the table of c3po.md §4.3 (autograd would skip the latter).
    """
    rows = shape.vocabulary if head_rows is None else head_rows
    first = shape.layers[layers[0]]
    forward = backward = float(rows * shape.hidden)
    above = range(layers[0] + 1, len(shape.layers))
    if cached:
        width = core or first.experts
        forward += width * shape.hidden
        backward += width * shape.hidden
    else:
        above = range(layers[0], len(shape.layers))
    for index in above:
        layer = shape.layers[index]
        scores = layer.attend(tokens)
        forward += layer.linear + scores
        replaced = layer.router if index in layers else 0
        # Cached keys and values are constants, unless they are expanded from latents.
        backward += layer.linear - replaced + scores
        if layer.per_cached:
            backward += layer.per_pair * tokens
        if index in layers and selection == "straight_through":
            forward += ((core or layer.experts) - layer.top_k) * layer.expert
    return Cost(macs=forward + backward if gradient else forward)


def naive_pass(shape: Shape, tokens: int, layers: Sequence[int]) -> Cost:
    """A whole forward pass, and a backward pass of all tokens through everything from `layers[0]` up."""
    above = shape.layers[layers[0] :]
    linear = sum(layer.linear for layer in above) * tokens
    scores = 2 * sum(layer.attend_all(tokens) for layer in above)
    backward = linear + scores + shape.vocabulary * shape.hidden
    return plain_pass(shape, tokens) + Cost(macs=backward)


def solution_ratio(
    shape: Shape,
    layers: Sequence[int],
    solution: Solution,
    *,
    tokens: Sequence[int],
    neighbour_tokens: Sequence[int],
    selection: Selection = "straight_through",
    core: int | None = None,
    head_rows: int | None = LETTERS,
) -> float:
    """Everything that re-mixed answers cost, in plain passes of the same questions.

    That is the questions' own passes, the first critical layer's expert outputs for them and their
    neighbours, the solver's passes and gradients, and the last run of each question under its new
    routing. Neighbours' states are cached. A solver that makes no pass has no neighbours to prepare.

    Args:
        shape: Of the model.
        layers: Decoder indices of the critical layers.
        solution: Of all questions together; its passes and gradients are totals.
        tokens: Of each question's prompt.
        neighbour_tokens: Of each neighbour's prompt, for all questions; those that do not exist, left out.
        selection: Of the gradients.
        core: See `suffix_pass`.
        head_rows: See `suffix_pass`.
    """
    plain = total = sum((plain_pass(shape, length) for length in tokens), Cost(macs=0))
    once = prepare_pass(shape, layers, core=core)
    if solution.passes:
        mean = sum(neighbour_tokens) / len(neighbour_tokens)
        descent = suffix_pass(
            shape,
            mean,
            layers,
            gradient=True,
            selection=selection,
            core=core,
            head_rows=head_rows,
        )
        # Without a gradient nobody needs the experts that are off.
        forward = suffix_pass(shape, mean, layers, core=core, head_rows=head_rows)
        total += once * len(neighbour_tokens) + descent * solution.gradients
        total += forward * (solution.passes - solution.gradients)
    for length in tokens:
        total += once + suffix_pass(shape, length, layers, core=core, head_rows=head_rows)
    return total.ratio(plain)


def list_schemes(
    shape: Shape,
    tokens: int,
    layers: Sequence[int],
    *,
    neighbours: int = 3,
    steps: int = 10,
    core: int = 20,
    options: int = 4,
) -> dict[str, float]:
    """The table of c3po.md §4.3: ways to re-mix, each in plain passes of `tokens` tokens.

    As there, expert outputs of the first critical layer are given where they are cached, and neighbours'
    prompts are as long as the question's.
    """
    plain = plain_pass(shape, tokens)
    number = neighbours * steps
    top_k = shape.layers[layers[0]].top_k

    def suffix(*, gradient: bool, rows: int | None = None, straight: bool = False) -> Cost:
        return suffix_pass(
            shape,
            tokens,
            layers,
            gradient=gradient,
            selection="straight_through" if straight else "hard",
            core=core if straight else top_k,
            head_rows=rows,
        )

    whole = suffix_pass(shape, tokens, layers, head_rows=None, cached=False)
    pair = suffix_pass(shape, tokens, layers, head_rows=None, cached=False, gradient=True)
    final = suffix(gradient=False)
    few = suffix(gradient=True, rows=options) * number + suffix(gradient=False, rows=options)
    straight = suffix(gradient=True, straight=True) * number + final
    online = (pair * number + whole).ratio(plain)
    return {
        "naive": 2 + (naive_pass(shape, tokens, layers) * number).ratio(plain),
        "last token, neighbours online": 1 + neighbours + online,
        "last token, neighbours cached": 1 + online,
        "first layer cached": 1 + (suffix(gradient=True) * number + final).ratio(plain),
        "first layer cached, straight-through": 1 + straight.ratio(plain),
        "first layer cached, options only": 1 + few.ratio(plain),
        "kernel regression, alpha 0": 1 + whole.ratio(plain),
        "kernel regression, 11 alphas": 1 + (whole * (11 * neighbours + 1)).ratio(plain),
    }


def _linear(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
