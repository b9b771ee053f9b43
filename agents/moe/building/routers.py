"""Routers fitted in closed form: which experts should go last at a token?

Leaving out or reweighting experts changes a layer's output by a combination of the experts' outputs,
so all that is ever needed of a token is the Gram matrix of those outputs: with weights w the squared
error is (w - 1)ᵀ G (w - 1).

Shapes: T tokens, D width of the residual stream, E experts, K of them on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Fit", "RouterData", "best_order", "fit_router", "lost"]

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidates for the ridge, relative to the mean square of the inputs."""

SCALES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)
"""Candidates for the spread of the logits: small ones choose experts, larger ones weigh them as well."""

TOLERANCE = 1.05
"""What a larger spread may cost: a router without opinions says little about the pathway it took."""

HELD_OUT = 4
"""Every so many-th prompt only judges the candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterData:
    """What a layer did on the calibration prompts."""

    inputs_TD: torch.Tensor
    gram_TEE: torch.Tensor
    """Inner products of the experts' outputs, each token's divided by what it counts for."""
    prompts_T: torch.Tensor
    """The number of the prompt that a token belongs to."""

    def take(self, tokens_T: torch.Tensor) -> RouterData:
        """The same for some of the tokens (bool)."""
        return RouterData(
            inputs_TD=self.inputs_TD[tokens_T],
            gram_TEE=self.gram_TEE[tokens_T],
            prompts_T=self.prompts_T[tokens_T],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A router and what it loses on prompts that it was not fitted on."""

    weight_ED: torch.Tensor
    error: float
    """Share of the routed experts' output that is lost, squared; held-out prompts."""
    best_error: float
    """The same for the best experts of each token, fully on: what no router can beat by choosing."""
    blind_error: float
    """The same for the K experts that are best on average, for every token."""


def fit_router(data: RouterData, top_k: int) -> Fit:
    """Regress which experts should go last on the layer's input, by ridge; judge on held-out prompts.

    Every fourth prompt judges ridge and spread of the logits: of those that lose next to least, the
    largest spread. With these the router is fitted once more on all prompts. (Logarithms of what an
    expert contributes, or gradient descent on the error itself, lost more on SmolLM2-135M.)
    """
    held_T = data.prompts_T % HELD_OUT == HELD_OUT - 1
    if bool(held_T.all()) or not bool(held_T.any()):
        fitted = judged = data
    else:
        fitted, judged = data.take(~held_T), data.take(held_T)
    errors = {
        (ridge, scale): lost(scale * (judged.inputs_TD @ weight_DE), judged.gram_TEE, top_k)
        for ridge, weight_DE in zip(RIDGES, _ridge(fitted, RIDGES), strict=True)
        for scale in SCALES
    }
    bound = TOLERANCE * min(errors.values())
    ridge, scale = max(
        (key for key in errors if errors[key] <= bound), key=lambda key: (key[1], -errors[key])
    )
    ranks_TE = best_order(judged.gram_TEE)
    common_TE = best_order(data.gram_TEE.mean(0, keepdim=True)).expand(len(ranks_TE), -1)
    return Fit(
        weight_ED=(scale * _ridge(data, (ridge,))[0]).T.contiguous(),
        error=errors[ridge, scale],
        best_error=_share((ranks_TE < top_k).double(), judged.gram_TEE),
        blind_error=_share((common_TE < top_k).double(), judged.gram_TEE),
    )


def best_order(gram_TEE: torch.Tensor) -> torch.Tensor:
    """Rank the experts of each token, `[T, E]`, 0 for the one to keep longest.

    Backwards: again and again the expert goes whose leaving adds least to the error, of equal ones the
    higher index.
    """
    tokens, number, _ = gram_TEE.shape
    ranks_TE = torch.full((tokens, number), -1, dtype=torch.long)
    gone_TE = torch.zeros((tokens, number), dtype=torch.bool)
    own_TE = gram_TEE.diagonal(dim1=-2, dim2=-1)
    cross_TE = torch.zeros_like(own_TE)
    rows_T = torch.arange(tokens)
    for rank in range(number - 1, -1, -1):
        added_TE = (own_TE + 2 * cross_TE).masked_fill(gone_TE, torch.inf).flip(-1)
        leaving_T = number - 1 - added_TE.argmin(-1)
        ranks_TE[rows_T, leaving_T] = rank
        gone_TE[rows_T, leaving_T] = True
        cross_TE = cross_TE + gram_TEE[rows_T, leaving_T]
    return ranks_TE


def lost(logits_TE: torch.Tensor, gram_TEE: torch.Tensor, top_k: int) -> float:
    """Share of the experts' summed output that is lost, squared, when a router says `logits_TE`."""
    shares_TE = logits_TE.softmax(-1)
    top = shares_TE.topk(top_k, dim=-1)
    weights_TE = torch.zeros_like(shares_TE).scatter(-1, top.indices, top.values)
    return _share(weights_TE * logits_TE.shape[-1], gram_TEE)


def _share(weights_TE: torch.Tensor, gram_TEE: torch.Tensor) -> float:
    change_TE = weights_TE.double() - 1
    gram_TEE = gram_TEE.double()
    return float(torch.einsum("te,tef,tf->", change_TE, gram_TEE, change_TE) / gram_TEE.sum())


def _ridge(data: RouterData, ridges: tuple[float, ...]) -> list[torch.Tensor]:
    """Weights `[D, E]` for each ridge, of logits whose spread over the experts is one at most."""
    x_TD = data.inputs_TD.double()
    wanted_TE = -best_order(data.gram_TEE).double()
    wanted_TE = (wanted_TE - wanted_TE.mean()) / wanted_TE.std()
    square_DD, right_DE = x_TD.T @ x_TD, x_TD.T @ wanted_TE
    level = square_DD.diagonal().mean()
    eye_DD = torch.eye(len(square_DD), dtype=square_DD.dtype)
    return [
        torch.linalg.solve(square_DD + ridge * level * eye_DD, right_DE).to(data.inputs_TD.dtype)
        for ridge in ridges
    ]
