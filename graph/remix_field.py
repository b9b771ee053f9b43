"""A set of questions with their states, and what a re-mixing method makes of it.

Shapes: Q questions, N neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ..agents.moe.acceptance import Verdict
from ..agents.moe.bank import StateBank
from ..agents.moe.letters import ALPHABET, mask_options
from ..agents.moe.neighbourhood import Neighbourhood, tabulate_neighbours
from ..agents.moe.problem import Solver
from ..agents.moe.remix import Remixer
from ..agents.moe.remixed import RemixedBatch
from ..agents.moe.settings import RemixSettings
from ..agents.moe.suffix import SuffixEngine
from ..retrieval import Question, ReferenceSet

__all__ = ["RemixField", "RemixReplay", "shuffle_labels"]

CHUNK = 64
"""Questions whose states are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemixReplay:
    """What one method came to, question by question."""

    right_Q: npt.NDArray[np.float64]
    """1 for a right answer."""
    accepted_Q: npt.NDArray[np.bool_]
    """Whether another routing than the default one was used."""
    letters_Q: tuple[str, ...]
    passes: int = 0
    """Forward passes of one neighbour token, in all questions together."""
    gradients: int = 0
    prepared: int = 0
    """Neighbours whose expert outputs at the first critical layer were computed, in all."""
    near_tokens: float = 0.0
    """Mean length of the prompts of those that were followed."""
    last_runs: int = 0
    """Questions whose own last token was run again, under the new routing."""
    prompt_tokens: tuple[int, ...] = ()
    """Lengths of the prompts, where they are not the plain ones."""


