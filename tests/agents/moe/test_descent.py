"""Descent on a small mixture of experts: gradients, optimisers, limits, and who may matter to whom."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.moe.descent import (
    Descent,
    Optimizer,
    Parametrisation,
    differentiate,
    measure_divergence,
)
from expertmix.agents.moe.problem import Problem, Selection, Solution, shift_logits
from expertmix.retrieval import InputError

Q, N, C, E, D, OPTIONS, TOP = 4, 3, 2, 8, 5, 4, 2
CORE = 5


@dataclass
class Mixture:
    """Two layers of experts and a head, each neighbour with an input and a gold answer of its own.

    Un-renormalised top k, as in OLMoE. Nothing of the library is used, and each question is computed
    by itself, so that its numbers are the same to the last bit in any batch.
    """

    inputs_QND: torch.Tensor
    gold_QN: torch.Tensor
    experts_CEDD: torch.Tensor
    head_OD: torch.Tensor
    extra_QCE: torch.Tensor | None = None
    """Added to the weights of experts, whether they are on or not: for finite differences."""
    asked: list[tuple[int, Selection]] = field(default_factory=list[tuple[int, Selection]])

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        self.asked.append((len(routing_QCE), selection))
        core_QCE = torch.ones_like(routing_QCE, dtype=torch.bool) if core_QCE is None else core_QCE
        rows = range(len(routing_QCE))
        return torch.stack(
            [self._lose(at, routing_QCE[at], core_QCE[at], selection) for at in rows]
        )

    def _lose(
        self, at: int, routing_CE: torch.Tensor, core_CE: torch.Tensor, selection: Selection
    ) -> torch.Tensor:
        hidden_ND = self.inputs_QND[at]
        for layer, (scores_E, core_E) in enumerate(zip(routing_CE, core_CE, strict=True)):
            chosen = scores_E.detach().masked_fill(~core_E, -1).topk(TOP).indices
            on_E = torch.zeros(E, dtype=torch.bool).index_fill(0, chosen, True)
            weights_E = scores_E * on_E
            if selection == "straight_through":
                weights_E = weights_E + (scores_E - scores_E.detach()) * (core_E & ~on_E)
            if self.extra_QCE is not None:
                weights_E = weights_E + self.extra_QCE[at, layer]
            outputs_END = torch.tanh(hidden_ND @ self.experts_CEDD[layer])
            hidden_ND = hidden_ND + torch.einsum("e,end->nd", weights_E, outputs_END)
        logits_NO = hidden_ND @ self.head_OD.T
        return torch.nn.functional.cross_entropy(logits_NO, self.gold_QN[at], reduction="none")

    def take(self, rows_R: torch.Tensor) -> Mixture:
        return replace(self, inputs_QND=self.inputs_QND[rows_R], gold_QN=self.gold_QN[rows_R])


@dataclass
class Poisoned:
    """An objective that turns into something else for some questions once their routing has moved."""

    inner: Mixture
    start_QCE: torch.Tensor
    value_Q: torch.Tensor
    """Factor of the loss; NaN and infinity are the poison, which flows into gradients too."""
    from_start: bool = False

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        losses_QN = self.inner(routing_QCE, core_QCE=core_QCE, selection=selection)
        moved_Q = (routing_QCE.detach() - self.start_QCE).abs().flatten(1).sum(-1) > 1e-12
        factor_Q = torch.where(moved_Q | self.from_start, self.value_Q, 1.0)
        return losses_QN * factor_Q[:, None]

    def take(self, rows_R: torch.Tensor) -> Poisoned:
        return replace(
            self,
            inner=self.inner.take(rows_R),
            start_QCE=self.start_QCE[rows_R],
            value_Q=self.value_Q[rows_R],
        )


def make_problem(seed: int = 0, *, core: int | None = CORE, simplex: bool = True) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits_QCE = draw(Q, C, E)
    kernel_QN = draw(Q, N).exp()
    return Problem(
        start_QCE=logits_QCE.softmax(-1) if simplex else logits_QCE.sigmoid(),
        objective=Mixture(
            draw(Q, N, D),
            torch.randint(OPTIONS, (Q, N), generator=generator),
            2 * draw(C, E, D, D),
            2 * draw(OPTIONS, D),
        ),
        kernel_QN=kernel_QN / kernel_QN.sum(-1, keepdim=True),
        core_experts=core,
        simplex=simplex,
    )


def own_mixture(problem: Problem) -> Mixture:
    assert isinstance(problem.objective, Mixture)
    return problem.objective


def assert_same(found: Solution, expected: Solution, rows: list[int] | slice) -> None:
    torch.testing.assert_close(found.routing_QCE, expected.routing_QCE[rows], rtol=0, atol=0)
    torch.testing.assert_close(
        found.curve_QS, expected.curve_QS[rows], rtol=0, atol=0, equal_nan=True
    )


def nudge(problem: Problem, question: int, layer: int, expert: int, by: float) -> torch.Tensor:
    """Each question's surrogate with a little more of one expert, whether it is on or not."""
    extra_QCE = torch.zeros_like(problem.start_QCE)
    extra_QCE[question, layer, expert] = by
    nudged = replace(problem, objective=replace(own_mixture(problem), extra_QCE=extra_QCE))
    return nudged.surrogate_Q(problem.start_QCE)


