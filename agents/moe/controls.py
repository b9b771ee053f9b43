"""Controls: changes of the routing that know nothing of the neighbours' answers.

If they help as much as a solver, the solver has not found what it claims (c3po.md §4.1).
Shapes: Q questions, C critical layers, E routed experts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...retrieval import InputError
from .problem import FLOOR, Problem, Solution, shift_logits, take_logits
from .regression import temper

__all__ = ["RandomDirection", "RouterTemperature"]

HALVINGS, DOUBLINGS, DRAWS = 60, 60, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterTemperature:
    """Sharpen or flatten the router: ω ∝ start^(1/T) over the core, which keeps its mass.

    Sigmoid scores have their logits divided by T.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"the temperature is {self.temperature}; it must be positive")

    def solve(self, problem: Problem) -> Solution:
        """The same temperature for all questions and layers."""
        start_QCE, core_QCE = problem.start_QCE, problem.core_QCE()
        if problem.simplex:
            routing_QCE = temper(start_QCE, self.temperature, start_QCE, core_QCE)
        else:
            shift_QCE = take_logits(start_QCE, simplex=False) * (1 / self.temperature - 1)
            routing_QCE = shift_logits(start_QCE, shift_QCE, core_QCE, simplex=False)
        return _unmeasured(routing_QCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDirection:
    """Go as far as a solution did, but in a direction drawn at random.

    In each layer the change over the core experts has the same L2 norm as the solution's; on the
    simplex it sums to zero, and the other experts keep the start's scores. Where a straight step would
    make scores negative, it is the nearest point of the simplex that has the norm; directions in which
    the simplex ends before that are drawn again.
    """

    like: Solution
    """A solution of the problem that will be given."""
    seed: int
    names: Sequence[str] | None = None
    """The questions' ids: a question's direction depends on seed and id only. None: on the seed and
    its start, in float32, to the last bit."""

    def solve(self, problem: Problem) -> Solution:
        """Draw for all questions.

        Raises:
            InputError: the solution, or the names, are those of other questions.
        """
        start_QCE, core_QCE = problem.start_QCE, problem.core_QCE()
        if self.like.routing_QCE.shape != start_QCE.shape:
            raise InputError(
                f"the solution has the shape {tuple(self.like.routing_QCE.shape)}, the problem "
                f"{tuple(start_QCE.shape)}; give a solution of the same problem"
            )
        if self.names is not None and len(self.names) != len(start_QCE):
            raise InputError(f"{len(self.names)} names for {len(start_QCE)} questions")
        change_QCE = torch.where(core_QCE, self.like.routing_QCE - start_QCE, 0.0)
        wanted_QC1 = change_QCE.norm(dim=-1, keepdim=True)
        generators = [self._seed(question, start_QCE) for question in range(len(start_QCE))]
        best_QCE, best_QC1 = start_QCE, torch.zeros_like(wanted_QC1)
        for _ in range(DRAWS):
            short_QC1 = best_QC1 < wanted_QC1 * (1 - 1e-6)
            if not short_QC1.any():
                break
            noise_QCE = _draw(generators, start_QCE)
            moved_QCE = _go(start_QCE, noise_QCE, core_QCE, wanted_QC1, simplex=problem.simplex)
            far_QC1 = (moved_QCE - start_QCE).norm(dim=-1, keepdim=True)
            better_QC1 = short_QC1 & (far_QC1 > best_QC1)
            best_QCE = torch.where(better_QC1, moved_QCE, best_QCE)
            best_QC1 = torch.where(better_QC1, far_QC1, best_QC1)
        return _unmeasured(best_QCE)

    def _seed(self, question: int, start_QCE: torch.Tensor) -> torch.Generator:
        """A generator that does not depend on who else is in the batch."""
        if self.names is not None:
            key = self.names[question].encode()
        else:
            key = start_QCE[question].detach().float().cpu().contiguous().numpy().tobytes()
        digest = hashlib.blake2b(key, key=str(self.seed).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _draw(generators: Sequence[torch.Generator], start_QCE: torch.Tensor) -> torch.Tensor:
    if not generators:
        return torch.zeros_like(start_QCE)
    shape = start_QCE.shape[1:]
    drawn = [torch.randn(shape, generator=one, dtype=torch.float64) for one in generators]
    return torch.stack(drawn).to(start_QCE)


def _go(
    start_QCE: torch.Tensor,
    noise_QCE: torch.Tensor,
    core_QCE: torch.Tensor,
    wanted_QC1: torch.Tensor,
    *,
    simplex: bool,
) -> torch.Tensor:
    """The point in a direction, pressed onto the allowed set, that lies `wanted` away from the start.

    The distance of the pressed point never falls as the step grows (Calamai and Moré 1987, lemma 2.2), so
    bisection finds the step; where the set ends too early, the farthest point comes out.
    """
    # What a direction has in common over the core, pressing onto the simplex takes away by itself.
    noise_QCE = torch.where(core_QCE, noise_QCE, 0.0)
    noise_QCE = noise_QCE / noise_QCE.norm(dim=-1, keepdim=True).clamp(min=FLOOR)

    def at(step_QC1: torch.Tensor) -> torch.Tensor:
        values_QCE = start_QCE + step_QC1 * noise_QCE
        if simplex:
            return _press(values_QCE, start_QCE, core_QCE)
        return torch.where(core_QCE, values_QCE.clamp(min=FLOOR), start_QCE)

    def falls_short(step_QC1: torch.Tensor) -> torch.Tensor:
        return (at(step_QC1) - start_QCE).norm(dim=-1, keepdim=True) < wanted_QC1

    low_QC1, high_QC1 = torch.zeros_like(wanted_QC1), wanted_QC1
    for _ in range(DOUBLINGS):
        short_QC1 = falls_short(high_QC1) & (high_QC1 < 1e6)
        if not short_QC1.any():
            break
        high_QC1 = torch.where(short_QC1, 2 * high_QC1, high_QC1)
    for _ in range(HALVINGS):
        middle_QC1 = (low_QC1 + high_QC1) / 2
        short_QC1 = falls_short(middle_QC1)
        low_QC1, high_QC1 = (
            middle_QC1.where(short_QC1, low_QC1),
            high_QC1.where(short_QC1, middle_QC1),
        )
    return torch.where(wanted_QC1 > 0, at(high_QC1), start_QCE)


def _press(
    values_QCE: torch.Tensor, start_QCE: torch.Tensor, core_QCE: torch.Tensor
) -> torch.Tensor:
    """Nearest scores that are no less than `FLOOR` and give the core the start's mass.

    Euclidean projection onto a simplex by sorting (Duchi et al. 2008, algorithm 1).
    """
    mass_QC1 = torch.where(core_QCE, start_QCE, 0.0).sum(-1, keepdim=True)
    room_QC1 = (mass_QC1 - FLOOR * core_QCE.sum(-1, keepdim=True)).clamp(min=0)
    lifted_QCE = (values_QCE - FLOOR).masked_fill(~core_QCE, -torch.inf)
    sorted_QCE = lifted_QCE.sort(dim=-1, descending=True).values
    sums_QCE = sorted_QCE.cumsum(-1) - room_QC1
    rank_E = torch.arange(1, values_QCE.shape[-1] + 1, device=values_QCE.device)
    kept_QC1 = (sorted_QCE > sums_QCE / rank_E).sum(-1, keepdim=True).clamp(min=1)
    threshold_QC1 = sums_QCE.gather(-1, kept_QC1 - 1) / kept_QC1
    return torch.where(core_QCE, (lifted_QCE - threshold_QC1).clamp(min=0) + FLOOR, start_QCE)


def _unmeasured(routing_QCE: torch.Tensor) -> Solution:
    return Solution(
        routing_QCE=routing_QCE,
        curve_QS=routing_QCE.new_full((len(routing_QCE), 1), math.nan),
        passes=0,
    )
