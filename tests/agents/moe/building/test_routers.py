from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch", reason="needs torch")

import torch

from expertmix.agents.moe.building.routers import (
    RouterData,
    best_order,
    fit_router,
    lost,
)


def outputs(tokens: int, experts: int, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, experts, width, generator=generator, dtype=torch.float64)


def gram(outputs_TED: torch.Tensor) -> torch.Tensor:
    return outputs_TED @ outputs_TED.transpose(1, 2)


def test_what_is_lost_is_the_squared_error_of_the_layers_output() -> None:
    outputs_TED = outputs(5, 4)
    logits_TE = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    shares_TE = logits_TE.softmax(-1)
    on_TE = logits_TE >= logits_TE.topk(2, dim=-1).values[:, -1:]
    mixed_TD = ((4 * shares_TE * on_TE)[:, :, None] * outputs_TED).sum(1)
    whole_TD = outputs_TED.sum(1)
    expected = (mixed_TD - whole_TD).square().sum() / whole_TD.square().sum()
    assert lost(logits_TE, gram(outputs_TED), 2) == pytest.approx(float(expected))


def test_uniform_weights_of_all_experts_lose_nothing() -> None:
    assert lost(torch.zeros(5, 4), gram(outputs(5, 4)), 4) == pytest.approx(0, abs=1e-12)


def test_the_last_expert_to_go_is_the_best_single_one_to_leave_out_first() -> None:
    gram_TEE = gram(outputs(9, 5))
    ranks_TE = best_order(gram_TEE)
    assert torch.equal(ranks_TE.sort(-1).values, torch.arange(5).expand(9, 5))
    # The first to go is the one whose own output is the shortest; the next is judged with it gone.
    first_T = gram_TEE.diagonal(dim1=-2, dim2=-1).argmin(-1)
    assert torch.equal((ranks_TE == 4).long().argmax(-1), first_T)
    for gram_EE, ranks_E in zip(gram_TEE, ranks_TE, strict=True):
        gone = [int((ranks_E == 4).long().argmax())]
        errors = {
            e: float(gram_EE[[*gone, e]][:, [*gone, e]].sum()) for e in range(5) if e not in gone
        }
        assert int((ranks_E == 3).long().argmax()) == min(errors, key=lambda e: errors[e])


def test_equal_experts_go_from_the_back() -> None:
    assert best_order(torch.eye(4)[None]).tolist() == [[0, 1, 2, 3]]


def learnable(tokens: int = 400, width: int = 8, experts: int = 4) -> RouterData:
    """Experts whose strength depends on the input linearly."""
    generator = torch.Generator().manual_seed(3)
    x_TD = torch.randn(tokens, width, generator=generator)
    strength_TE = (2 * x_TD @ torch.randn(width, experts, generator=generator)).exp()
    gram_TEE = torch.diag_embed(strength_TE / strength_TE.mean())
    return RouterData(inputs_TD=x_TD, gram_TEE=gram_TEE, prompts_T=torch.arange(tokens) // 10)


def test_a_fitted_router_is_near_the_best_choice_and_far_from_a_blind_one() -> None:
    fit = fit_router(learnable(), 2)
    assert fit.weight_ED.shape == (4, 8)
    assert fit.best_error <= fit.error < 0.25 * fit.blind_error


def test_fitting_repeats_and_follows_a_permutation_of_the_experts() -> None:
    data = learnable()
    fit = fit_router(data, 2)
    assert torch.equal(fit.weight_ED, fit_router(data, 2).weight_ED)
    order = torch.tensor([2, 0, 3, 1])
    moved = RouterData(
        inputs_TD=data.inputs_TD,
        gram_TEE=data.gram_TEE[:, order][:, :, order],
        prompts_T=data.prompts_T,
    )
    torch.testing.assert_close(fit_router(moved, 2).weight_ED, fit.weight_ED[order])


def test_few_prompts_are_fitted_and_judged_together() -> None:
    data = learnable(tokens=20)
    fit = fit_router(data, 2)
    assert 0 <= fit.error < 1


def test_the_best_choice_is_never_beaten_by_much_of_an_exhaustive_search() -> None:
    gram_TEE = gram(outputs(30, 6))
    ranks_TE = best_order(gram_TEE)
    greedy = best = 0.0
    for gram_EE, ranks_E in zip(gram_TEE, ranks_TE, strict=True):
        off = [e for e in range(6) if ranks_E[e] >= 3]
        greedy += float(gram_EE[off][:, off].sum())
        best += min(
            float(gram_EE[list(s)][:, list(s)].sum()) for s in itertools.combinations(range(6), 3)
        )
    assert best <= greedy < 1.3 * best
