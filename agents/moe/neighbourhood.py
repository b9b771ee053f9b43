"""A question's solved neighbours, and the problem that they pose.

Shapes: Q questions, N neighbours of each, C critical layers, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...retrieval.neighbours import Neighbours
from .bank import StateBank
from .kernels import Bandwidth, Kernel, weigh_neighbours
from .problem import Problem
from .suffix import SuffixEngine
from .surrogate import NeighbourLosses

__all__ = ["Neighbourhood", "find_chosen", "pose", "tabulate_neighbours"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """Who the neighbours of Q questions are, the most similar first."""

    rows_QN: torch.Tensor
    """Their rows in the bank; 0 where there is none."""
    similarity_QN: torch.Tensor
    """Cosines, float64."""
    present_QN: torch.Tensor
    """Whether there is one."""
    dropped: Mapping[str, int]
    """What the leakage guard held back, by reason."""

    def take(self, rows_R: torch.Tensor) -> Neighbourhood:
        """Those of some questions."""
        return replace(
            self,
            rows_QN=self.rows_QN[rows_R],
            similarity_QN=self.similarity_QN[rows_R],
            present_QN=self.present_QN[rows_R],
        )

    def cut(self, places: slice) -> Neighbourhood:
        """Some of each question's neighbours, by their places from the most similar on."""
        return replace(
            self,
            rows_QN=self.rows_QN[:, places],
            similarity_QN=self.similarity_QN[:, places],
            present_QN=self.present_QN[:, places],
        )


def tabulate_neighbours(
    found: Sequence[Neighbours], number: int, *, rows: Sequence[int] | None = None
) -> Neighbourhood:
    """Neighbours as tensors.

    Args:
        found: One for each question.
        number: N; missing ones are marked.
        rows: Bank row of each reference; by default the reference set and the bank agree.
    """
    rows_QN = torch.zeros(len(found), number, dtype=torch.long)
    similarity_QN = torch.zeros(len(found), number, dtype=torch.float64)
    present_QN = torch.zeros(len(found), number, dtype=torch.bool)
    dropped: Counter[str] = Counter()
    for question, neighbours in enumerate(found):
        dropped.update(neighbours.dropped)
        for place, neighbour in enumerate(neighbours.found[:number]):
            row = neighbour.row if rows is None else rows[neighbour.row]
            rows_QN[question, place] = row
            similarity_QN[question, place] = neighbour.similarity
            present_QN[question, place] = True
    return Neighbourhood(
        rows_QN=rows_QN, similarity_QN=similarity_QN, present_QN=present_QN, dropped=dict(dropped)
    )


def pose(
    engine: SuffixEngine,
    bank: StateBank,
    neighbourhood: Neighbourhood,
    start_QCE: torch.Tensor,
    *,
    core_experts: int | None,
    kernel: Kernel = "gaussian",
    bandwidth: Bandwidth = "median",
    gold_QN: torch.Tensor | None = None,
) -> Problem:
    """The problem of making the neighbours' answers likelier by the questions' routing.

    Args:
        engine: Runs the critical layers.
        bank: Holds the neighbours' states.
        neighbourhood: Who they are.
        start_QCE: The questions' default routing.
        core_experts: See `Problem`; more than there are means all.
        kernel: How similarity becomes weight.
        bandwidth: Of the kernel.
        gold_QN: Other labels than the true ones, for a control.
    """
    # A neighbour that does not exist is a copy of the nearest: a stranger's states, if they were not
    # finite, would spoil the gradient though their loss has no weight.
    present_QN = neighbourhood.present_QN
    places_QN = torch.arange(present_QN.shape[1]).expand_as(present_QN)
    nearest_Q1 = present_QN.to(torch.uint8).argmax(-1, keepdim=True)
    places_QN = torch.where(present_QN, places_QN, nearest_Q1)
    rows_R = neighbourhood.rows_QN.gather(-1, places_QN).reshape(-1)
    device = start_QCE.device
    shape = neighbourhood.rows_QN.shape
    own_QN = bank.gold_N[rows_R].view(shape)
    gold_QN = own_QN if gold_QN is None else gold_QN.gather(-1, places_QN.to(gold_QN.device))
    objective = NeighbourLosses(
        engine,
        lambda: bank.states(rows_R.tolist()),
        gold_QN.to(device),
        bank.options_N[rows_R].view(shape).to(device),
    )
    kernel_QN = weigh_neighbours(
        neighbourhood.similarity_QN,
        kernel,
        bandwidth=bandwidth,
        present_QN=present_QN,
    )
    experts = start_QCE.shape[-1]
    simplex = engine.moe.layers[0].rule.scoring == "softmax"
    return Problem(
        start_QCE=start_QCE,
        objective=objective,
        kernel_QN=kernel_QN.to(start_QCE),
        neighbour_routing_QNCE=bank.pathway_at(engine.layers)[rows_R]
        .view(*shape, *start_QCE.shape[1:])
        .to(device),
        core_experts=None if core_experts is None or core_experts >= experts else core_experts,
        chosen_QCE=find_chosen(engine, start_QCE),
        simplex=simplex,
    )


def find_chosen(engine: SuffixEngine, start_QCE: torch.Tensor) -> torch.Tensor:
    """Which experts the model itself turns on under its default routing (bool)."""
    chosen = torch.zeros_like(start_QCE, dtype=torch.bool)
    for place, index in enumerate(engine.layers):
        layer = engine.moe.at(index)
        indices_QK = layer.rule.choose(start_QCE[:, place], bias_E=layer.bias_E)
        chosen[:, place].scatter_(-1, indices_QK, True)
    return chosen