@pytest.mark.parametrize("selection", ["hard", "straight_through"])
def test_the_gradient_is_the_central_difference(selection: Selection) -> None:
    problem = make_problem()
    _, gradient_QCE = differentiate(problem, problem.start_QCE, lambda place: place, selection)
    core_QCE = problem.core_QCE()
    free_QCE = core_QCE
    if selection == "hard":
        free_QCE = replace(problem, core_experts=TOP).core_QCE()  # the experts that are on
    assert (gradient_QCE != 0).equal(free_QCE)
    for question, layer, expert in free_QCE.nonzero().tolist():
        rise_Q = nudge(problem, question, layer, expert, 1e-5)
        fall_Q = nudge(problem, question, layer, expert, -1e-5)
        slope_Q = (rise_Q - fall_Q) / 2e-5
        assert gradient_QCE[question, layer, expert] == pytest.approx(
            float(slope_Q[question]), abs=1e-8
        )
        assert slope_Q.count_nonzero() <= 1  # nobody else's surrogate


def test_rates_are_the_cosine_of_the_specs() -> None:
    rates = Descent().rates_S()
    assert rates[0] == 1e-2
    assert sum(rates) == pytest.approx(0.05504, abs=1e-5)  # c3po.md §1.3
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-5)
    theirs: list[float] = []
    for _ in rates:
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(theirs)
    assert Descent(schedule="constant", steps=3).rates_S() == [1e-2] * 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("parametrisation", ["prob", "logit"])
@pytest.mark.parametrize("simplex", [True, False])
def test_each_question_walks_as_with_an_optimiser_of_torch(
    optimizer: Optimizer, parametrisation: Parametrisation, simplex: bool
) -> None:
    problem = make_problem(1, simplex=simplex)
    solver = Descent(
        optimizer=optimizer,
        parametrisation=parametrisation,
        best_iterate=False,
        tolerance=None,
        steps=6,
        rate=0.1,
    )
    found = solver.solve(problem)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    for question in range(Q):
        alone = problem.take(torch.tensor([question]))
        core = alone.core_QCE()
        prob = parametrisation == "prob"
        parameter = torch.nn.Parameter(
            alone.start_QCE.clone() if prob else torch.zeros(1, C, E).double()
        )
        stepper = kind([parameter], lr=0.1)

        def routing(alone: Problem = alone, parameter: torch.Tensor = parameter) -> torch.Tensor:
            if parametrisation == "prob":
                return parameter
            return shift_logits(alone.start_QCE, parameter, alone.core_QCE(), simplex=simplex)

        for rate in solver.rates_S():
            stepper.param_groups[0]["lr"] = rate
            stepper.zero_grad()
            alone.surrogate_Q(routing(), "straight_through").sum().backward()
            assert parameter.grad is not None
            parameter.grad[~core] = 0
            stepper.step()
            if prob:
                clamped = torch.where(core, parameter.data.clamp(min=1e-10), parameter.data)
                parameter.data = clamped / clamped.sum(-1, keepdim=True) if simplex else clamped
        torch.testing.assert_close(found.routing_QCE[question], routing().detach()[0])


