"""The methods and controls of a re-mixing study, each as a replay over one set of questions.

What a method must beat is here as well: changes of the routing that know nothing of the neighbours'
answers, a bias learnt once for all, the same neighbours as examples in the prompt, and what fitting the
label itself would give (c3po.md §4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..agents.moe.controls import RandomDirection, RouterTemperature
from ..agents.moe.neighbourhood import Neighbourhood, pose
from ..agents.moe.problem import Problem, Solution, Solver
from ..agents.moe.settings import RemixSettings
from ..agents.moe.solvers import make_solver
from ..agents.moe.task_bias import TaskBias, fit_task_bias
from .few_shot import answer_with_examples
from .remix_field import RemixField, RemixReplay, shuffle_labels

__all__ = ["METHODS", "SEEDED", "Tuned", "fit_bias", "replay_method"]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was chosen on the references, and what was learnt from them."""

    ngd: RemixSettings
    """Gradient descent without any gate."""
    remix: RemixSettings
    """The same with the gates: what is claimed to do no harm."""
    temperature: float = 1.0
    bias: TaskBias | None = None
    told: dict[str, Any] = field(default_factory=dict[str, Any])
    """How the choice came about, for the record."""


def replay_method(name: str, questions: RemixField, tuned: Tuned, seed: int = 0) -> RemixReplay:
    """Answer every question by one method.

    Args:
        name: One of `METHODS`.
        questions: The set.
        tuned: Chosen on references only.
        seed: For the methods of `SEEDED`.

    Raises:
        KeyError: no such method.
    """
    return METHODS[name](questions, tuned, seed)


def fit_bias(questions: RemixField, settings: RemixSettings, *, epochs: int, seed: int) -> TaskBias:
    """One shift of the router's logits for all, learnt from the references themselves (RoMA's kin).

    Args:
        questions: The references as a field: each is its own neighbour.
        settings: Layers and core.
        epochs: At most so many.
        seed: Of split and order.
    """
    bank = questions.own
    engine = questions.engine(settings)
    itself = questions.itself()

    def cut(rows: Sequence[int]) -> Problem:
        states = bank.states(rows)
        return pose(
            engine,
            bank,
            itself.take(torch.tensor(list(rows))),
            states.pathway_at(engine.layers),
            core_experts=settings.core_experts,
        )

    number = len(bank)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist()
    kept_back = min(number - 1, max(1, number // 8))
    held = [cut(order[start : min(start + 64, kept_back)]) for start in range(0, kept_back, 64)]
    learnt = order[kept_back:]

    def batches(generator: torch.Generator) -> Any:
        mixed = torch.randperm(len(learnt), generator=generator).tolist()
        for start in range(0, len(mixed), 64):
            yield cut([learnt[place] for place in mixed[start : start + 64]])

    return fit_task_bias(
        batches, held_out=held, epochs=epochs, selection=settings.selection, seed=seed
    )


def _base(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    return questions.base()


def _unchanged(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    return questions.unchanged(tuned.ngd)


def _ngd(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    return questions.remix(tuned.ngd, _near(questions, tuned.ngd))


def _remix(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    return questions.remix(tuned.remix, _near(questions, tuned.remix))


def _regression_0(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    return _solve_as(questions, tuned, solver="kernel_regression", alpha="zero")


def _regression(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    return _solve_as(questions, tuned, solver="kernel_regression", alpha="grid")


def _modes(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    settings = tuned.ngd.model_copy(update={"solver": "mode_finding"})
    # Its neighbourhood is in the space of pathways, so it chooses among many (c3po.md §1.3).
    return questions.remix(settings.model_copy(update={"neighbours": 32}), questions.near(32))


def _task_bias(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    assert tuned.bias is not None
    replay = questions.remix(tuned.ngd, _near(questions, tuned.ngd), solver=tuned.bias)
    return replace(replay, last_runs=0)  # a shift that is known beforehand acts in the only pass


def _oracle(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    settings = tuned.ngd.model_copy(update={"neighbours": 1})
    return questions.remix(settings, questions.itself(), by_itself=True)


def _random_neighbours(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    return questions.remix(tuned.ngd, questions.random(tuned.ngd.neighbours, seed))


def _shuffled_labels(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    near = _near(questions, tuned.ngd)
    return questions.remix(tuned.ngd, near, gold_QN=shuffle_labels(questions.bank, near, seed))


def _random_direction(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    solver = _AsFar(make_solver(tuned.ngd), seed)
    return questions.remix(tuned.ngd, _near(questions, tuned.ngd), solver=solver)


def _temperature(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    if tuned.temperature == 1:
        return questions.base()
    solver = RouterTemperature(temperature=tuned.temperature)
    replay = questions.remix(tuned.ngd, _near(questions, tuned.ngd), solver=solver)
    return replace(replay, last_runs=0)


def _letter_prior(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    """Divide by how often the model favours each letter on references: calibration, no routing at all."""
    logits_QO, own = questions.own.logits_NO.clone(), questions.own.options_N
    references_RO, options_R = questions.bank.logits_NO, questions.bank.options_N
    for number in own.unique().tolist():
        alike = references_RO[options_R == number][:, :number]
        if len(alike):
            prior_O = alike.softmax(-1).mean(0).log()
            logits_QO[own == number, :number] -= prior_O
    return questions.read(logits_QO, np.zeros(len(own), dtype=bool))


def _few_shot(questions: RemixField, tuned: Tuned, seed: int) -> RemixReplay:
    # As many as the paper follows: every example makes the prompt as much longer as the question is.
    near = questions.near(SHOTS)
    logits_QO, lengths = answer_with_examples(questions.own, questions.bank, near)
    nowhere_Q = np.zeros(len(questions.own), dtype=bool)
    return replace(questions.read(logits_QO, nowhere_Q), prompt_tokens=tuple(lengths))


SHOTS = 3

METHODS: Mapping[str, Callable[[RemixField, Tuned, int], RemixReplay]] = {
    "base": _base,
    "unchanged": _unchanged,
    "remix": _remix,
    "ngd": _ngd,
    "kernel_regression": _regression,
    "kernel_regression_0": _regression_0,
    "mode_finding": _modes,
    "task_bias": _task_bias,
    "letter_prior": _letter_prior,
    "knn_few_shot": _few_shot,
    "random_neighbours": _random_neighbours,
    "shuffled_labels": _shuffled_labels,
    "random_direction": _random_direction,
    "router_temperature": _temperature,
    "oracle": _oracle,
}
"""In the order of the table. `remix` is `ngd` behind the gates."""

SEEDED = frozenset({"random_neighbours", "shuffled_labels", "random_direction"})


class _AsFar:
    """Goes as far as a solver would, but in a random direction."""

    def __init__(self, solver: Solver, seed: int) -> None:
        self._solver, self._seed = solver, seed

    def solve(self, problem: Problem) -> Solution:
        """Solve, and then forget everything but how far it went."""
        like = self._solver.solve(problem)
        found = RandomDirection(like=like, seed=self._seed).solve(problem)
        return replace(found, passes=like.passes, gradients=like.gradients)


def _near(questions: RemixField, settings: RemixSettings) -> Neighbourhood:
    return questions.near(settings.neighbours + settings.held_back, balanced=settings.balanced)


def _solve_as(questions: RemixField, tuned: Tuned, **changes: Any) -> RemixReplay:
    settings = tuned.ngd.model_copy(update=changes)
    return questions.remix(settings, _near(questions, settings))
