"""Task bias: one shift of the router's logits for all questions, learnt once from the references.

The control that per-question work has to beat, since it costs nothing at test time (c3po.md §4.1).
Shapes: Q questions, R rows of a problem, C critical layers, E routed experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from ...retrieval import InputError
from .descent import Optimizer, differentiate
from .problem import Problem, Selection, Solution, shift_logits

__all__ = ["Batches", "TaskBias", "fit_task_bias"]

Batches = Sequence[Problem] | Callable[[torch.Generator], Iterable[Problem]]
"""References, each a question whose only neighbour is itself. A callable is asked once per epoch for that
epoch's mini-batches; whatever it draws comes from the generator."""

KIND = "expertmix task bias 1"
TENSOR = "delta_CE"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskBias:
    """What is added to the router's logits in each critical layer, whatever the question."""

    delta_CE: torch.Tensor
    curve: tuple[float, ...] = ()
    """Mean loss of the held-out references at the start and after each epoch."""
    passes: int = 0
    """Forward passes of one reference token that the training took, held-out ones included."""
    about: Mapping[str, str] = field(default_factory=dict[str, str])
    """Whatever shall be saved along, such as the model and its layers."""

    def solve(self, problem: Problem) -> Solution:
        """softmax(log start + δ), on each question's core experts; no loss is measured.

        Raises:
            InputError: the bias is for other layers or experts.
        """
        start_QCE = problem.start_QCE
        if self.delta_CE.shape != start_QCE.shape[1:]:
            raise InputError(
                f"the task bias has the shape {tuple(self.delta_CE.shape)} (layers, experts), the problem "
                f"{tuple(start_QCE.shape[1:])}; fit one for this model and these layers"
            )
        return Solution(
            routing_QCE=_apply(problem, self.delta_CE.to(start_QCE)),
            curve_QS=start_QCE.new_full((len(start_QCE), 1), math.nan),
            passes=0,
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        told = {"curve": self.curve, "passes": self.passes, "about": dict(self.about)}
        save_file(
            {TENSOR: self.delta_CE.detach().cpu().contiguous()},
            path,
            metadata={"kind": KIND, "told": json.dumps(told)},
        )

    @classmethod
    def load(cls, path: Path) -> TaskBias:
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file, or it is none of ours.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensor = file.get_tensor(TENSOR) if TENSOR in file.keys() else None  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"the task bias {path} cannot be read: {error}") from error
        if metadata.get("kind") != KIND or tensor is None:
            raise InputError(
                f"{path} is no task bias of this version ({KIND!r}); write one with `TaskBias.save`"
            )
        told = json.loads(metadata["told"])
        return cls(
            delta_CE=tensor,
            curve=tuple(told["curve"]),
            passes=told["passes"],
            about=told["about"],
        )


def fit_task_bias(
    problems: Batches,
    *,
    held_out: Sequence[Problem] | float = 0.1,
    epochs: int = 10,
    batch_size: int = 64,
    rate: float = 0.05,
    optimizer: Optimizer = "adam",
    selection: Selection = "straight_through",
    patience: int = 2,
    seed: int = 0,
) -> TaskBias:
    """Learn a bias by mini-batches; the epoch with the lowest held-out loss counts, the start included.

    A reference whose loss or gradient is not a finite number takes no part in the step.

    Args:
        problems: To learn from.
        held_out: References to stop by, or the share of `problems` to split off at random for that.
            A callable has no share to split off; without any, all epochs are run and the last counts.
        epochs: At most so many.
        batch_size: Of the mini-batches that a sequence is cut into; a callable cuts for itself.
        rate: Learning rate, in logits.
        optimizer: As torch has it.
        selection: See `Selection`.
        patience: Epochs without a lower held-out loss before the training ends.
        seed: Of split and order.

    Raises:
        InputError: there is nothing to learn from, or a number cannot be used.
    """
    if epochs < 1 or batch_size < 1 or patience < 1 or not rate > 0:
        raise InputError(
            f"epochs {epochs}, batch_size {batch_size}, patience {patience} and rate {rate} must be positive"
        )
    generator = torch.Generator().manual_seed(seed)
    if isinstance(held_out, float | int) and not callable(problems):
        problems, held_out = _split(problems, held_out, generator)
    watch = _Watch([] if isinstance(held_out, float | int) else list(held_out))
    delta_CE: torch.Tensor | None = None
    best_CE: torch.Tensor | None = None
    step: Callable[[Problem], int] | None = None
    passes = worse = 0
    for _ in range(epochs):
        batches = (
            problems(generator) if callable(problems) else _cut(problems, batch_size, generator)
        )
        for batch in batches:
            if delta_CE is None or step is None:
                delta_CE = torch.zeros_like(batch.start_QCE[0])
                step = _trainer(delta_CE, optimizer, rate, selection)
                best_CE = delta_CE.clone()
                watch.note(delta_CE)
            passes += step(batch)
        if delta_CE is None:
            raise InputError("there are no references to learn a task bias from")
        watch.note(delta_CE)
        if watch.fell():
            best_CE, worse = delta_CE.clone(), 0
        else:
            worse += 1
        if worse >= patience:
            break
    assert best_CE is not None
    return TaskBias(delta_CE=best_CE, curve=tuple(watch.curve), passes=passes + watch.passes)


