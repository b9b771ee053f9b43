"""Why re-mixing helps or not: does the neighbours' gradient point where the question's own would?

The one would be known if the answer were: it is the oracle's. Shapes: Q questions, N neighbours, C critical
layers, E experts.
"""

from __future__ import annotations

from typing import Any

import torch

from ..agents.moe.descent import differentiate
from ..agents.moe.neighbourhood import Neighbourhood, pose
from ..agents.moe.problem import Problem, shift_logits
from ..agents.moe.settings import RemixSettings
from .remix_field import RemixField

__all__ = ["KINDS", "measure_alignment"]

CHUNK = 48
KINDS = ("nearest 1", "nearest 3", "nearest 8", "nearest 8, letters spread", "random 8")


def measure_alignment(questions: RemixField, settings: RemixSettings) -> list[dict[str, Any]]:
    """Cosines of first gradients, in the space of router logits, for several neighbourhoods.

    Rows have `test`, `neighbours`, `n`, `cosine` and its standard error `error`, `cosine_wrong` (over questions
    that the model answers wrong: where re-mixing would have to help; None if there are none),
    and `letter_correlation`: how much of the cosine is explained by the share of neighbours whose gold
    letter is the question's (None where that share is the same for all).

    Args:
        questions: A test set.
        settings: Layers and core.
    """
    own_QD = _gradients(questions, questions.itself(), settings, by_itself=True)
    wrong_Q = torch.tensor(questions.base().right_Q == 0)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        found = _find(questions, kind)
        theirs_QD = _gradients(questions, found, settings)
        cosine_Q = torch.nn.functional.cosine_similarity(own_QD, theirs_QD, dim=1).double()
        gold_QN = questions.bank.gold_N[found.rows_QN]
        alike_QN = (gold_QN == questions.own.gold_N[:, None]) & found.present_QN
        share_Q = alike_QN.sum(1).double() / found.present_QN.sum(1).clamp(min=1)
        varies = len(share_Q) > 1 and bool(share_Q.std() > 0) and bool(cosine_Q.std() > 0)
        both = torch.stack([cosine_Q, share_Q])
        rows.append(
            {
                "test": questions.name,
                "neighbours": kind,
                "n": len(cosine_Q),
                "cosine": round(float(cosine_Q.mean()), 4),
                "error": round(float(cosine_Q.std(correction=0) / len(cosine_Q) ** 0.5), 4),
                "cosine_wrong": round(float(cosine_Q[wrong_Q].mean()), 4)
                if wrong_Q.any()
                else None,
                "letter_correlation": round(float(both.corrcoef()[0, 1]), 4) if varies else None,
            }
        )
    return rows


def _find(questions: RemixField, kind: str) -> Neighbourhood:
    number = int(kind.split()[1].strip(","))
    if kind.startswith("random"):
        return questions.random(number, 0)
    return questions.near(number, balanced="spread" in kind)


def _gradients(
    questions: RemixField,
    neighbourhood: Neighbourhood,
    settings: RemixSettings,
    *,
    by_itself: bool = False,
) -> torch.Tensor:
    """First gradients [Q, C x E] of the surrogate by a shift of the router's logits."""
    own = questions.own
    bank = own if by_itself else questions.bank
    engine = questions.engine(settings)
    parts: list[torch.Tensor] = []
    for start in range(0, len(own), CHUNK):
        rows = range(start, min(start + CHUNK, len(own)))
        start_QCE = own.states(rows).pathway_at(engine.layers)
        problem = pose(
            engine,
            bank,
            neighbourhood.take(torch.tensor(list(rows))),
            start_QCE,
            core_experts=settings.core_experts,
        )
        parts.append(_first_gradient(problem))
    return torch.cat(parts)


def _first_gradient(problem: Problem) -> torch.Tensor:
    core_QCE = problem.core_QCE()

    def decode(shift_QCE: torch.Tensor) -> torch.Tensor:
        return shift_logits(problem.start_QCE, shift_QCE, core_QCE, simplex=problem.simplex)

    zeros_QCE = torch.zeros_like(problem.start_QCE)
    _, gradient_QCE = differentiate(problem, zeros_QCE, decode, "straight_through")
    return gradient_QCE.flatten(1).float().cpu()
