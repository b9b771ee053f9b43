"""One shift for everybody: against torch by hand, stopping, and keeping it in a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from expertmix.agents.moe.problem import Problem, Selection
from expertmix.agents.moe.task_bias import TaskBias, fit_task_bias
from expertmix.retrieval import InputError

C, E = 2, 6


@dataclass
class Wanted:
    """Cross-entropy of the routing against the expert that each reference wants in each layer."""

    wanted_QC: torch.Tensor
    poison_Q: torch.Tensor
    """Added to losses; minus one stands for a finite loss with a gradient that is no number."""

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        shares_QC = routing_QCE.gather(-1, self.wanted_QC[..., None]).squeeze(-1)
        sharp_Q = self.poison_Q == -1
        losses_Q = self.poison_Q.masked_fill(sharp_Q, 0) - shares_QC.log().sum(-1)
        zero_Q = shares_QC[:, 0] - shares_QC[:, 0].detach()
        return (losses_Q + torch.where(sharp_Q, zero_Q, 1.0).sqrt() - 1 + sharp_Q)[:, None]

    def take(self, rows_R: torch.Tensor) -> Wanted:
        return Wanted(self.wanted_QC[rows_R], self.poison_Q[rows_R])


def make_references(
    count: int, seed: int = 0, *, favourite: float = 0.7, core: int | None = None
) -> Problem:
    """References of which a share wants expert 1, and the others any."""
    generator = torch.Generator().manual_seed(seed)
    logits_QCE = torch.randn(count, C, E, generator=generator, dtype=torch.float64)
    wanted_QC = torch.randint(E, (count, C), generator=generator)
    wanted_QC[torch.rand(count, generator=generator) < favourite] = 1
    return Problem(
        start_QCE=logits_QCE.softmax(-1),
        objective=Wanted(wanted_QC, torch.zeros(count).double()),
        kernel_QN=torch.ones(count, 1).double(),
        core_experts=core,
    )


def mean_loss(problem: Problem, bias: TaskBias) -> float:
    return float(problem.surrogate_Q(bias.solve(problem).routing_QCE).mean())


def test_one_step_is_the_gradient_of_the_mean_loss() -> None:
    references = make_references(20, core=4)
    bias = fit_task_bias(
        [references], held_out=0, epochs=1, batch_size=20, rate=0.5, optimizer="sgd"
    )
    delta_CE = torch.zeros(C, E, dtype=torch.float64, requires_grad=True)
    shift_QCE = torch.where(references.core_QCE(), delta_CE, 0.0)
    routing_QCE = (references.start_QCE.log() + shift_QCE).softmax(-1)
    references.surrogate_Q(routing_QCE).mean().backward()
    assert delta_CE.grad is not None
    torch.testing.assert_close(bias.delta_CE, -0.5 * delta_CE.grad)
    assert (bias.curve, bias.passes) == ((), 20)


def test_a_bias_learns_what_the_references_have_in_common() -> None:
    bias = fit_task_bias([make_references(60, 1), make_references(90, 2)], epochs=8, batch_size=32)
    assert bias.delta_CE.argmax(-1).tolist() == [1, 1]
    assert min(bias.curve) < bias.curve[0]
    others = make_references(50, 3)
    zero = replace(bias, delta_CE=torch.zeros(C, E).double())
    assert mean_loss(others, bias) < mean_loss(others, zero) - 0.3
    # 135 to learn from and 15 to stop by, which are measured once more at the start.
    epochs = len(bias.curve) - 1
    assert bias.passes == epochs * 150 + 15


def test_a_bias_is_added_to_logits_of_the_core_only() -> None:
    problem = make_references(7, 4, core=3)
    delta_CE = torch.randn(C, E, generator=torch.Generator().manual_seed(0)).double()
    found = TaskBias(delta_CE=delta_CE).solve(problem)
    shifted_QCE = problem.start_QCE * torch.where(problem.core_QCE(), delta_CE.exp(), 1.0)
    expected_QCE = shifted_QCE / shifted_QCE.sum(-1, keepdim=True)
    torch.testing.assert_close(found.routing_QCE, expected_QCE)
    assert (found.passes, found.gradients) == (0, 0)
    row = torch.tensor([3])
    alone = TaskBias(delta_CE=delta_CE).solve(problem.take(row))
    torch.testing.assert_close(alone.routing_QCE, found.routing_QCE[row])
    with pytest.raises(InputError, match=r"\(1, 6\) \(layers, experts\)"):
        TaskBias(delta_CE=delta_CE[:1]).solve(problem)


def test_a_seed_repeats_and_another_one_does_not() -> None:
    references = make_references(40, 5)
    first, again, other = (
        fit_task_bias([references], epochs=2, batch_size=8, seed=seed) for seed in (0, 0, 1)
    )
    assert first.delta_CE.equal(again.delta_CE)
    assert first.curve == again.curve
    assert not first.delta_CE.equal(other.delta_CE)


def test_the_best_epoch_counts_and_the_training_stops() -> None:
    # What helps those that are learnt from harms those that are held out.
    held = make_references(30, 6, favourite=0.0)
    assert isinstance(held.objective, Wanted)
    held = replace(held, objective=replace(held.objective, wanted_QC=torch.zeros(30, C).long()))
    bias = fit_task_bias([make_references(60, 7)], held_out=[held], epochs=50, patience=3)
    assert bias.delta_CE.abs().sum() == 0
    assert len(bias.curve) == 1 + 3
    assert bias.passes == 3 * 60 + 4 * 30


def test_a_callable_gives_each_epoch_its_batches() -> None:
    drawn: list[int] = []

    def batches(generator: torch.Generator) -> Iterator[Problem]:
        drawn.append(int(torch.randint(1000, (1,), generator=generator)))
        yield make_references(10, drawn[-1])
        yield make_references(10, drawn[-1] + 1)

    bias = fit_task_bias(batches, epochs=3, optimizer="sgd")
    assert len(set(drawn)) == 3
    assert bias.curve == ()
    assert bias.passes == 3 * 20
    stopped = fit_task_bias(batches, epochs=3, held_out=[make_references(10, 8)])
    assert len(stopped.curve) == 4


@pytest.mark.parametrize("poison", [math.nan, math.inf, -1.0])
def test_a_reference_whose_loss_or_gradient_is_no_number_takes_no_part(poison: float) -> None:
    references = make_references(20, 9)
    assert isinstance(references.objective, Wanted)
    poison_Q = torch.zeros(20).double()
    poison_Q[:5] = poison
    bad = replace(references, objective=replace(references.objective, poison_Q=poison_Q))
    good = references.take(torch.arange(5, 20))
    ways = {"held_out": 0.0, "epochs": 1, "batch_size": 20, "optimizer": "sgd"}
    found, expected = (fit_task_bias([one], **ways) for one in (bad, good))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found.delta_CE, expected.delta_CE)
    hopeless = fit_task_bias([bad.take(torch.arange(5))], held_out=0, epochs=1)
    assert hopeless.delta_CE.abs().sum() == 0


def test_a_held_out_reference_without_a_finite_loss_does_not_stop_the_training() -> None:
    held = make_references(20, 11)
    assert isinstance(held.objective, Wanted)
    poison_Q = torch.zeros(20).double()
    poison_Q[3] = math.nan
    bad = replace(held, objective=replace(held.objective, poison_Q=poison_Q))
    good = held.take(torch.tensor([at for at in range(20) if at != 3]))
    found, expected = (
        fit_task_bias([make_references(60, 12)], held_out=[one], epochs=3) for one in (bad, good)
    )
    assert found.curve == pytest.approx(expected.curve)
    assert found.delta_CE.equal(expected.delta_CE)
    assert found.curve[-1] < found.curve[0]


def test_a_bias_survives_its_file(tmp_path: Path) -> None:
    about = {"model": "olmoe", "layers": "11-15"}
    bias = replace(fit_task_bias([make_references(30, 10)], epochs=2), about=about)
    bias.save(tmp_path / "bias.safetensors")
    read = TaskBias.load(tmp_path / "bias.safetensors")
    assert read.delta_CE.equal(bias.delta_CE)
    assert (read.curve, read.passes, read.about) == (bias.curve, bias.passes, about)


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        TaskBias.load(tmp_path / "nowhere.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        TaskBias.load(tmp_path / "text")
    safetensors.torch.save_file({"delta_CE": torch.zeros(C, E)}, tmp_path / "other")
    with pytest.raises(InputError, match="no task bias"):
        TaskBias.load(tmp_path / "other")


def test_nothing_to_learn_from_and_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="no references"):
        fit_task_bias([])
    with pytest.raises(InputError, match="must be positive"):
        fit_task_bias([make_references(3)], epochs=0)
    with pytest.raises(InputError, match="share"):
        fit_task_bias([make_references(3)], held_out=1.0)
