"""Policies replayed over recorded answers: who would have been asked, and would the panel have been right?

Q test questions, E experts, k recruits of a question. Nothing here is fitted on the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..agents.adaptive import Adaptive, choose_next
from ..agents.beliefs import Beliefs
from ..agents.calibration import calibrate, expected_calibration_error
from ..agents.outcomes import MISSING, UNREADABLE, OutcomeTable
from ..agents.policies import Call, Policy, recruit_many
from ..agents.posterior import Evidence, chances_of
from ..agents.reason import derive_seed
from ..retrieval import InputError
from .replay import RULES, Replay
from .trial import SkillSource, Trial

__all__ = [
    "FIXED_PANELS",
    "merge_by_posterior",
    "merge_by_vote",
    "replay_adaptive",
    "replay_seed",
]

FIXED_PANELS = 16
"""`top_k_vote` is replayed for every panel up to this size, whatever the calls asked for."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


def replay_seed(
    trial: Trial,
    *,
    policies: Sequence[str],
    calls: Sequence[int],
    skills: SkillSource = "learned",
    seed: int = 0,
) -> tuple[list[Replay], list[str]]:
    """Replay policies with skills, folds and draws of one seed; what could not be replayed is told.

    Raises:
        InputError: an unknown policy, or more calls than there are experts.
    """
    experts = len(trial.test.experts)
    unknown = [policy for policy in policies if policy not in RULES]
    if unknown:
        raise InputError(f'unknown policy "{unknown[0]}"; a study has {", ".join(RULES)}')
    if not calls or not 1 <= min(calls) <= max(calls) <= experts:
        raise InputError(
            f"calls are {', '.join(map(str, calls)) or 'not given'}, but a panel has between 1 and "
            f"{experts} experts here"
        )
    field = _Field.of(trial, skills, seed)
    replays: list[Replay] = []
    lacking: list[str] = []
    for policy in RULES:
        for number in _sizes(policy, calls, trial) if policy in policies else ():
            try:
                replays.append(field.replay(policy, number))
            except InputError as error:  # trimming may leave nobody, in a large pool
                lacking.append(f"{policy} at {number} calls could not be replayed: {error}")
    return replays, lacking


def _sizes(policy: str, calls: Sequence[int], trial: Trial) -> list[int]:
    experts = len(trial.test.experts)
    if RULES[policy] in ("alone", "any"):
        return [1] if RULES[policy] == "alone" else [experts]
    if policy == "top_k_vote" and trial.mergeable:
        return sorted({*range(1, min(experts, FIXED_PANELS) + 1), *calls})
    return sorted(set(calls))


@dataclass(frozen=True, kw_only=True)
class _Field:
    """Everything that the policies of one seed share."""

    trial: Trial
    beliefs: Beliefs
    call: Call
    shuffled: Call
    said_QE: npt.NDArray[np.integer]
    """Labels of the test; no answer is unreadable, for whoever is asked has been asked."""

    @classmethod
    def of(cls, trial: Trial, skills: SkillSource, seed: int) -> _Field:
        learnt, asked = trial.tell_skills(skills, seed)
        profile = replace(trial.profile, skills=tuple(learnt))
        beliefs = calibrate(profile, seed=seed)
        call = Call(
            ids=trial.test.questions,
            skills=asked,
            table=profile,
            beliefs=beliefs,
            k=1,
            seed=seed,
            near_QN=trial.near_QN,
        )
        order = np.random.default_rng(derive_seed(seed, "shuffle")).permutation(len(asked))
        labels_QE = trial.test.labels_NE
        return cls(
            trial=trial,
            beliefs=beliefs,
            call=call,
            shuffled=replace(call, skills=[asked[at] for at in order]),
            said_QE=np.where(labels_QE == MISSING, UNREADABLE, labels_QE),
        )

    def replay(self, policy: str, calls: int) -> Replay:
        rule, right_QE = RULES[policy], self.trial.test.right_NE
        if rule == "any":
            every_QE = np.tile(np.arange(right_QE.shape[1]), (len(right_QE), 1))
            return self._record(policy, calls, np.asarray(right_QE.any(1)), every_QE)
        call = self.shuffled if policy == "skill_shuffled" else self.call
        if policy == "adaptive" and self.trial.mergeable:
            limits = Adaptive.of_mean(calls, len(self.trial.test.experts))
            experts_Qk = replay_adaptive(call, limits, self.trial.test, self.said_QE)
        else:
            experts_Qk = self._recruit(call, policy, calls)
        if not self.trial.mergeable or rule == "alone":
            experts_Qk = experts_Qk[:, :1]
            right_Q = np.take_along_axis(right_QE, experts_Qk, 1)[:, 0]
            return self._record(policy, calls, right_Q, experts_Qk)
        labels_Qk = _take(self.said_QE, experts_Qk)
        confidence_Q = None
        if rule == "vote":
            label_Q = merge_by_vote(labels_Qk)
        else:
            evidence = _gather(call, self.trial.test, self.said_QE, experts_Qk)
            label_Q, confidence_Q = merge_by_posterior(self.beliefs, evidence, labels_Qk)
        right_Q = (label_Q == self.trial.test.gold_N) & (label_Q != UNREADABLE)
        return self._record(policy, calls, right_Q, experts_Qk, confidence_Q)

    def _recruit(self, call: Call, policy: str, calls: int) -> Rows:
        if policy == "best_single_hindsight":
            best = int(self.trial.test.right_NE.mean(0).argmax())
            return np.full((len(call.ids), 1), best, np.intp)
        based_on: dict[str, Policy] = {
            "adaptive": "skill",
            "skill_vote": "skill",
            "skill_shuffled": "skill",
            "top_k_vote": "top_k",
            "random_vote": "random",
            "best_single": "top_k",
        }
        named: Any = based_on.get(policy, policy)
        return recruit_many(replace(call, k=calls), named).experts_Qk

    def _record(
        self,
        policy: str,
        calls: int,
        right_Q: npt.NDArray[np.bool_],
        experts_Qk: Rows,
        confidence_Q: Floats | None = None,
    ) -> Replay:
        asked_Qk = experts_Qk >= 0
        tokens_Qk = _take(self.trial.tokens_QE, experts_Qk) * asked_Qk
        ece = None
        if confidence_Q is not None:
            ece = expected_calibration_error(confidence_Q, right_Q.astype(np.float64))
        return Replay(
            policy=policy,
            calls=calls,
            right_Q=right_Q,
            calls_mean=float(asked_Qk.sum(1).mean()),
            tokens_mean=float(tokens_Qk.sum(1).mean()),
            ece=ece,
        )


