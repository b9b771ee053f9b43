"""What became of questions that were re-mixed.

Shapes: Q questions, N neighbours, C critical layers, E experts, O option letters, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...retrieval import Question
from .acceptance import Verdict
from .letters import ALPHABET
from .neighbourhood import Neighbourhood

__all__ = ["Remix", "RemixedBatch", "explain_batch", "join_batches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remix:
    """What became of one question."""

    question_id: str
    before: str
    """Letter by default routing."""
    after: str
    """Letter by the routing that is used: the same where nothing was changed."""
    probabilities_before: tuple[float, ...]
    probabilities_after: tuple[float, ...]
    verdict: Verdict
    neighbours: tuple[tuple[str, float], ...]
    """Ids and similarities of the references that were used, held-back ones last."""
    curve: tuple[float, ...]
    """Surrogate from step to step, in nats; empty where nothing was tried."""
    pathway_before_CE: torch.Tensor
    pathway_after_CE: torch.Tensor
    """Equal where nothing was changed."""

    @property
    def changed(self) -> bool:
        """Whether another routing than the model's own was used."""
        return self.verdict is Verdict.CHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class RemixedBatch:
    """Tensors of a batch of questions; `Remixer.explain` makes them readable."""

    logits_before_QO: torch.Tensor
    logits_after_QO: torch.Tensor
    """Options that a question lacks have −inf."""
    routing_before_QCE: torch.Tensor
    routing_after_QCE: torch.Tensor
    curve_QS: torch.Tensor
    verdicts: tuple[Verdict, ...]
    passes: int
    """Forward passes of one neighbour token, in all."""
    gradients: int
    """How many of them were followed by a backward pass."""
    prepared: int = 0
    """Neighbours whose expert outputs at the first critical layer were needed."""


def explain_batch(
    questions: Sequence[Question],
    references: Sequence[Question],
    neighbourhood: Neighbourhood,
    batch: RemixedBatch,
) -> list[Remix]:
    """What became of each question of a batch.

    Args:
        questions: The batch.
        references: The bank's questions, by row.
        neighbourhood: Who was followed.
        batch: From `Remixer.solve`.
    """
    before_QO = batch.logits_before_QO.softmax(-1)
    after_QO = batch.logits_after_QO.softmax(-1)
    remixes: list[Remix] = []
    for at, question in enumerate(questions):
        number = len(question.options)
        near = [
            (references[row].id, similarity)
            for row, similarity, present in zip(
                neighbourhood.rows_QN[at].tolist(),
                neighbourhood.similarity_QN[at].tolist(),
                neighbourhood.present_QN[at].tolist(),
                strict=True,
            )
            if present
        ]
        curve = [value for value in batch.curve_QS[at].tolist() if value == value]
        remixes.append(
            Remix(
                question_id=question.id,
                before=ALPHABET[int(before_QO[at].argmax())],
                after=ALPHABET[int(after_QO[at].argmax())],
                probabilities_before=tuple(before_QO[at, :number].tolist()),
                probabilities_after=tuple(after_QO[at, :number].tolist()),
                verdict=batch.verdicts[at],
                neighbours=tuple(near),
                curve=tuple(curve),
                pathway_before_CE=batch.routing_before_QCE[at],
                pathway_after_CE=batch.routing_after_QCE[at],
            )
        )
    return remixes


def join_batches(parts: Sequence[RemixedBatch]) -> RemixedBatch:
    """Put batches together; curves that are shorter are filled up with NaN."""
    longest = max(part.curve_QS.shape[1] for part in parts)
    curves = [
        torch.nn.functional.pad(
            part.curve_QS, (0, longest - part.curve_QS.shape[1]), value=torch.nan
        )
        for part in parts
    ]
    return RemixedBatch(
        logits_before_QO=torch.cat([part.logits_before_QO for part in parts]),
        logits_after_QO=torch.cat([part.logits_after_QO for part in parts]),
        routing_before_QCE=torch.cat([part.routing_before_QCE for part in parts]),
        routing_after_QCE=torch.cat([part.routing_after_QCE for part in parts]),
        curve_QS=torch.cat(curves),
        verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
        passes=sum(part.passes for part in parts),
        gradients=sum(part.gradients for part in parts),
        prepared=sum(part.prepared for part in parts),
    )
