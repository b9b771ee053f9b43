"""The losses of solved neighbours under somebody else's routing, on their cached states.

Shapes: Q questions, N neighbours of each, R = Q x N rows, C critical layers, E experts, O option letters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .problem import Selection
from .states import TokenStates
from .suffix import SuffixEngine, SuffixRows

__all__ = ["NeighbourLosses"]


class NeighbourLosses:
    """An `Objective`: cross-entropy of each neighbour's gold letter among its own options.

    Only the option letters compete: a loss over the whole vocabulary would also teach the routing to
    answer with a letter at all (c3po.md §4.1).
    """

    def __init__(
        self,
        engine: SuffixEngine,
        states: TokenStates | Callable[[], TokenStates],
        gold_QN: torch.Tensor,
        options_QN: torch.Tensor,
    ) -> None:
        """Store what is needed.

        Args:
            engine: Runs the rows.
            states: Of all neighbours, question by question: R rows, or how to read them, which is then done
                once and only if a loss is asked for. A neighbour that does not exist is any other's copy;
                its weight in the kernel is 0.
            gold_QN: Index of each neighbour's right option.
            options_QN: How many options each has.
        """
        self._engine = engine
        self._read = states if callable(states) else lambda: states
        self._gold_QN, self._options_QN = gold_QN, options_QN
        self._rows: SuffixRows | None = None
        self._core_QCE: torch.Tensor | None = None

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        """See `Objective`. What does not depend on the routing is computed in the first call."""
        number = self._gold_QN.shape[1]
        rows = self._prepare(core_QCE)
        logits_RO = self._engine.run(rows, routing_QCE.repeat_interleave(number, dim=0), selection)
        places_O = torch.arange(logits_RO.shape[-1], device=logits_RO.device)
        absent_RO = places_O >= self._options_QN.reshape(-1, 1)
        logprobs_RO = logits_RO.masked_fill(absent_RO, -torch.inf).log_softmax(-1)
        gold_R1 = self._gold_QN.reshape(-1, 1)
        return -logprobs_RO.gather(-1, gold_R1).view(self._gold_QN.shape)

    def take(self, rows_R: torch.Tensor) -> NeighbourLosses:
        """The same for some of the questions; what was computed for them is kept."""
        number = self._gold_QN.shape[1]
        flat = (rows_R[:, None] * number + torch.arange(number, device=rows_R.device)).reshape(-1)
        rows = None if self._rows is None else self._rows.take(flat)
        states = (lambda: self._read().take(flat)) if rows is None else rows.states
        taken = NeighbourLosses(
            self._engine, states, self._gold_QN[rows_R], self._options_QN[rows_R]
        )
        if rows is not None:
            taken._rows = rows
            taken._core_QCE = None if self._core_QCE is None else self._core_QCE[rows_R]
        return taken

    def _prepare(self, core_QCE: torch.Tensor | None) -> SuffixRows:
        """The rows for this core; solvers keep to one, so they are made once."""
        same = core_QCE is self._core_QCE or (
            core_QCE is not None
            and self._core_QCE is not None
            and torch.equal(core_QCE, self._core_QCE)
        )
        if self._rows is None or not same:
            number = self._gold_QN.shape[1]
            core = None if core_QCE is None else core_QCE.repeat_interleave(number, dim=0)
            states = self._read() if self._rows is None else self._rows.states
            self._rows = self._engine.prepare(states, core)
            self._core_QCE = core_QCE
        return self._rows
