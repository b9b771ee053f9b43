from __future__ import annotations

import math
from typing import Any, Literal

import pytest

pytest.importorskip("torch", reason="needs torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.moe.routing import RoutingRule

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def rules(draw: st.DrawFn) -> RoutingRule:
    groups = draw(st.sampled_from([1, 2, 4]))
    size = draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    return RoutingRule(
        experts=groups * size,
        top_k=draw(st.integers(1, kept * size)),
        scoring=draw(st.sampled_from(["softmax", "sigmoid"])),
        renormalises=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
        groups=groups,
        kept_groups=kept,
        group_score=draw(st.sampled_from(["max", "top2"])),
    )


seeds = st.integers(0, 10_000)


def draw_logits(rule: RoutingRule, seed: int, tokens: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(tokens, rule.experts, generator=generator, dtype=torch.float64)


def mix_slowly(
    rule: RoutingRule, logits: list[float], bias: list[float], core: list[bool]
) -> dict[int, float]:
    """One token's experts and weights, from the definitions."""
    if rule.scoring == "softmax":
        total = sum(math.exp(value) for value in logits)
        scores = [math.exp(value) / total for value in logits]
    else:
        scores = [1 / (1 + math.exp(-value)) for value in logits]
    ranked = [score + added for score, added in zip(scores, bias, strict=True)]
    size = rule.experts // rule.groups
    groups = [range(start, start + size) for start in range(0, rule.experts, size)]

    def strength(group: range) -> float:
        return sum(
            sorted((ranked[e] for e in group), reverse=True)[: 1 + (rule.group_score == "top2")]
        )

    kept = sorted(groups, key=strength, reverse=True)[: rule.kept_groups]
    allowed = [e for group in kept for e in group if core[e]]
    chosen = sorted(allowed, key=lambda e: ranked[e], reverse=True)[: rule.top_k]
    total = sum(scores[e] for e in chosen) if rule.renormalises else 1.0
    return {e: scores[e] / total * rule.scale for e in chosen}


def spread(mixture: Any, experts: int) -> torch.Tensor:
    zeros_NE = mixture.weights_NW.new_zeros(len(mixture.weights_NW), experts)
    return zeros_NE.scatter_add(-1, mixture.indices_NW, mixture.weights_NW)


@given(rules(), seeds, st.booleans(), st.booleans(), st.sampled_from(["hard", "straight_through"]))
@SETTINGS
def test_every_rule_is_its_definition(
    rule: RoutingRule,
    seed: int,
    biased: bool,
    cored: bool,
    selection: Literal["hard", "straight_through"],
) -> None:
    logits_NE = draw_logits(rule, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    bias_E = torch.randn(rule.experts, generator=generator, dtype=torch.float64) * biased
    core_NE = torch.rand(logits_NE.shape, generator=generator) < 0.5
    core_NE = core_NE.scatter(-1, logits_NE.argmax(-1, keepdim=True), True) | (not cored)
    mixture = rule.mix(
        rule.score(logits_NE),
        bias_E=bias_E if biased else None,
        core_NE=core_NE if cored else None,
        selection=selection,
    )
    ours_NE = spread(mixture, rule.experts)
    for token in range(len(logits_NE)):
        expected = mix_slowly(
            rule, logits_NE[token].tolist(), bias_E.tolist(), core_NE[token].tolist()
        )
        if rule.renormalises and not expected:
            continue  # no core expert is in a group that counts
        expected_E = torch.tensor([expected.get(e, 0.0) for e in range(rule.experts)]).double()
        torch.testing.assert_close(ours_NE[token], expected_E)


@given(rules(), seeds)
@SETTINGS
def test_the_strongest_expert_comes_first(rule: RoutingRule, seed: int) -> None:
    scores_NE = rule.score(draw_logits(rule, seed))
    chosen_NK = rule.choose(scores_NE)
    strength_NK = scores_NE.gather(-1, chosen_NK)
    assert torch.equal(strength_NK, strength_NK.sort(-1, descending=True).values)


@given(rules(), seeds)
@SETTINGS
def test_permuting_the_experts_of_a_router_without_groups_permutes_its_mixture(
    rule: RoutingRule, seed: int
) -> None:
    rule = RoutingRule(experts=rule.experts, top_k=rule.top_k, renormalises=rule.renormalises)
    scores_NE = rule.score(draw_logits(rule, seed))
    order_E = torch.randperm(rule.experts, generator=torch.Generator().manual_seed(seed))
    plain_NE = spread(rule.mix(scores_NE), rule.experts)
    permuted_NE = spread(rule.mix(scores_NE[:, order_E]), rule.experts)
    torch.testing.assert_close(permuted_NE, plain_NE[:, order_E])


@given(rules(), seeds, st.booleans())
@SETTINGS
def test_straight_through_weights_are_the_hard_ones_bit_for_bit(
    rule: RoutingRule, seed: int, cored: bool
) -> None:
    scores_NE = rule.score(draw_logits(rule, seed))
    core_NE = None
    if cored:
        number = max(2, rule.experts // 2)
        core_NE = torch.zeros_like(scores_NE, dtype=torch.bool)
        core_NE = core_NE.scatter(-1, scores_NE.topk(number, dim=-1).indices, True)
    hard = rule.mix(scores_NE, core_NE=core_NE)
    soft = rule.mix(scores_NE, core_NE=core_NE, selection="straight_through")
    assert torch.equal(spread(hard, rule.experts), spread(soft, rule.experts))
    assert soft.indices_NW.shape[-1] == (
        rule.experts if core_NE is None else int(core_NE.sum(-1).max())
    )


@pytest.mark.parametrize("renormalises", [False, True])
def test_an_expert_that_is_off_gets_the_gradient_that_it_would_have_if_it_were_on(
    renormalises: bool,
) -> None:
    rule = RoutingRule(experts=6, top_k=2, renormalises=renormalises, scale=1.5)
    scores_NE = rule.score(draw_logits(rule, 3, 1)).requires_grad_()
    slopes_E = torch.arange(1.0, 7.0, dtype=torch.float64)  # ⟨∂loss/∂y, E(x)⟩ of each expert
    core_NE = torch.ones(1, 6, dtype=torch.bool)
    core_NE[0, scores_NE.argmin()] = False
    mixture = rule.mix(scores_NE, core_NE=core_NE, selection="straight_through")
    loss = (spread(mixture, 6) * slopes_E).sum()
    (gradient_NE,) = torch.autograd.grad(loss, scores_NE)
    chosen_NK = rule.choose(scores_NE, core_NE=core_NE)
    chosen = chosen_NK[0].tolist()

    def value(extra: int, amount: float) -> float:
        """The loss if one more expert were on with a little of its score (all that it has is too much)."""
        weights_E = torch.zeros(6, dtype=torch.float64)
        weights_E[chosen] = scores_NE.detach()[0, chosen]
        weights_E[extra] += amount
        if renormalises:
            weights_E = weights_E / weights_E.sum()
        return float((weights_E * slopes_E).sum() * rule.scale)

    for expert in set(range(6)) - set(chosen):
        step = 1e-6
        slope = (value(expert, step) - value(expert, -step)) / (2 * step)
        expected = slope if core_NE[0, expert] else 0.0
        assert float(gradient_NE[0, expert]) == pytest.approx(expected, abs=1e-6)
    hard = rule.mix(scores_NE, core_NE=core_NE)
    (hard_NE,) = torch.autograd.grad((spread(hard, 6) * slopes_E).sum(), scores_NE)
    # What is on gets the gradient that it has without any of this.
    torch.testing.assert_close(gradient_NE[0, chosen], hard_NE[0, chosen])
    assert sorted(hard_NE[0].nonzero().squeeze(-1).tolist()) == sorted(chosen_NK[0].tolist())


@given(rules(), seeds)
@SETTINGS
def test_hard_gradients_are_finite_differences(rule: RoutingRule, seed: int) -> None:
    scores_NE = rule.score(draw_logits(rule, seed, 2)).requires_grad_()
    slopes_NE = draw_logits(rule, seed + 1, 2)

    def loss(scores_NE: torch.Tensor) -> torch.Tensor:
        return (spread(rule.mix(scores_NE), rule.experts) * slopes_NE).sum()

    (gradient_NE,) = torch.autograd.grad(loss(scores_NE), scores_NE)
    for expert in range(rule.experts):
        step_NE = torch.zeros_like(scores_NE)
        step_NE[1, expert] = 1e-7
        with torch.no_grad():
            rise = loss(scores_NE + step_NE) - loss(scores_NE - step_NE)
        assert float(gradient_NE[1, expert]) == pytest.approx(
            float(rise) / 2e-7, abs=1e-4, rel=1e-4
        )


@given(rules(), seeds, st.sampled_from(["hard", "straight_through"]))
@SETTINGS
def test_weights_keep_a_given_sum(
    rule: RoutingRule, seed: int, selection: Literal["hard", "straight_through"]
) -> None:
    scores_NE = rule.score(draw_logits(rule, seed))
    mass_N1 = torch.rand(5, 1, dtype=torch.float64) + 0.1
    kept = rule.mix(scores_NE, selection=selection, mass_N1=mass_N1)
    torch.testing.assert_close(kept.weights_NW.sum(-1, keepdim=True), mass_N1)
    free = rule.mix(scores_NE, selection=selection)
    shares_NW = free.weights_NW / free.weights_NW.sum(-1, keepdim=True)
    torch.testing.assert_close(kept.weights_NW, shares_NW * mass_N1)


def test_a_core_smaller_than_the_top_k_leaves_the_others_off() -> None:
    scores_NE = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    core_NE = torch.tensor([[False, True, False, False]])
    for renormalises, weight in ((False, 0.3), (True, 1.0)):
        rule = RoutingRule(experts=4, top_k=2, renormalises=renormalises)
        for selection in ("hard", "straight_through"):
            mixture = rule.mix(scores_NE, core_NE=core_NE, selection=selection)
            expected = torch.tensor([[0, weight, 0, 0]])
            torch.testing.assert_close(spread(mixture, 4), expected)


def test_a_dropped_group_stays_off_even_where_the_core_lies_in_it() -> None:
    rule = RoutingRule(experts=4, top_k=2, groups=2, kept_groups=1)
    scores_NE = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
    core_NE = torch.tensor([[True, False, True, True]])
    for selection in ("hard", "straight_through"):
        mixture = rule.mix(scores_NE, core_NE=core_NE, selection=selection)
        torch.testing.assert_close(spread(mixture, 4), torch.tensor([[0.4, 0, 0, 0]]))


def test_a_bias_decides_the_choice_but_not_the_weights() -> None:
    rule = RoutingRule(experts=3, top_k=1, scoring="sigmoid")
    scores_NE = rule.score(torch.tensor([[2.0, 0.0, -2.0]]))
    mixture = rule.mix(scores_NE, bias_E=torch.tensor([0.0, 0.0, 5.0]))
    assert mixture.indices_NW.tolist() == [[2]]
    torch.testing.assert_close(mixture.weights_NW[0], scores_NE[0, 2:])


def test_softmax_over_the_chosen_is_a_renormalised_softmax_over_all() -> None:
    rule = RoutingRule(experts=7, top_k=3, renormalises=True)
    logits_NE = draw_logits(rule, 0)
    mixture = rule.mix(rule.score(logits_NE))
    expected_NK = logits_NE.topk(3, dim=-1).values.softmax(-1)
    torch.testing.assert_close(mixture.weights_NW, expected_NK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_scores_are_never_below_float32(
    dtype: torch.dtype, scoring: Literal["softmax", "sigmoid"]
) -> None:
    rule = RoutingRule(experts=4, top_k=2, scoring=scoring)
    logits_NE = torch.tensor([[1.0, -3.0, 0.5, 2.25]], dtype=dtype)
    scores_NE = rule.score(logits_NE)
    assert scores_NE.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact_NE = RoutingRule(experts=4, top_k=2, scoring=scoring).score(logits_NE.double())
    torch.testing.assert_close(scores_NE.double(), exact_NE, rtol=1e-6, atol=1e-7)