def test_a_curve_starts_at_the_start_and_the_best_place_comes_back() -> None:
    problem = make_problem(2)
    solver = Descent(optimizer="adam", rate=0.4, schedule="constant", tolerance=None, steps=8)
    found = solver.solve(problem)
    start_Q, end_Q = problem.surrogate_Q(problem.start_QCE), problem.surrogate_Q(found.routing_QCE)
    torch.testing.assert_close(found.curve_QS[:, 0], start_Q)
    torch.testing.assert_close(found.curve_QS.min(-1).values, end_Q)
    assert (end_Q < start_Q).all()
    assert (found.curve_QS[:, -1] > end_Q).any()  # so wide steps do not end at the best place
    last = replace(solver, best_iterate=False).solve(problem)
    torch.testing.assert_close(problem.surrogate_Q(last.routing_QCE), last.curve_QS[:, -1])
    torch.testing.assert_close(last.curve_QS, found.curve_QS)
    assert (found.passes, found.gradients) == (9 * Q * N, 8 * Q * N)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rate=st.floats(1e-3, 3.0),
    optimizer=st.sampled_from(["sgd", "adam"]),
    parametrisation=st.sampled_from(["prob", "logit"]),
    selection=st.sampled_from(["hard", "straight_through"]),
    simplex=st.booleans(),
    core=st.sampled_from([None, TOP, CORE]),
    limit=st.sampled_from([None, 0.01]),
)
def test_what_comes_back_is_a_routing_no_worse_than_the_start(
    seed: int,
    rate: float,
    optimizer: Optimizer,
    parametrisation: Parametrisation,
    selection: Selection,
    simplex: bool,
    core: int | None,
    limit: float | None,
) -> None:
    problem = make_problem(seed, core=core, simplex=simplex)
    solver = Descent(
        steps=4,
        rate=rate,
        optimizer=optimizer,
        parametrisation=parametrisation,
        selection=selection,
        max_divergence=limit,
    )
    found = solver.solve(problem)
    start_QCE, routing_QCE = problem.start_QCE, found.routing_QCE
    assert (routing_QCE > 0).all()
    if simplex:
        torch.testing.assert_close(routing_QCE.sum(-1), torch.ones(Q, C).double())
    # Experts outside the core keep their shares relative to each other.
    ratio_QCE = routing_QCE / start_QCE
    outside_QCE = ~problem.core_QCE()
    highest_QC = ratio_QCE.masked_fill(~outside_QCE, -math.inf).max(-1).values
    lowest_QC = ratio_QCE.masked_fill(~outside_QCE, math.inf).min(-1).values
    if core is not None:
        torch.testing.assert_close(highest_QC, lowest_QC)
        if not simplex:
            assert routing_QCE[outside_QCE].equal(start_QCE[outside_QCE])
    assert (problem.surrogate_Q(routing_QCE) <= problem.surrogate_Q(start_QCE) + 1e-12).all()
    if limit is not None:
        assert (measure_divergence(start_QCE, routing_QCE) <= limit + 1e-9).all()
    rows = torch.tensor([2, 0])
    assert_same(solver.solve(problem.take(rows)), found, [2, 0])


def test_a_question_is_solved_alone_as_in_company() -> None:
    solver = Descent(rate=0.3, optimizer="adam", tolerance=0.05, max_divergence=0.2)
    steps: list[set[int]] = []
    for seed in range(5, 11):
        problem = make_problem(seed)
        together = solver.solve(problem)
        steps.append(set((~together.curve_QS.isnan()).sum(-1).tolist()))
        alone = [solver.solve(problem.take(torch.tensor([at]))) for at in range(Q)]
        for at, solution in enumerate(alone):
            assert_same(solution, together, [at])
        assert together.passes == sum(solution.passes for solution in alone)
        assert together.gradients == sum(solution.gradients for solution in alone)
    assert max(map(len, steps)) > 2  # they do not all stop at the same step


def test_a_question_stops_after_two_idle_steps_and_costs_nothing_more() -> None:
    problem = make_problem(3)
    found = Descent(steps=6, tolerance=1e9).solve(problem)
    measured_QS = ~found.curve_QS.isnan()
    # The start has nothing to be compared with; two falls below the tolerance follow it.
    assert measured_QS.sum(-1).tolist() == [3] * Q
    assert [size for size, _ in own_mixture(problem).asked] == [Q] * 3
    patient = Descent(steps=6, tolerance=1e9, patience=4).solve(problem)
    assert (~patient.curve_QS.isnan()).sum(-1).tolist() == [5] * Q


def test_only_the_unfinished_are_measured_again() -> None:
    problem = make_problem(5)
    found = Descent(rate=0.3, optimizer="adam", tolerance=0.05).solve(problem)
    assert found.passes == int((~found.curve_QS.isnan()).sum()) * N


def test_the_trust_region_is_reached_and_not_left() -> None:
    for parametrisation in ("prob", "logit"):
        problem = make_problem(4)
        free = Descent(
            parametrisation=parametrisation, rate=1.0, tolerance=None, best_iterate=False
        )
        far_Q = measure_divergence(problem.start_QCE, free.solve(problem).routing_QCE)
        assert (far_Q > 0.02).all()
        near = replace(free, max_divergence=0.02).solve(problem)
        near_Q = measure_divergence(problem.start_QCE, near.routing_QCE)
        assert (near_Q <= 0.02 + 1e-12).all()
        assert (near_Q > 0.019).any()