class RemixField:
    """Questions that are answered again and again, by every method, from the same cached states."""

    def __init__(
        self, name: str, questions: StateBank, bank: StateBank, references: ReferenceSet
    ) -> None:
        """Store what is needed.

        Args:
            name: Of the set, for the table.
            questions: The questions' own states and gold answers.
            bank: The references' states; may be the same (each question is then left out itself).
            references: The bank's questions with their vectors.
        """
        self.name, self.own, self.bank, self.references = name, questions, bank, references
        self._vectors_QD: npt.NDArray[np.float32] | None = None
        self._found: dict[tuple[object, ...], Neighbourhood] = {}

    @property
    def questions(self) -> Sequence[Question]:
        """In the order of everything else."""
        return self.own.questions

    @property
    def margin_Q(self) -> npt.NDArray[np.float64]:
        """How sure the model is by default: the difference of its two likeliest options' probabilities."""
        best_Q2 = self.own.logits_NO.softmax(-1).topk(2, dim=-1).values
        return (best_Q2[:, 0] - best_Q2[:, 1]).double().numpy()

    def base(self) -> RemixReplay:
        """The model as it is."""
        return self.read(self.own.logits_NO, np.zeros(len(self.own), dtype=bool))

    def near(
        self, number: int, *, right_only: bool = True, balanced: bool = False
    ) -> Neighbourhood:
        """The nearest references, each question itself left out by the leakage guard."""
        key = ("near", number, right_only, balanced)
        if key not in self._found:
            found = self.references.neighbours_of_vectors(
                self.questions,
                self._vectors(),
                number,
                among=self.bank.right_N.numpy() if right_only else None,
                balanced=balanced,
            )
            self._found[key] = tabulate_neighbours(found, number)
        return self._found[key]

    def random(self, number: int, seed: int) -> Neighbourhood:
        """References drawn at random under the same guard: a control."""
        key = ("random", number, seed)
        if key not in self._found:
            found = self.references.random_neighbours(
                self.questions,
                number,
                seed,
                vectors_QD=self._vectors(),
                among=self.bank.right_N.numpy(),
            )
            drawn = tabulate_neighbours(found, number)
            # All count alike: their similarities say nothing.
            self._found[key] = replace(drawn, similarity_QN=torch.zeros_like(drawn.similarity_QN))
        return self._found[key]

    def itself(self) -> Neighbourhood:
        """Each question as its own neighbour, for the oracle."""
        number = len(self.own)
        return Neighbourhood(
            rows_QN=torch.arange(number)[:, None],
            similarity_QN=torch.ones(number, 1, dtype=torch.float64),
            present_QN=torch.ones(number, 1, dtype=torch.bool),
            dropped={},
        )

    def remix(
        self,
        settings: RemixSettings,
        neighbourhood: Neighbourhood,
        *,
        solver: Solver | None = None,
        gold_QN: torch.Tensor | None = None,
        by_itself: bool = False,
    ) -> RemixReplay:
        """Answer every question by re-mixing.

        Args:
            settings: See there; those of the gates apply.
            neighbourhood: Whom to follow.
            solver: Instead of the settings' own.
            gold_QN: Other labels for the neighbours.
            by_itself: Whether the neighbourhood's rows are the questions' own (the oracle).
        """
        bank = self.own if by_itself else self.bank
        references = None if by_itself else self.references
        remixer = Remixer(bank.moe, bank.letters, bank, references, settings, solver=solver)
        parts: list[RemixedBatch] = []
        for start in range(0, len(self.own), CHUNK):
            rows = range(start, min(start + CHUNK, len(self.own)))
            rows_R = torch.tensor(list(rows))
            parts.append(
                remixer.solve(
                    [self.questions[row] for row in rows],
                    self.own.states(rows),
                    neighbourhood.take(rows_R),
                    gold_QN=None if gold_QN is None else gold_QN[rows_R],
                )
            )
        logits_QO = torch.cat([part.logits_after_QO for part in parts])
        verdicts = [verdict for part in parts for verdict in part.verdicts]
        accepted_Q = np.array([verdict is Verdict.CHANGED for verdict in verdicts])
        replay = self.read(logits_QO, accepted_Q)
        return replace(
            replay,
            passes=sum(part.passes for part in parts),
            gradients=sum(part.gradients for part in parts),
            prepared=sum(part.prepared for part in parts),
            near_tokens=float((bank.lengths_N + 1).double().mean()),
            last_runs=int(accepted_Q.sum()),
        )

    def engine(self, settings: RemixSettings) -> SuffixEngine:
        """Runs the critical layers that the settings name."""
        moe, tokens_O = self.own.moe, self.own.letters.tokens_O
        layers = moe.last(settings.layers)
        return SuffixEngine(moe, layers, tokens_O.to(moe.device), keeps_mass=settings.keeps_mass)

    def unchanged(self, settings: RemixSettings) -> RemixReplay:
        """Every question's own routing, run through the suffix: what re-mixing does to numbers alone."""
        own, engine = self.own, self.engine(settings)
        parts: list[torch.Tensor] = []
        for start in range(0, len(own), CHUNK):
            rows = range(start, min(start + CHUNK, len(own)))
            states = own.states(rows)
            with torch.no_grad():
                logits_QO = engine.run(engine.prepare(states), states.pathway_at(engine.layers))
            parts.append(mask_options(logits_QO, [self.questions[row] for row in rows]).cpu())
        replay = self.read(torch.cat(parts), np.zeros(len(own), dtype=bool))
        return replace(replay, last_runs=len(own))

    def read(self, logits_QO: torch.Tensor, accepted_Q: npt.NDArray[np.bool_]) -> RemixReplay:
        """A replay from the logits of the options."""
        best_Q = logits_QO.argmax(-1)
        return RemixReplay(
            right_Q=(best_Q == self.own.gold_N).double().numpy(),
            accepted_Q=accepted_Q,
            letters_Q=tuple(ALPHABET[place] for place in best_Q.tolist()),
        )

    def _vectors(self) -> npt.NDArray[np.float32]:
        if self._vectors_QD is None:
            from ..retrieval.references import embedding_text

            texts = [embedding_text(question) for question in self.questions]
            self._vectors_QD = self.references.encoder.encode(texts)
        return self._vectors_QD


def shuffle_labels(bank: StateBank, neighbourhood: Neighbourhood, seed: int) -> torch.Tensor:
    """Wrong labels [Q, N]: for each reference another of its own options, once per seed."""
    labels: list[int] = []
    for question, gold in zip(bank.questions, bank.gold_N.tolist(), strict=True):
        digest = hashlib.sha256(f"{seed}\0{question.id}".encode()).digest()
        step = 1 + int.from_bytes(digest[:4], "big") % (len(question.options) - 1)
        labels.append((gold + step) % len(question.options))
    return torch.tensor(labels)[neighbourhood.rows_QN]
