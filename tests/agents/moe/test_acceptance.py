"""Gates and acceptance: who is changed, who is not, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.moe.acceptance import Verdict, accept, is_near, is_unsure, judge
from expertmix.agents.moe.problem import Problem, Selection, Solution

Q, N, C, E = 4, 3, 1, 3


@dataclass
class FirstExpert:
    """Losses that fall by the first expert's share, times a slope of each neighbour."""

    slope_QN: torch.Tensor

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        return 2 - self.slope_QN * routing_QCE[:, 0, :1]

    def take(self, rows_R: torch.Tensor) -> FirstExpert:
        return FirstExpert(self.slope_QN[rows_R])


def make_problem(slopes: list[list[float]], kernel: list[list[float]]) -> Problem:
    return Problem(
        start_QCE=torch.tensor([0.5, 0.3, 0.2]).double().expand(len(slopes), C, E).clone(),
        objective=FirstExpert(torch.tensor(slopes).double()),
        kernel_QN=torch.tensor(kernel).double(),
    )


def make_solution(problem: Problem, gains: list[float]) -> Solution:
    moved_QCE = torch.tensor([0.7, 0.2, 0.1]).double().expand_as(problem.start_QCE).clone()
    gain_Q = torch.tensor(gains).double()
    return Solution(
        routing_QCE=moved_QCE,
        curve_QS=torch.stack([torch.ones_like(gain_Q), 1 - gain_Q], -1),
        passes=10,
        gradients=5,
    )


def test_only_what_helps_held_back_neighbours_is_kept() -> None:
    problem = make_problem([[1.0], [-1.0], [0.0], [math.nan]], [[1.0]] * 4)
    solution = make_solution(problem, [0.5] * 4)
    found = accept(problem, solution)
    assert found.accepted_Q.tolist() == [True, False, False, False]
    assert found.routing_QCE[0].equal(solution.routing_QCE[0])
    assert found.routing_QCE[1:].equal(problem.start_QCE[1:])
    assert found.fall_Q[:3].tolist() == pytest.approx([0.2, -0.2, 0.0])
    assert (found.passes, found.gradients) == (10 + 2 * 4, 5)
    assert accept(problem, solution, margin=0.19).accepted_Q[0]
    assert not accept(problem, solution, margin=0.21).accepted_Q.any()


def test_what_gained_nothing_is_not_even_measured() -> None:
    problem = make_problem([[1.0]] * 4, [[1.0], [1.0], [1.0], [0.0]])
    solution = make_solution(problem, [0.5, 0.01, 0.0, 0.5])
    solution.routing_QCE[0] = problem.start_QCE[0]
    found = accept(problem, solution, least_gain=0.005)
    assert found.gained_Q.tolist() == [False, True, False, True]
    assert found.accepted_Q.tolist() == [False, True, False, False]
    assert found.fall_Q.isnan().tolist() == [True, False, True, True]
    assert found.passes == 10 + 2
    unmeasured = replace(solution, curve_QS=torch.full((4, 1), math.nan))
    assert accept(problem, unmeasured).gained_Q.tolist() == [False, True, True, True]
    everyone_back = accept(problem, solution, least_gain=1.0)
    assert everyone_back.routing_QCE.equal(problem.start_QCE)
    assert everyone_back.passes == 10


def test_company_does_not_matter() -> None:
    problem = make_problem([[1.0], [-1.0], [2.0], [0.5]], [[1.0]] * 4)
    solution = make_solution(problem, [0.5, 0.5, 0.0, 0.5])
    together = accept(problem, solution)
    for at in range(4):
        row = torch.tensor([at])
        alone = replace(
            solution, routing_QCE=solution.routing_QCE[row], curve_QS=solution.curve_QS[row]
        )
        found = accept(problem.take(row), alone)
        assert found.accepted_Q.equal(together.accepted_Q[row])
        assert found.routing_QCE.equal(together.routing_QCE[row])


def test_the_gate_is_the_margin_between_the_two_best_options() -> None:
    shares = torch.tensor([[0.5, 0.4, 0.1], [0.7, 0.1, 0.2], [1.0, 0.0, 0.0]]).double()
    assert is_unsure(shares.log(), 0.3).tolist() == [True, False, False]
    assert is_unsure(shares.log(), 0.6).tolist() == [True, True, False]
    assert is_unsure(torch.full((1, 3), math.nan), 0.3).tolist() == [True]
    assert is_unsure(torch.zeros(2, 1), 0.3).tolist() == [False, False]
    assert is_unsure(torch.zeros(1, 4), 0.0).tolist() == [False]  # shut: not even a tie
    assert is_unsure(torch.zeros(1, 4), 1e-9).tolist() == [True]


def test_near_is_what_reaches_the_floor_and_exists() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.4, 0.3], [math.nan, 0.6]])
    assert is_near(similarity, 0.5).tolist() == [True, False, True]
    present = torch.tensor([[False, True], [True, True], [True, True]])
    assert is_near(similarity, 0.5, present).tolist() == [False, False, True]


@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=8))
def test_the_verdict_names_the_first_gate_that_was_closed(
    cases: list[tuple[bool, bool, bool, bool]],
) -> None:
    unsure, near, gained, helped = (list(column) for column in zip(*cases, strict=True))
    slopes = [[1.0 if yes else -1.0] for yes in helped]
    problem = make_problem(slopes, [[1.0]] * len(cases))
    solution = make_solution(problem, [0.5 if yes else 0.0 for yes in gained])
    unsure_Q, near_Q = torch.tensor(unsure), torch.tensor(near)
    verdicts = judge(unsure_Q=unsure_Q, near_Q=near_Q, accepted=accept(problem, solution))
    for case, verdict in zip(cases, verdicts, strict=True):
        if all(case):
            assert verdict is Verdict.CHANGED
        else:
            closed = case.index(False)
            assert verdict is list(Verdict)[closed]
    trusting = judge(unsure_Q=unsure_Q, near_Q=near_Q)
    assert [verdict is Verdict.CHANGED for verdict in trusting] == [
        a and b for a, b in zip(unsure, near, strict=True)
    ]


def test_verdicts_read_as_sentences() -> None:
    assert f"{Verdict.CONFIDENT}" == "kept: confident"
    assert {str(verdict) for verdict in Verdict} >= {
        "kept: no near neighbours",
        "kept: held-back neighbour not helped",
        "changed",
    }
