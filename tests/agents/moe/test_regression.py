"""Kernel regression against brute force over alpha, and what averaging does to a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.moe.problem import Problem, Selection
from expertmix.agents.moe.regression import (
    KernelRegression,
    Search,
    Space,
    average_neighbours,
    preserve_mass,
    temper,
)
from expertmix.retrieval import InputError

Q, N, C, E = 5, 3, 2, 8


@dataclass
class Distance:
    """Losses that are squared distances to a goal of each neighbour: one minimum on any segment."""

    goal_QNCE: torch.Tensor
    poison_Q: torch.Tensor
    """Losses are this where it is not 0."""
    rough: float = 0.0
    """Height of waves on the losses, so that there are many minima."""

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        gap_QNCE = routing_QCE[:, None] - self.goal_QNCE
        waves_QN = self.rough * (90 * gap_QNCE).sin().flatten(2).sum(-1)
        losses_QN = gap_QNCE.square().flatten(2).sum(-1) + waves_QN
        return torch.where(self.poison_Q[:, None] == 0, losses_QN, self.poison_Q[:, None])

    def take(self, rows_R: torch.Tensor) -> Distance:
        return replace(self, goal_QNCE=self.goal_QNCE[rows_R], poison_Q=self.poison_Q[rows_R])


def make_problem(
    seed: int = 0, *, core: int | None = None, simplex: bool = True, rough: float = 0.0
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        logits = 1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return logits.softmax(-1) if simplex else logits.sigmoid()

    start_QCE, routing_QNCE = draw(Q, C, E), draw(Q, N, C, E)
    kernel_QN = torch.rand(Q, N, generator=generator, dtype=torch.float64) + 0.1
    # Some goals lie near the start, some near the neighbours, some beyond.
    pull_Q111 = torch.linspace(-0.3, 1.3, Q, dtype=torch.float64)[:, None, None, None]
    goal_QNCE = start_QCE[:, None] + pull_Q111 * (routing_QNCE - start_QCE[:, None])
    return Problem(
        start_QCE=start_QCE,
        objective=Distance(goal_QNCE, torch.zeros(Q, dtype=torch.float64), rough),
        kernel_QN=kernel_QN / kernel_QN.sum(-1, keepdim=True),
        neighbour_routing_QNCE=routing_QNCE,
        core_experts=core,
        simplex=simplex,
    )


def at(problem: Problem, solver: KernelRegression, alpha: float) -> torch.Tensor:
    return replace(solver, alpha=alpha).solve(problem).routing_QCE


def test_alpha_zero_is_the_weighted_mean_and_costs_nothing() -> None:
    problem = make_problem()
    found = KernelRegression(alpha=0.0).solve(problem)
    assert problem.neighbour_routing_QNCE is not None
    for question in range(Q):
        mean_CE = sum(
            float(problem.kernel_QN[question, at]) * problem.neighbour_routing_QNCE[question, at]
            for at in range(N)
        )
        torch.testing.assert_close(found.routing_QCE[question], mean_CE)
    assert (found.passes, found.gradients) == (0, 0)
    assert found.curve_QS.isnan().all()
    half_QCE = at(problem, KernelRegression(), 0.5)
    torch.testing.assert_close(half_QCE, (problem.start_QCE + found.routing_QCE) / 2)


def test_the_mean_of_logits_is_the_geometric_mean() -> None:
    problem = make_problem()
    assert problem.neighbour_routing_QNCE is not None
    power_QNCE = problem.neighbour_routing_QNCE ** problem.kernel_QN[:, :, None, None]
    product_QCE = power_QNCE.prod(1)
    expected_QCE = product_QCE / product_QCE.sum(-1, keepdim=True)
    torch.testing.assert_close(average_neighbours(problem, "logit"), expected_QCE)
    found_QCE = at(problem, KernelRegression(space="logit"), 0.0)
    torch.testing.assert_close(found_QCE, expected_QCE)
    between_QCE = (problem.start_QCE * expected_QCE).sqrt()
    between_QCE = between_QCE / between_QCE.sum(-1, keepdim=True)
    torch.testing.assert_close(at(problem, KernelRegression(space="logit"), 0.5), between_QCE)


@pytest.mark.parametrize("space", ["prob", "logit"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_the_grid_is_brute_force(space: Space, top_k: int | None) -> None:
    problem = make_problem(1, core=5)
    solver = KernelRegression(space=space, top_k=top_k)
    found = solver.solve(problem)
    alphas = [step / 10 for step in range(10, -1, -1)]
    values_QS = torch.stack(
        [problem.surrogate_Q(at(problem, solver, alpha)) for alpha in alphas], -1
    )
    torch.testing.assert_close(found.curve_QS, values_QS)
    best_Q = values_QS.argmin(-1)
    assert found.alpha_Q.tolist() == [alphas[best] for best in best_Q.tolist()]
    for question, alpha in enumerate(found.alpha_Q.tolist()):
        torch.testing.assert_close(
            found.routing_QCE[question], at(problem, solver, alpha)[question]
        )
    assert found.passes == 11 * Q * N


@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.001])
def test_the_bracket_finds_a_single_minimum(tolerance: float) -> None:
    problem = make_problem(2)
    solver = KernelRegression(alpha="bracket", tolerance=tolerance)
    found = solver.solve(problem)
    fine = torch.linspace(0, 1, 2001).tolist()
    values_SQ = torch.stack([problem.surrogate_Q(at(problem, solver, alpha)) for alpha in fine])
    expected_Q = torch.tensor([fine[best] for best in values_SQ.argmin(0).tolist()]).double()
    assert (found.alpha_Q - expected_Q).abs().max() <= tolerance + 1e-3
    assert set(expected_Q.tolist()) >= {0.0, 1.0}  # ends are minima as well
    assert ((found.alpha_Q == expected_Q) | (expected_Q > 0) & (expected_Q < 1)).all()
    assert len(set(found.alpha_Q.tolist())) >= 4
    # Two ends, two inner places, and one more for each golden cut down to the tolerance.
    cuts = math.ceil(math.log(tolerance) / math.log((math.sqrt(5) - 1) / 2))
    assert found.curve_QS.shape[1] == 3 + cuts
    assert found.passes == found.curve_QS.shape[1] * Q * N


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    search=st.sampled_from(["grid", "bracket"]),
    space=st.sampled_from(["prob", "logit"]),
    rough=st.sampled_from([0.0, 0.1]),
    core=st.sampled_from([None, 3, 5]),
    simplex=st.booleans(),
    top_k=st.sampled_from([None, 2]),
)
def test_the_search_is_never_worse_than_either_end_and_moves_only_the_core(
    seed: int,
    search: Search,
    space: Space,
    rough: float,
    core: int | None,
    simplex: bool,
    top_k: int | None,
) -> None:
    problem = make_problem(seed, core=core, rough=rough, simplex=simplex)
    solver = KernelRegression(alpha=search, space=space, top_k=top_k)
    found = solver.solve(problem)
    value_Q = problem.surrogate_Q(found.routing_QCE)
    assert (value_Q <= problem.surrogate_Q(problem.start_QCE) + 1e-12).all()
    assert (value_Q <= problem.surrogate_Q(at(problem, solver, 0.0)) + 1e-12).all()
    torch.testing.assert_close(value_Q, found.curve_QS.min(-1).values)
    core_QCE = problem.core_QCE()
    for routing_QCE in (found.routing_QCE, at(problem, solver, 0.0)):
        assert (routing_QCE > 0).all()
        if simplex:
            torch.testing.assert_close(routing_QCE.sum(-1), torch.ones(Q, C).double())
        ratio_QCE = routing_QCE / problem.start_QCE
        if core is not None:
            spread_QC = (
                ratio_QCE.masked_fill(core_QCE, 0).max(-1).values
                - ratio_QCE.masked_fill(core_QCE, math.inf).min(-1).values
            )
            assert spread_QC.abs().max() < 1e-12
        if top_k is not None:
            assert_mass_kept(routing_QCE, problem, top_k)
    rows = torch.tensor([3, 1])
    fewer = solver.solve(problem.take(rows))
    torch.testing.assert_close(fewer.routing_QCE, found.routing_QCE[rows])
    torch.testing.assert_close(fewer.alpha_Q, found.alpha_Q[rows])


def assert_mass_kept(routing_QCE: torch.Tensor, problem: Problem, top_k: int) -> None:
    """Among the experts that may be on at all."""
    inside_QCE = routing_QCE * problem.core_QCE()
    expected_QC = problem.start_QCE.topk(top_k, dim=-1).values.sum(-1)
    torch.testing.assert_close(inside_QCE.topk(top_k, dim=-1).values.sum(-1), expected_QC)


def test_averaging_flattens_and_mass_can_be_kept() -> None:
    problem = make_problem(4)
    mean_QCE = average_neighbours(problem)
    start_mass_QC = problem.start_QCE.topk(2, dim=-1).values.sum(-1)
    assert mean_QCE.topk(2, dim=-1).values.sum(-1).mean() < start_mass_QC.mean() - 0.05
    kept_QCE = preserve_mass(mean_QCE, problem.start_QCE, problem.core_QCE(), 2)
    assert_mass_kept(kept_QCE, problem, 2)
    assert kept_QCE.argsort(-1).equal(mean_QCE.argsort(-1))
    with pytest.raises(InputError, match="a core has 3"):
        KernelRegression(alpha=0, top_k=4).solve(replace(problem, core_experts=3))


def test_a_temperature_divides_logits() -> None:
    problem = make_problem(5)
    everyone = problem.core_QCE()
    found_QCE = temper(problem.start_QCE, 2.5, problem.start_QCE, everyone)
    torch.testing.assert_close(found_QCE, (problem.start_QCE.log() / 2.5).softmax(-1))


def test_of_equal_places_the_one_nearest_to_the_start_wins() -> None:
    @dataclass
    class Flat:
        def __call__(
            self,
            routing_QCE: torch.Tensor,
            *,
            core_QCE: torch.Tensor | None = None,
            selection: Selection = "hard",
        ) -> torch.Tensor:
            return torch.ones(len(routing_QCE), N).double()

        def take(self, rows_R: torch.Tensor) -> Flat:
            return self

    problem = replace(make_problem(), objective=Flat())
    for search in ("grid", "bracket"):
        found = KernelRegression(alpha=search).solve(problem)
        assert found.alpha_Q.tolist() == [1.0] * Q
        assert found.routing_QCE.equal(problem.start_QCE)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_question_whose_losses_are_no_numbers_keeps_its_routing(poison: float) -> None:
    problem = make_problem(6)
    clean = KernelRegression().solve(problem)
    assert isinstance(problem.objective, Distance)
    poison_Q = torch.zeros(Q).double()
    poison_Q[1] = poison
    poisoned = replace(problem, objective=replace(problem.objective, poison_Q=poison_Q))
    for search in ("grid", "bracket"):
        found = KernelRegression(alpha=search).solve(poisoned)
        assert found.routing_QCE[1].equal(problem.start_QCE[1])
        assert found.curve_QS[1].isnan().all()
    found = KernelRegression().solve(poisoned)
    rows = [0, 2, 3, 4]
    assert found.routing_QCE[rows].equal(clean.routing_QCE[rows])


def test_what_stands_for_a_missing_neighbour_does_not_matter() -> None:
    problem = make_problem(7)
    assert problem.neighbour_routing_QNCE is not None
    kernel_QN = problem.kernel_QN.clone()
    kernel_QN[0] = torch.tensor([0.5, 0.5, 0])
    kernel_QN[3] = 0
    routing_QNCE = problem.neighbour_routing_QNCE.clone()
    routing_QNCE[0, 2] = math.nan
    routing_QNCE[3] = math.nan
    problem = replace(problem, kernel_QN=kernel_QN, neighbour_routing_QNCE=routing_QNCE)
    for alpha in (0.0, "grid", "bracket"):
        for space in ("prob", "logit"):
            found = KernelRegression(alpha=alpha, space=space).solve(problem)
            assert found.routing_QCE.isfinite().all()
            assert found.routing_QCE[3].equal(problem.start_QCE[3])
            assert found.alpha_Q[3] == 1
            assert found.curve_QS[3].isnan().all()
    torch.testing.assert_close(average_neighbours(problem)[0], routing_QNCE[0, :2].mean(0))
    nobody = replace(problem, kernel_QN=torch.zeros_like(kernel_QN))
    assert KernelRegression().solve(nobody).passes == 0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="'grid' or 'bracket'"):
        KernelRegression(alpha=1.5)
    with pytest.raises(InputError, match="tolerance"):
        KernelRegression(tolerance=0)
    with pytest.raises(InputError, match="neighbour_routing_QNCE"):
        KernelRegression().solve(replace(make_problem(), neighbour_routing_QNCE=None))
