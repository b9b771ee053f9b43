"""Mean shift against a loop over numbers, and where it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.moe.modes import Metric, ModeFinding
from expertmix.agents.moe.problem import Problem, Selection
from expertmix.retrieval import InputError

Q, N, C, E = 4, 6, 2, 7


@dataclass
class Unasked:
    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        raise AssertionError("mode finding measures no loss")

    def take(self, rows_R: torch.Tensor) -> Unasked:
        return self


def make_problem(seed: int = 0, core: int | None = None) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    logits_QNCE = torch.randn(Q, N + 1, C, E, generator=generator, dtype=torch.float64)
    routing_QNCE = logits_QNCE.softmax(-1)
    return Problem(
        start_QCE=routing_QNCE[:, 0],
        objective=Unasked(),
        kernel_QN=torch.full((Q, N), 1 / N, dtype=torch.float64),
        neighbour_routing_QNCE=routing_QNCE[:, 1:],
        core_experts=core,
    )


@pytest.mark.parametrize("metric", ["whole", "layer"])
@pytest.mark.parametrize("nearest", [None, 3])
def test_it_is_the_repeated_formula(metric: Metric, nearest: int | None) -> None:
    problem = make_problem()
    assert problem.neighbour_routing_QNCE is not None
    found = ModeFinding(alpha=0.3, iterations=4, metric=metric, nearest=nearest).solve(problem)
    for question in range(Q):
        start = problem.start_QCE[question].numpy()
        points = problem.neighbour_routing_QNCE[question].numpy()
        parts = [slice(0, C)] if metric == "whole" else [slice(at, at + 1) for at in range(C)]
        for part in parts:
            here = start[part]
            width = np.median([np.linalg.norm(point[part] - here) for point in points])
            for _ in range(4):
                far = np.array([np.linalg.norm(point[part] - here) for point in points])
                near = np.argsort(far)[:nearest]
                weights = np.exp(-(far[near] ** 2) / (2 * width**2))
                mean = np.tensordot(weights / weights.sum(), points[near][:, part], 1)
                here = 0.3 * here + 0.7 * mean
            np.testing.assert_allclose(found.routing_QCE[question, part].numpy(), here)
    assert found.passes == 0
    assert found.curve_QS.isnan().all()


def test_a_climb_ends_in_the_nearer_of_two_crowds() -> None:
    left, right = torch.tensor([0.8, 0.1, 0.1]).double(), torch.tensor([0.1, 0.1, 0.8]).double()
    near_left = torch.tensor([0.6, 0.15, 0.25]).double()
    problem = Problem(
        start_QCE=near_left[None, None],
        objective=Unasked(),
        kernel_QN=torch.full((1, 4), 0.25),
        neighbour_routing_QNCE=torch.stack([left, right, left, right])[None, :, None],
    )
    found = ModeFinding(bandwidth=0.15, iterations=30).solve(problem)
    torch.testing.assert_close(found.routing_QCE[0, 0], left, atol=1e-6, rtol=0)
    narrow = ModeFinding(bandwidth=1e-4, iterations=60).solve(problem)
    torch.testing.assert_close(narrow.routing_QCE[0, 0], left)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    core=st.sampled_from([None, 3]),
    metric=st.sampled_from(["whole", "layer"]),
    nearest=st.sampled_from([None, 1, 4]),
    top_k=st.sampled_from([None, 2]),
)
def test_rows_stay_on_the_simplex_and_questions_apart(
    seed: int, core: int | None, metric: Metric, nearest: int | None, top_k: int | None
) -> None:
    problem = make_problem(seed, core)
    solver = ModeFinding(metric=metric, nearest=nearest, top_k=top_k)
    routing_QCE = solver.solve(problem).routing_QCE
    torch.testing.assert_close(routing_QCE.sum(-1), torch.ones(Q, C).double())
    assert (routing_QCE > 0).all()
    if core is not None:
        ratio_QCE = (routing_QCE / problem.start_QCE).masked_fill(problem.core_QCE(), 0)
        outside_QCE = ratio_QCE.sort(-1).values[..., core:]
        torch.testing.assert_close(outside_QCE, outside_QCE[..., :1].expand_as(outside_QCE))
    if top_k is not None:
        mass_QC = (routing_QCE * problem.core_QCE()).topk(top_k, dim=-1).values.sum(-1)
        torch.testing.assert_close(mass_QC, problem.start_QCE.topk(top_k, dim=-1).values.sum(-1))
    rows = torch.tensor([2, 0])
    fewer_QCE = solver.solve(problem.take(rows)).routing_QCE
    torch.testing.assert_close(fewer_QCE, routing_QCE[rows])


def test_missing_neighbours_do_not_matter_and_without_any_nothing_moves() -> None:
    problem = make_problem(3)
    assert problem.neighbour_routing_QNCE is not None
    kernel_QN, routing_QNCE = problem.kernel_QN.clone(), problem.neighbour_routing_QNCE.clone()
    kernel_QN[0, 4:], kernel_QN[2] = 0, 0
    routing_QNCE[0, 4:], routing_QNCE[2] = math.nan, math.nan
    problem = replace(problem, kernel_QN=kernel_QN, neighbour_routing_QNCE=routing_QNCE)
    found_QCE = ModeFinding(nearest=5).solve(problem).routing_QCE
    assert found_QCE[2].equal(problem.start_QCE[2])
    fewer = replace(problem, kernel_QN=kernel_QN[:, :4], neighbour_routing_QNCE=routing_QNCE[:, :4])
    torch.testing.assert_close(found_QCE[0], ModeFinding().solve(fewer).routing_QCE[0])
    without = replace(
        problem, kernel_QN=kernel_QN[:, :0], neighbour_routing_QNCE=routing_QNCE[:, :0]
    )
    assert ModeFinding().solve(without).routing_QCE.equal(problem.start_QCE)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="alpha is 2"):
        ModeFinding(alpha=2)
    with pytest.raises(InputError, match="nearest"):
        ModeFinding(nearest=0)
    with pytest.raises(InputError, match="bandwidth"):
        ModeFinding(bandwidth=-1.0)
    with pytest.raises(InputError, match="neighbour_routing_QNCE"):
        ModeFinding().solve(replace(make_problem(), neighbour_routing_QNCE=None))