def test_the_divergence_is_kl_for_softmax_scores() -> None:
    start, other = make_problem(0).start_QCE, make_problem(1).start_QCE
    expected = torch.nn.functional.kl_div(other.log(), start, reduction="none").sum(-1).mean(-1)
    torch.testing.assert_close(measure_divergence(start, other), expected)
    assert measure_divergence(start, start).abs().max() < 1e-15


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_question_whose_loss_is_no_number_keeps_its_best_and_spoils_nobody(
    poison: float,
) -> None:
    problem = make_problem(6)
    clean = Descent(tolerance=None).solve(problem)
    values = torch.tensor([1.0, poison, 1.0, 1.0]).double()
    inner = own_mixture(problem)
    late = replace(problem, objective=Poisoned(inner, problem.start_QCE, values))
    found = Descent(tolerance=None).solve(late)
    assert found.routing_QCE[1].equal(problem.start_QCE[1])
    assert (~found.curve_QS[1].isnan()).tolist() == [True] + [False] * 10
    healthy = [0, 2, 3]
    torch.testing.assert_close(found.routing_QCE[healthy], clean.routing_QCE[healthy])
    torch.testing.assert_close(found.curve_QS[healthy], clean.curve_QS[healthy])
    shifted = Descent(tolerance=None, parametrisation="logit").solve(late)
    assert shifted.routing_QCE[1].equal(problem.start_QCE[1])  # to the last bit
    early = replace(late, objective=Poisoned(inner, problem.start_QCE, values, from_start=True))
    for best_iterate in (True, False):
        from_start = Descent(tolerance=None, best_iterate=best_iterate).solve(early)
        assert from_start.routing_QCE[1].equal(problem.start_QCE[1])
        assert from_start.curve_QS[1].isnan().all()


def test_a_gradient_that_is_no_number_stops_a_question_where_it_is() -> None:
    @dataclass
    class Sharp:
        """Finite losses, but the slope of a square root at 0 for the question with the flag."""

        flag_Q: torch.Tensor

        def __call__(
            self,
            routing_QCE: torch.Tensor,
            *,
            core_QCE: torch.Tensor | None = None,
            selection: Selection = "hard",
        ) -> torch.Tensor:
            sum_Q = routing_QCE.flatten(1).square().sum(-1)
            top_Q = routing_QCE[:, 0].max(-1).values
            sharp_Q = torch.where(self.flag_Q, top_Q - top_Q.detach(), 1.0).sqrt()
            return (sum_Q + sharp_Q)[:, None].expand(-1, N)

        def take(self, rows_R: torch.Tensor) -> Sharp:
            return Sharp(self.flag_Q[rows_R])

    flags = torch.tensor([True, False, False, True])
    problem = replace(make_problem(7), objective=Sharp(flags))
    _, gradient_QCE = differentiate(problem, problem.start_QCE, lambda place: place, "hard")
    assert (~gradient_QCE.isfinite()).flatten(1).sum(-1).tolist() == [1, 0, 0, 1]
    assert (gradient_QCE != 0).equal(problem.core_QCE())
    found = Descent(tolerance=None).solve(problem)
    assert found.routing_QCE[flags].equal(problem.start_QCE[flags])
    assert (~found.curve_QS[flags].isnan()).sum(-1).tolist() == [1, 1]
    assert (found.curve_QS[~flags, -1] < found.curve_QS[~flags, 0]).all()


def test_a_question_without_neighbours_keeps_its_routing() -> None:
    problem = make_problem(8)
    kernel_QN = problem.kernel_QN.clone()
    kernel_QN[2] = 0
    found = Descent().solve(replace(problem, kernel_QN=kernel_QN))
    assert found.routing_QCE[2].equal(problem.start_QCE[2])
    assert found.curve_QS[2].isnan().all()
    rows = torch.tensor([0, 1, 3])
    assert_same(Descent().solve(problem.take(rows)), found, [0, 1, 3])
    nobody = replace(problem, kernel_QN=torch.zeros_like(kernel_QN))
    own_mixture(problem).asked.clear()
    assert Descent().solve(nobody).routing_QCE.equal(problem.start_QCE)
    assert own_mixture(problem).asked == []
    assert Descent().solve(problem.take(torch.tensor([], dtype=torch.long))).passes == 0


def test_the_objective_is_asked_with_the_selection_and_without_gradients_at_the_end() -> None:
    problem = make_problem(9)
    with torch.no_grad():  # a caller's setting does not matter
        Descent(steps=2, selection="straight_through", tolerance=None).solve(problem)
    asked = [selection for _, selection in own_mixture(problem).asked]
    assert asked == ["straight_through", "straight_through", "hard"]
    assert not problem.start_QCE.requires_grad


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Descent(steps=0)
    with pytest.raises(InputError, match="last_rate"):
        Descent(rate=1e-6)
    with pytest.raises(InputError, match="max_divergence"):
        Descent(max_divergence=0)