def _apply(problem: Problem, delta: torch.Tensor) -> torch.Tensor:
    """The routing of each question under a shift, `[C, E]` or one per question."""
    return shift_logits(problem.start_QCE, delta, problem.core_QCE(), simplex=problem.simplex)


def _trainer(
    delta_CE: torch.Tensor, optimizer: Optimizer, rate: float, selection: Selection
) -> Callable[[Problem], int]:
    """One step of training on a mini-batch, in place; it says how many passes that took."""
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    stepper = kind([delta_CE], lr=rate)

    def step(batch: Problem) -> int:
        value_Q, gradient_QCE = differentiate(
            batch,
            delta_CE.expand_as(batch.start_QCE),
            lambda shift_QCE: _apply(batch, shift_QCE),
            selection,
        )
        counts_Q = batch.neighbours_Q() > 0
        counts_Q &= value_Q.isfinite() & gradient_QCE.isfinite().flatten(1).all(-1)
        if counts_Q.any():
            delta_CE.grad = gradient_QCE[counts_Q].mean(0)
            stepper.step()
        return int(batch.neighbours_Q().sum())

    return step


@dataclass(slots=True)
class _Watch:
    """The held-out references and their mean loss so far.

    One that the model cannot answer with a finite loss even at the start is left out of the mean. A loss
    that stops being finite makes the mean infinite: a bias that breaks the model never wins.
    """

    problems: Sequence[Problem]
    curve: list[float] = field(default_factory=list[float])
    passes: int = 0
    sound_R: torch.Tensor | None = None

    def note(self, delta_CE: torch.Tensor) -> None:
        if not self.problems:
            return
        with torch.no_grad():
            losses = [problem.surrogate_Q(_apply(problem, delta_CE)) for problem in self.problems]
        losses_R = torch.cat(losses).double()
        if self.sound_R is None:
            self.sound_R = losses_R.isfinite()
        mean = float(losses_R[self.sound_R].mean())
        self.curve.append(mean if math.isfinite(mean) else math.inf)
        self.passes += sum(int(problem.neighbours_Q().sum()) for problem in self.problems)

    def fell(self) -> bool:
        """Whether the last loss is the lowest; always without held-out references."""
        if self.sound_R is None or not self.sound_R.any():
            return True
        return self.curve[-1] < min(self.curve[:-1])


def _split(
    problems: Sequence[Problem], share: float, generator: torch.Generator
) -> tuple[list[Problem], list[Problem]]:
    """Split references, across all problems, into those to learn from and those to stop by."""
    if not 0 <= share < 1:
        raise InputError(f"the share of held-out references is {share}; it must be in [0, 1)")
    sizes = [len(problem.start_QCE) for problem in problems]
    total = sum(sizes)
    number = min(max(1, round(share * total)), total - 1) if share and total else 0
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.randperm(total, generator=generator)[:number]] = True
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem, mine in zip(problems, chosen.split(sizes), strict=True):
        for side, rows in zip(sides, (~mine, mine), strict=True):
            if rows.any():
                side.append(problem.take(rows.nonzero().squeeze(-1).to(problem.start_QCE.device)))
    return sides


def _cut(
    problems: Sequence[Problem], batch_size: int, generator: torch.Generator
) -> Iterable[Problem]:
    """All references in mini-batches, both in a new order."""
    pieces = list(
        chain.from_iterable(
            (
                (problem, rows_R.to(problem.start_QCE.device))
                for rows_R in torch.randperm(len(problem.start_QCE), generator=generator).split(
                    batch_size
                )
            )
            for problem in problems
        )
    )
    for at in torch.randperm(len(pieces), generator=generator).tolist():
        problem, rows_R = pieces[at]
        yield problem.take(rows_R)
