"""Re-mixing from end to end: neighbours, solver, the gates that keep it harmless, the new answer.

Shapes: Q questions, N neighbours, C critical layers, E experts, O option letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...retrieval import GivenVectors, InputError, Question, ReferenceSet, embedding_text
from .acceptance import Accepted, Verdict, accept, is_near, is_unsure, judge
from .architecture import MoeModel
from .bank import StateBank
from .letters import Letters, mask_options, pad_prompts
from .neighbourhood import Neighbourhood, find_chosen, pose, tabulate_neighbours
from .problem import Problem, Solver, find_core
from .remixed import Remix, RemixedBatch, explain_batch, join_batches
from .settings import RemixSettings
from .solvers import make_solver
from .states import TokenStates, capture, join_states
from .suffix import SuffixEngine

__all__ = ["Remixer"]

CHUNK = 32
"""Questions that are optimised together."""
EXACT = ("full", "hidden")
"""Kinds of states that are as good as a new pass."""


class Remixer:
    """Re-mixes a model's experts for multiple-choice questions. It owns nothing and changes nothing.

    While it works, the model's forward passes are steered by hooks: one thread at a time may use a model.
    """

    def __init__(
        self,
        moe: MoeModel,
        letters: Letters,
        bank: StateBank,
        references: ReferenceSet | None,
        settings: RemixSettings | None = None,
        *,
        solver: Solver | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            moe: The model.
            letters: How it is asked.
            bank: States of the references; those that the model answers right are followed.
            references: The bank's questions, in its order, with their vectors; None to search by the
                model's own hidden state.
            settings: See `RemixSettings`.
            solver: Instead of the one that the settings name.

        Raises:
            InputError: a bank of another first layer, or references that are not the bank's.
        """
        self.settings = settings or RemixSettings()
        self.moe, self.letters, self.bank = moe, letters, bank
        layers = moe.last(self.settings.layers)
        if bank.first != layers[0]:
            raise InputError(
                f"the references' states begin at layer {bank.first}; {self.settings.layers} critical "
                f"layers need them from layer {layers[0]} on, so build them anew."
            )
        core, top_k = self.settings.core_experts, moe.at(layers[0]).rule.top_k
        if core is not None and core < top_k:
            raise InputError(
                f"a core of {core} experts is smaller than the {top_k} that the model turns on; give at "
                f"least {top_k}, or null for all."
            )
        self.engine = SuffixEngine(
            moe,
            layers,
            letters.tokens_O.to(moe.device),
            keeps_mass=self.settings.keeps_mass,
        )
        # Hidden states all point nearly the same way: only what sets them apart tells them apart.
        self._centre_D = bank.input_ND.float().mean(0)
        self._references = references
        # With few right references fewer are fitted to, so that some are left to test a change on.
        left = int(bank.right_N.sum()) - self.settings.held_back
        self._fitted = max(1, min(self.settings.neighbours, left))
        self._known = {question: row for row, question in enumerate(bank.questions)}
        self._by_model = references is None
        if references and [q.id for q in references.questions] != [q.id for q in bank.questions]:
            raise InputError(
                "the reference set and the bank hold different questions; build both anew."
            )
        self.solver = solver or make_solver(self.settings)

    def ask(self, questions: Sequence[Question], *, batch: int = 16) -> TokenStates:
        """Run questions once by default routing and keep what re-mixing needs.

        A question that is itself a reference was run before: its states are taken from the bank, so that
        profiling an expert on its references runs nothing twice.

        Raises:
            InputError: a question that cannot be asked (no options, too long).
        """
        known = self._known if self.bank.kind in EXACT else {}
        old = [place for place, question in enumerate(questions) if question in known]
        new = [place for place, question in enumerate(questions) if question not in known]
        prompts = [self.letters.encode(questions[place]) for place in new]
        parts: list[TokenStates] = []
        for start in range(0, len(prompts), batch):
            ids_BT, mask_BT = pad_prompts(prompts[start : start + batch], self.moe.device)
            parts.append(
                capture(
                    self.moe,
                    ids_BT,
                    mask_BT,
                    first=self.engine.first,
                    tokens_O=self.engine.tokens_O,
                )
            )
        if old:
            parts.append(self.bank.states([known[questions[place]] for place in old]))
        order = torch.tensor([*new, *old], device=self.moe.device).argsort()
        return join_states(parts).take(order)

    @property
    def references(self) -> ReferenceSet:
        """Where neighbours are searched; by the model's own hidden states if nothing else was given."""
        if self._references is None:
            self._references = _embed_by_model(self.bank)
        return self._references

    def check_references(self) -> None:
        """See that there is anybody to follow.

        Raises:
            InputError: the model answers no reference right, or a single one while a change has to help
                another.
        """
        if int(self.bank.right_N.sum()) == 1 and self.settings.held_back:
            raise InputError(
                f"the model answers a single one of the {len(self.bank)} references right, which leaves none "
                "to test a change on; give more references, or set held_back: 0."
            )
        if not bool(self.bank.right_N.any()):
            raise InputError(
                f"the model answers none of the {len(self.bank)} references right, so there is no "
                "successful neighbour to follow; take references that suit it."
            )

    def find(self, questions: Sequence[Question], states: TokenStates) -> Neighbourhood:
        """The neighbours of questions: those to fit to and those held back, right ones only.

        Raises:
            InputError: see `check_references`.
        """
        self.check_references()
        number = self._fitted + self.settings.held_back
        if self._by_model:
            vectors_QD = (states.input_ND.float().cpu() - self._centre_D).numpy()
        else:
            texts = [embedding_text(question) for question in questions]
            vectors_QD = self.references.encoder.encode(texts)
        found = self.references.neighbours_of_vectors(
            questions,
            vectors_QD,
            number,
            cut_off=self.settings.cut_off,
            balanced=self.settings.balanced,
            among=self.bank.right_N.numpy(),
        )
        return tabulate_neighbours(found, number)

    def solve(
        self,
        questions: Sequence[Question],
        states: TokenStates,
        neighbourhood: Neighbourhood,
        *,
        gold_QN: torch.Tensor | None = None,
    ) -> RemixedBatch:
        """Find each question's routing, test it, and answer by it.

        Args:
            questions: Whose options count.
            states: From `ask`.
            neighbourhood: From `find`.
            gold_QN: Other labels of the neighbours than the true ones, for a control.
        """
        parts: list[RemixedBatch] = []
        for start in range(0, len(questions), CHUNK):
            rows_R = torch.arange(start, min(start + CHUNK, len(questions)))
            parts.append(
                self._solve(
                    questions[start : start + CHUNK],
                    states.take(rows_R),
                    neighbourhood.take(rows_R),
                    None if gold_QN is None else gold_QN[rows_R],
                )
            )
        return join_batches(parts)

    def remix(self, questions: Sequence[Question]) -> list[Remix]:
        """Answer questions, with the reasons.

        Raises:
            InputError: no questions, or one that cannot be asked.
        """
        if not questions:
            raise InputError("there is nothing to re-mix: the list of questions is empty.")
        states = self.ask(questions)
        neighbourhood = self.find(questions, states)
        return self.explain(questions, neighbourhood, self.solve(questions, states, neighbourhood))

    def core_of(self, start_QCE: torch.Tensor) -> torch.Tensor:
        """Which experts may be on, by the questions' default routing: bool, [Q, C, E]."""
        core = self.settings.core_experts
        return find_core(start_QCE, core, find_chosen(self.engine, start_QCE))

    def explain(
        self, questions: Sequence[Question], neighbourhood: Neighbourhood, batch: RemixedBatch
    ) -> list[Remix]:
        """A batch, question by question; see `explain_batch`."""
        return explain_batch(questions, self.bank.questions, neighbourhood, batch)

    def answer(
        self,
        states: TokenStates,
        questions: Sequence[Question],
        problem: Problem,
        routing_QCE: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [Q, O] of the questions' own letters under a routing: one token through the suffix."""
        core_QCE = None if problem.core_experts is None else problem.core_QCE()
        with torch.no_grad():
            rows = self.engine.prepare(states, core_QCE)
            return mask_options(self.engine.run(rows, routing_QCE), questions)

    def _solve(
        self,
        questions: Sequence[Question],
        states: TokenStates,
        neighbourhood: Neighbourhood,
        gold_QN: torch.Tensor | None,
    ) -> RemixedBatch:
        settings = self.settings
        start_QCE = states.pathway_at(self.engine.layers)
        before_QO = mask_options(states.logits_NO, questions)
        unsure_Q = is_unsure(before_QO, settings.unsure_below)
        present_QN = neighbourhood.present_QN & (
            neighbourhood.similarity_QN >= settings.min_similarity
        )
        near_Q = is_near(neighbourhood.similarity_QN, settings.min_similarity, present_QN)
        near_Q = near_Q.to(unsure_Q.device)
        rows_R = (unsure_Q & near_Q).nonzero().squeeze(-1)
        after_QO, routing_QCE = before_QO.clone(), start_QCE.clone()
        curve_QS = start_QCE.new_full((len(questions), 1), torch.nan)
        passes = gradients = prepared = 0
        chosen_Q = torch.zeros_like(unsure_Q)
        all_accepted = _nothing(start_QCE, curve_QS)
        if len(rows_R):
            some = replace(neighbourhood, present_QN=present_QN).take(rows_R.cpu())
            gold_RN = None if gold_QN is None else gold_QN[rows_R.cpu()]
            # The nearest are fitted to, the farther ones held back.
            fitted = self._pose(some, start_QCE[rows_R], gold_RN, slice(0, self._fitted))
            solution = self.solver.solve(fitted)
            if settings.held_back:
                held = self._pose(some, start_QCE[rows_R], gold_RN, slice(self._fitted, None))
                accepted = accept(held, solution, margin=settings.margin)
                solution, chosen_R = accepted, accepted.accepted_Q
                all_accepted = _scatter(all_accepted, accepted, rows_R)
            else:
                chosen_R = (solution.routing_QCE != fitted.start_QCE).flatten(1).any(-1)
            chosen_Q[rows_R] = chosen_R
            routing_QCE[rows_R] = solution.routing_QCE
            curve_QS = start_QCE.new_full((len(questions), solution.curve_QS.shape[1]), torch.nan)
            curve_QS[rows_R] = solution.curve_QS
            passes, gradients = solution.passes, solution.gradients
            places = slice(None) if settings.held_back else slice(0, self._fitted)
            prepared = int(some.present_QN[:, places].sum()) if passes else 0
            if bool(chosen_R.any()):
                moved = rows_R[chosen_R]
                asked = [questions[row] for row in moved.tolist()]
                after_QO[moved] = self.answer(
                    states.take(moved),
                    asked,
                    fitted.take(chosen_R.nonzero().squeeze(-1)),
                    solution.routing_QCE[chosen_R],
                )
        verdicts = judge(
            unsure_Q=unsure_Q, near_Q=near_Q, accepted=all_accepted if settings.held_back else None
        )
        if not settings.held_back:
            verdicts = [
                Verdict.NOTHING_GAINED if verdict is Verdict.CHANGED and not chosen else verdict
                for verdict, chosen in zip(verdicts, chosen_Q.tolist(), strict=True)
            ]
        return RemixedBatch(
            logits_before_QO=before_QO,
            logits_after_QO=after_QO,
            routing_before_QCE=start_QCE,
            routing_after_QCE=routing_QCE,
            curve_QS=curve_QS,
            verdicts=tuple(verdicts),
            passes=passes,
            gradients=gradients,
            prepared=prepared,
        )

    def _pose(
        self,
        neighbourhood: Neighbourhood,
        start_QCE: torch.Tensor,
        gold_QN: torch.Tensor | None,
        places: slice,
    ) -> Problem:
        settings = self.settings
        return pose(
            self.engine,
            self.bank,
            neighbourhood.cut(places),
            start_QCE,
            core_experts=settings.core_experts,
            kernel=settings.kernel,
            bandwidth=settings.bandwidth,
            gold_QN=None if gold_QN is None else gold_QN[:, places],
        )


def _embed_by_model(bank: StateBank) -> ReferenceSet:
    """References by the model's own hidden states at the first critical layer (§4.3), centred."""
    vectors = (bank.input_ND.float() - bank.input_ND.float().mean(0)).numpy()
    encoder = GivenVectors(name="hidden-state", revision=f"layer-{bank.first}")
    return ReferenceSet.build(bank.questions, encoder, vectors_ND=vectors)


def _nothing(start_QCE: torch.Tensor, curve_QS: torch.Tensor) -> Accepted:
    no_Q = torch.zeros(len(start_QCE), dtype=torch.bool, device=start_QCE.device)
    return Accepted(
        routing_QCE=start_QCE,
        curve_QS=curve_QS,
        passes=0,
        accepted_Q=no_Q,
        gained_Q=no_Q.clone(),
        fall_Q=start_QCE.new_full(no_Q.shape, torch.nan),
    )


def _scatter(whole: Accepted, part: Accepted, rows_R: torch.Tensor) -> Accepted:
    whole.accepted_Q[rows_R] = part.accepted_Q
    whole.gained_Q[rows_R] = part.gained_Q
    return whole
