"""The neighbours' losses and the descent on them, on cached states as by running everything anew."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from moe_families import (
    TOKENS_O,
    FullRecompute,
    draw_routing,
    make_model,
    make_prompts,
    strongest,
)

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.descent import Descent, Optimizer, Parametrisation
from expertmix.agents.moe.problem import Objective, Problem, Selection
from expertmix.agents.moe.states import capture
from expertmix.agents.moe.suffix import SuffixEngine
from expertmix.agents.moe.surrogate import NeighbourLosses

LENGTHS = (12, 5, 9, 1, 7, 11)
"""Two questions with three neighbours each."""
GOLD_QN = torch.tensor([[0, 2, 1], [3, 1, 0]])
OPTIONS_QN = torch.tensor([[4, 3, 2], [4, 4, 2]])


def make_objectives(
    family: str, dtype: torch.dtype = torch.float64
) -> tuple[MoeModel, tuple[int, ...], NeighbourLosses, FullRecompute]:
    moe = find_moe(make_model(family, dtype=dtype))
    layers = moe.last(3)
    ids_RT, mask_RT = make_prompts(LENGTHS)
    states = capture(moe, ids_RT, mask_RT, first=layers[0], tokens_O=TOKENS_O)
    engine = SuffixEngine(moe, layers, TOKENS_O)
    whole = FullRecompute(
        moe=moe,
        layers=layers,
        ids_RT=ids_RT,
        mask_RT=mask_RT,
        gold_QN=GOLD_QN,
        options_QN=OPTIONS_QN,
    )
    return moe, layers, NeighbourLosses(engine, states, GOLD_QN, OPTIONS_QN), whole


def evaluate(
    objective: Objective, routing_QCE: torch.Tensor, core: int, selection: Selection
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and their sum's gradient."""
    routing_QCE = routing_QCE.clone().requires_grad_()
    core_QCE = strongest(routing_QCE, core)
    losses_QN = objective(routing_QCE, core_QCE=core_QCE, selection=selection)
    return losses_QN.detach(), torch.autograd.grad(losses_QN.sum(), routing_QCE)[0]


@pytest.mark.parametrize("selection", ["hard", "straight_through"])
@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_losses_are_those_of_whole_passes(family: str, selection: Selection) -> None:
    moe, layers, cached, whole = make_objectives(family)
    routing_QCE = draw_routing(2, len(layers), moe.experts)
    core = moe.experts - 2
    given, given_slope = evaluate(cached, routing_QCE, core, selection)
    wanted, wanted_slope = evaluate(whole, routing_QCE, core, selection)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(given_slope, wanted_slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize("called_before", [False, True])
def test_some_questions_give_what_they_give_among_all(called_before: bool) -> None:
    moe, layers, cached, whole = make_objectives("olmoe")
    routing_QCE = draw_routing(2, len(layers), moe.experts)
    if called_before:
        evaluate(cached, routing_QCE, 9, "hard")
    rows_R = torch.tensor([1])
    given, given_slope = evaluate(cached.take(rows_R), routing_QCE[rows_R], 9, "straight_through")
    wanted, wanted_slope = evaluate(whole, routing_QCE, 9, "straight_through")
    torch.testing.assert_close(given, wanted[rows_R], rtol=0, atol=1e-9)
    torch.testing.assert_close(given_slope, wanted_slope[rows_R], rtol=0, atol=1e-9)


def test_another_core_is_noticed() -> None:
    moe, layers, cached, whole = make_objectives("olmoe")
    routing_QCE = draw_routing(2, len(layers), moe.experts)
    for core in (9, 5, 9):
        given, _ = evaluate(cached, routing_QCE, core, "hard")
        torch.testing.assert_close(
            given, evaluate(whole, routing_QCE, core, "hard")[0], rtol=0, atol=1e-9
        )
    every = cached(routing_QCE)
    torch.testing.assert_close(every, whole(routing_QCE), rtol=0, atol=1e-9)


def test_a_letter_that_is_no_option_takes_no_part() -> None:
    moe, layers, cached, _ = make_objectives("olmoe")
    routing_QCE = draw_routing(2, len(layers), moe.experts)
    losses_QN = cached(routing_QCE)
    # With two options the loss of one and of the other are those of a single number.
    other_QN = GOLD_QN.clone()
    other_QN[0, 2] = 0
    engine, states = cached._engine, cached._read()  # pyright: ignore[reportPrivateUsage]
    other = NeighbourLosses(engine, states, other_QN, OPTIONS_QN)(routing_QCE)
    total = (-losses_QN[0, 2]).exp() + (-other[0, 2]).exp()
    assert float(total) == pytest.approx(1, abs=1e-12)


def test_a_neighbour_that_does_not_exist_changes_nothing() -> None:
    moe, layers, cached, _ = make_objectives("qwen2_moe")
    start_QCE = draw_routing(2, len(layers), moe.experts)
    descent = Descent(steps=3, rate=0.3, tolerance=None)
    kernel_QN = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2]], dtype=torch.float64)
    problem = Problem(start_QCE=start_QCE, objective=cached, kernel_QN=kernel_QN, core_experts=6)
    engine, states = cached._engine, cached._read()  # pyright: ignore[reportPrivateUsage]
    rows_R = torch.tensor([0, 1, 0, 3, 4, 5])  # its place is taken by a copy of another
    gold_QN, options_QN = GOLD_QN.clone(), OPTIONS_QN.clone()
    gold_QN[0, 2], options_QN[0, 2] = gold_QN[0, 0], options_QN[0, 0]
    filled = NeighbourLosses(engine, states.take(rows_R), gold_QN, options_QN)
    other = Problem(start_QCE=start_QCE, objective=filled, kernel_QN=kernel_QN, core_experts=6)
    given, wanted = descent.solve(problem), descent.solve(other)
    torch.testing.assert_close(given.routing_QCE, wanted.routing_QCE, rtol=0, atol=1e-12)
    assert given.passes == wanted.passes == 4 * 5


@pytest.mark.parametrize("selection", ["hard", "straight_through"])
@pytest.mark.parametrize(("optimizer", "parametrisation"), [("sgd", "prob"), ("adam", "logit")])
@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe"])
def test_descent_on_cached_states_takes_the_steps_of_the_naive_one(
    family: str, optimizer: Optimizer, parametrisation: Parametrisation, selection: Selection
) -> None:
    moe, layers, cached, whole = make_objectives(family)
    start_QCE = draw_routing(2, len(layers), moe.experts)
    kernel_QN = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]], dtype=torch.float64)
    for steps in (1, 2, 6):
        descent = Descent(
            steps=steps,
            rate=0.3,
            schedule="constant",
            optimizer=optimizer,
            parametrisation=parametrisation,
            selection=selection,
            best_iterate=False,  # the last place, so that each number of steps is one step more
            tolerance=None,
        )
        ways = [
            descent.solve(
                Problem(start_QCE=start_QCE, objective=way, kernel_QN=kernel_QN, core_experts=6)
            )
            for way in (cached, whole)
        ]
        assert not torch.allclose(ways[0].routing_QCE, start_QCE, atol=1e-4)
        torch.testing.assert_close(ways[0].routing_QCE, ways[1].routing_QCE, rtol=0, atol=1e-9)
        torch.testing.assert_close(ways[0].curve_QS, ways[1].curve_QS, rtol=0, atol=1e-9)
        assert (ways[0].passes, ways[0].gradients) == (6 * (steps + 1), 6 * steps)
