"""Controls go as far as they should, stay on the simplex, and repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.moe.controls import RandomDirection, RouterTemperature
from expertmix.agents.moe.problem import Problem, Selection, Solution, move_core
from expertmix.retrieval import InputError

Q, C, E = 4, 3, 12
NAMES = ("ada", "bob", "cy", "dee")


@dataclass
class Unasked:
    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        raise AssertionError("controls measure no loss")

    def take(self, rows_R: torch.Tensor) -> Unasked:
        return self


def make_problem(seed: int = 0, *, core: int | None = 6, simplex: bool = True) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    logits_QCE = 2 * torch.randn(Q, C, E, generator=generator, dtype=torch.float64)
    return Problem(
        start_QCE=logits_QCE.softmax(-1) if simplex else logits_QCE.sigmoid(),
        objective=Unasked(),
        kernel_QN=torch.ones(Q, 1),
        core_experts=core,
        simplex=simplex,
    )


def make_solution(problem: Problem, size: float, seed: int = 9) -> Solution:
    generator = torch.Generator().manual_seed(seed)
    noise_QCE = torch.randn(problem.start_QCE.shape, generator=generator, dtype=torch.float64)
    moved_QCE = problem.start_QCE * (size * noise_QCE).exp()
    routing_QCE = move_core(
        moved_QCE, problem.start_QCE, problem.core_QCE(), simplex=problem.simplex
    )
    return Solution(routing_QCE=routing_QCE, curve_QS=torch.ones(Q, 1), passes=0)


def take(solution: Solution, rows: torch.Tensor) -> Solution:
    return replace(
        solution, routing_QCE=solution.routing_QCE[rows], curve_QS=solution.curve_QS[rows]
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.01, 0.3, 1.5]),
    simplex=st.booleans(),
    core=st.sampled_from([None, 6]),
)
def test_a_random_direction_goes_as_far_as_the_solution(
    seed: int, size: float, simplex: bool, core: int | None
) -> None:
    problem = make_problem(seed, simplex=simplex, core=core)
    like = make_solution(problem, size)
    found = RandomDirection(like=like, seed=seed).solve(problem)
    start_QCE, core_QCE = problem.start_QCE, problem.core_QCE()
    change_QCE = found.routing_QCE - start_QCE
    assert (change_QCE[~core_QCE] == 0).all()
    wanted_QCE = torch.where(core_QCE, like.routing_QCE - start_QCE, 0.0)
    torch.testing.assert_close(change_QCE.norm(dim=-1), wanted_QCE.norm(dim=-1), rtol=1e-5, atol=0)
    assert (found.routing_QCE > 0).all()
    if simplex:
        assert change_QCE.sum(-1).abs().max() < 1e-12
    assert (found.passes, found.gradients) == (0, 0)


def test_a_short_step_is_a_straight_one() -> None:
    problem = make_problem(core=None)
    near, far = (
        RandomDirection(like=make_solution(problem, size), seed=1, names=NAMES).solve(problem)
        for size in (1e-6, 1e-5)
    )
    directions = [
        torch.nn.functional.normalize(found.routing_QCE - problem.start_QCE, dim=-1)
        for found in (near, far)
    ]
    torch.testing.assert_close(*directions, atol=1e-5, rtol=0)


def test_directions_are_spread_evenly() -> None:
    problem = make_problem(core=None)
    like = make_solution(problem, 1e-4)
    changes = torch.stack(
        [
            RandomDirection(like=like, seed=seed).solve(problem).routing_QCE - problem.start_QCE
            for seed in range(200)
        ]
    )
    units = torch.nn.functional.normalize(changes, dim=-1).flatten(0, 2)
    # For 2400 unit vectors in the 11 dimensions of rows that sum to zero.
    assert units.mean(0).abs().max() < 4 * math.sqrt(1 / E / len(units))
    expected = (torch.eye(E) - 1 / E).double() / (E - 1)
    assert ((units.T @ units) / len(units) - expected).abs().max() < 0.015


@pytest.mark.parametrize("names", [NAMES, None])
def test_a_seed_repeats_and_company_does_not_matter(names: tuple[str, ...] | None) -> None:
    problem = make_problem(2)
    like = make_solution(problem, 0.5)
    found_QCE = RandomDirection(like=like, seed=3, names=names).solve(problem).routing_QCE
    again_QCE = RandomDirection(like=like, seed=3, names=names).solve(problem).routing_QCE
    assert found_QCE.equal(again_QCE)
    other_QCE = RandomDirection(like=like, seed=4, names=names).solve(problem).routing_QCE
    assert not found_QCE.isclose(other_QCE).flatten(1).all(-1).any()
    rows = torch.tensor([3, 1])
    some = None if names is None else ("dee", "bob")
    fewer = RandomDirection(like=take(like, rows), seed=3, names=some).solve(problem.take(rows))
    torch.testing.assert_close(fewer.routing_QCE, found_QCE[rows])
    nobody = torch.tensor([], dtype=torch.long)
    empty = RandomDirection(like=take(like, nobody), seed=3).solve(problem.take(nobody))
    assert empty.routing_QCE.shape == (0, C, E)


def test_a_name_alone_decides_the_direction() -> None:
    one = make_problem(2).take(torch.tensor([0, 0]))
    like = take(make_solution(make_problem(2), 0.5), torch.tensor([0, 0]))
    named = RandomDirection(like=like, seed=3, names=("ada", "bob")).solve(one).routing_QCE
    assert not named[0].isclose(named[1]).all()
    swapped = RandomDirection(like=like, seed=3, names=("bob", "ada")).solve(one).routing_QCE
    assert swapped.equal(named.flip(0))
    nameless = RandomDirection(like=like, seed=3).solve(one).routing_QCE
    assert nameless[0].equal(nameless[1])


def test_where_nothing_changed_nothing_does() -> None:
    problem = make_problem()
    same = Solution(routing_QCE=problem.start_QCE.clone(), curve_QS=torch.ones(Q, 1), passes=0)
    found = RandomDirection(like=same, seed=0).solve(problem)
    assert found.routing_QCE.equal(problem.start_QCE)


def test_a_temperature_is_a_power_over_the_core() -> None:
    everyone = make_problem(core=None)
    found_QCE = RouterTemperature(temperature=2.0).solve(everyone).routing_QCE
    root_QCE = everyone.start_QCE.sqrt()
    torch.testing.assert_close(found_QCE, root_QCE / root_QCE.sum(-1, keepdim=True))
    problem = make_problem(core=6)
    core_QCE = problem.core_QCE()
    found_QCE = RouterTemperature(temperature=0.5).solve(problem).routing_QCE
    assert found_QCE[~core_QCE].equal(problem.start_QCE[~core_QCE])
    torch.testing.assert_close(found_QCE.sum(-1), torch.ones(Q, C).double())
    square_QCE = problem.start_QCE.square() * core_QCE
    shares_QCE = found_QCE * core_QCE
    torch.testing.assert_close(
        shares_QCE / shares_QCE.sum(-1, keepdim=True),
        square_QCE / square_QCE.sum(-1, keepdim=True),
    )
    sigmoid = make_problem(simplex=False, core=None)
    torch.testing.assert_close(
        RouterTemperature(temperature=3.0).solve(sigmoid).routing_QCE,
        (sigmoid.start_QCE.logit() / 3).sigmoid(),
    )


def test_bad_settings_are_refused() -> None:
    problem = make_problem()
    like = make_solution(problem, 0.1)
    with pytest.raises(InputError, match="must be positive"):
        RouterTemperature(temperature=0)
    with pytest.raises(InputError, match="a solution of the same problem"):
        RandomDirection(like=like, seed=0).solve(problem.take(torch.tensor([0])))
    with pytest.raises(InputError, match="1 names for 4"):
        RandomDirection(like=like, seed=0, names=["ada"]).solve(problem)