def replay_adaptive(
    call: Call, limits: Adaptive, test: OutcomeTable, said_QE: npt.NDArray[np.integer]
) -> Rows:
    """Ask few, then more where that is likeliest to help, as the graph does; the budget is the batch's.

    Args:
        call: Its beliefs, questions and their skills; k is not used.
        limits: Of the panel.
        test: For the number of options; the answers of experts that are not asked are not looked at.
        said_QE: Answers, `UNREADABLE` where there is none.

    Returns:
        Experts [Q, most] in the order in which they are asked, -1 where nobody is.
    """
    first_Qk = recruit_many(replace(call, k=limits.first), "skill").experts_Qk
    experts_Qk = np.full((len(first_Qk), limits.most), -1, np.intp)
    experts_Qk[:, : limits.first] = first_Qk
    count_Q = np.full(len(first_Qk), limits.first)
    for round_ in range(limits.rounds):
        further = choose_next(
            call.beliefs,
            _gather(call, test, said_QE, experts_Qk),
            limits,
            ids=call.ids,
            left=limits.count(len(count_Q)) - int(count_Q.sum()),
            round_=round_,
        )
        for asked in further:
            experts_Qk[asked.row, count_Q[asked.row]] = asked.expert
            count_Q[asked.row] += 1
        if not further:
            break
    return experts_Qk


def merge_by_vote(labels_Qk: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """The most frequent label of each question; the one drawn first in a tie; unreadable ones are no votes."""
    count_Qk = (labels_Qk[:, :, None] == labels_Qk[:, None, :]).sum(2)
    first_Q1 = np.where(labels_Qk >= 0, count_Qk, 0).argmax(1)[:, None]
    label_Q = np.take_along_axis(labels_Qk, first_Q1, 1)[:, 0]
    return np.maximum(label_Q, UNREADABLE)


def merge_by_posterior(
    beliefs: Beliefs, evidence: Evidence, labels_Qk: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.integer], Floats]:
    """The likeliest of the labels that were given, and its chance to be right; as `judge` decides.

    Equal chances go to the label that more experts gave, then to the one given first.
    """
    chances_QM = chances_of(beliefs, evidence)
    named_Qk = labels_Qk >= 0
    chance_Qk = np.take_along_axis(chances_QM, np.maximum(labels_Qk, 0).astype(np.intp), 1)
    chance_Qk = np.where(named_Qk, np.round(chance_Qk, 9), 0.0)
    count_Qk = (labels_Qk[:, :, None] == labels_Qk[:, None, :]).sum(2)
    best_Qk = named_Qk & (chance_Qk == chance_Qk.max(1, keepdims=True))
    place_Q1 = np.where(best_Qk, count_Qk, 0).argmax(1)[:, None]
    label_Q = np.take_along_axis(labels_Qk, place_Q1, 1)[:, 0]
    return np.maximum(label_Q, UNREADABLE), np.take_along_axis(chance_Qk, place_Q1, 1)[:, 0]


def _gather(
    call: Call, test: OutcomeTable, said_QE: npt.NDArray[np.integer], experts_Qk: Rows
) -> Evidence:
    """What the panel's answers say; nobody else's are seen."""
    labels_QE = np.full(said_QE.shape, MISSING)
    rows_N, places_N = np.nonzero(experts_Qk >= 0)
    experts_N = experts_Qk[rows_N, places_N]
    labels_QE[rows_N, experts_N] = said_QE[rows_N, experts_N]
    return Evidence(
        ability_QE=call.beliefs.foresee(call.skills), options_Q=test.options_N, labels_QE=labels_QE
    )


def _take(values_QE: npt.NDArray[Any], experts_Qk: Rows) -> npt.NDArray[Any]:
    """Values of the recruits; `MISSING` where there is none."""
    taken_Qk = np.take_along_axis(values_QE, np.maximum(experts_Qk, 0), 1)
    return np.where(experts_Qk >= 0, taken_Qk, MISSING)
