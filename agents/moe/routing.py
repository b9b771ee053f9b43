"""From a router's scores to the experts that are on and their weights, as each family does it.

Shapes: N tokens, E routed experts, K experts that are on, W experts that may be on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .problem import Selection

__all__ = ["Mixture", "RoutingRule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Which experts act on each token, and how strongly."""

    indices_NW: torch.Tensor
    weights_NW: torch.Tensor
    """In the type of the scores; an expert that is not on has weight 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRule:
    """What a router makes of its logits (c3po.md §1.1 and §1.6, vllm.md §5).

    Scores are a softmax over *all* experts, or their sigmoids (DeepSeek-V3). The families that apply the
    softmax to the chosen experts only (GraniteMoE, gpt-oss) give the same weights as a softmax over
    all that is renormalised after the choice.
    """

    experts: int
    top_k: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    renormalises: bool = False
    """Whether the weights of the chosen experts are divided by their sum."""
    scale: float = 1.0
    """What weights are multiplied by in the end."""
    groups: int = 1
    """Experts are chosen from the best `kept_groups` of so many groups (DeepSeek)."""
    kept_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    """A group counts as its best expert (V2), or as the sum of its two best (V3)."""

    def score(self, logits_NE: torch.Tensor) -> torch.Tensor:
        """Scores of all experts, in float32 (float64 for float64 logits), before any choice."""
        logits_NE = logits_NE if logits_NE.dtype == torch.float64 else logits_NE.float()
        return logits_NE.sigmoid() if self.scoring == "sigmoid" else logits_NE.softmax(-1)

    def choose(
        self,
        scores_NE: torch.Tensor,
        *,
        bias_E: torch.Tensor | None = None,
        core_NE: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The `top_k` experts of each token, the strongest first.

        Args:
            scores_NE: See `score`, or scores that somebody made up.
            bias_E: Added for the choice only (DeepSeek-V3's `e_score_correction_bias`).
            core_NE: Experts that may be chosen; None allows all. If too few of them may, others fill up
                the `top_k`, which `mix` gives no weight.
        """
        return self._rank(scores_NE, bias_E, core_NE).topk(self.top_k, dim=-1).indices

    def weigh(self, scores_NE: torch.Tensor, indices_NK: torch.Tensor) -> torch.Tensor:
        """Weights of chosen experts; differentiable in the scores."""
        weights_NK = scores_NE.gather(-1, indices_NK)
        if self.renormalises:
            # DeepSeek-V3 adds 1e-20, the others nothing: no difference in any float type.
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        return weights_NK * self.scale

    def mix(
        self,
        scores_NE: torch.Tensor,
        *,
        bias_E: torch.Tensor | None = None,
        core_NE: torch.Tensor | None = None,
        selection: Selection = "hard",
        mass_N1: torch.Tensor | None = None,
    ) -> Mixture:
        """Choose and weigh.

        With `straight_through`, all core experts (all experts without a core) are returned, so W is the
        largest number of them; those that are not on have weight 0 but the gradient that they would
        have if they were (c3po.md §1.5).

        Args:
            scores_NE: One row per token.
            bias_E: See `choose`.
            core_NE: See `choose`.
            selection: How gradients reach experts that are off.
            mass_N1: Sum that the weights shall have, instead of what comes out: a flattened pathway
                would otherwise shrink a family's output that does not renormalise (specs §3.3, 12).
        """
        ranked_NE = self._rank(scores_NE, bias_E, core_NE)
        chosen_NK = ranked_NE.topk(self.top_k, dim=-1).indices
        # A small core has fewer than `top_k` experts: what fills them up is not on.
        live_NE = torch.where(ranked_NE.isneginf(), 0.0, scores_NE)
        if selection == "hard":
            indices_NW, weights_NW = chosen_NK, self.weigh(live_NE, chosen_NK)
        else:
            indices_NW, weights_NW = self._straight_through(scores_NE, live_NE, chosen_NK, core_NE)
        if mass_N1 is not None:
            weights_NW = weights_NW * (mass_N1 / weights_NW.sum(-1, keepdim=True))
        return Mixture(indices_NW=indices_NW, weights_NW=weights_NW)

    def _rank(
        self, scores_NE: torch.Tensor, bias_E: torch.Tensor | None, core_NE: torch.Tensor | None
    ) -> torch.Tensor:
        """What experts are chosen by; −inf for those that may not be."""
        ranked_NE = scores_NE.detach()
        if bias_E is not None:
            ranked_NE = ranked_NE + bias_E.to(ranked_NE.dtype)
        if self.groups > 1:
            ranked_NE = ranked_NE.masked_fill(~self._kept(ranked_NE), -torch.inf)
        if core_NE is not None:
            ranked_NE = ranked_NE.masked_fill(~core_NE, -torch.inf)
        return ranked_NE

    def _straight_through(
        self,
        scores_NE: torch.Tensor,
        live_NE: torch.Tensor,
        chosen_NK: torch.Tensor,
        core_NE: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        on_NE = torch.zeros_like(scores_NE, dtype=torch.bool).scatter(-1, chosen_NK, True)
        on_NE = on_NE & (live_NE != 0)
        core_NE = torch.ones_like(on_NE) if core_NE is None else core_NE
        # The core's experts first; rows with a smaller core are filled up with experts of weight 0.
        width = int(core_NE.sum(-1).max())
        indices_NW = core_NE.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
        indices_NW = indices_NW[..., :width]
        soft_NW = scores_NE.gather(-1, indices_NW)
        is_on_NW = on_NE.gather(-1, indices_NW)
        is_off_NW = core_NE.gather(-1, indices_NW) & ~is_on_NW
        off_NW = torch.where(is_off_NW, soft_NW - soft_NW.detach(), 0.0)  # no value, but a gradient
        if self.renormalises:
            # If an expert were on, its score would be in the sum that all are divided by.
            sum_N1 = live_NE.gather(-1, chosen_NK).sum(-1, keepdim=True)
            soft_NW = soft_NW / (sum_N1 + off_NW.sum(-1, keepdim=True))
            off_NW = off_NW / sum_N1.detach()
        return indices_NW, torch.where(is_on_NW, soft_NW, off_NW) * self.scale

    def _kept(self, ranked_NE: torch.Tensor) -> torch.Tensor:
        """Experts whose group is among the best."""
        size = self.experts // self.groups
        grouped_NGI = ranked_NE.unflatten(-1, (self.groups, size))
        best = 1 if self.group_score == "max" else min(2, size)
        totals_NG = grouped_NGI.topk(best, dim=-1).values.sum(-1)
        kept_NG = torch.zeros_like(totals_NG, dtype=torch.bool)
        kept_NG = kept_NG.scatter(-1, totals_NG.topk(self.kept_groups, dim=-1).indices, True)
        return kept_NG.repeat_interleave(size, dim=-1)
