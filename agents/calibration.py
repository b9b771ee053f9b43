"""Is an answer that is stated with 70 % confidence right 70 times of 100? Fitting and checking that."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError
from .beliefs import Beliefs
from .outcomes import MISSING, OutcomeTable
from .policies import Call, recruit_by_skill
from .posterior import Evidence, chances_of
from .reason import derive_seed

__all__ = ["calibrate", "expected_calibration_error", "find_gold"]

Floats = npt.NDArray[np.float64]


def calibrate(table: OutcomeTable, *, k: int = 3, folds: int = 5, seed: int = 0) -> Beliefs:
    """Beliefs fitted on a table, with a temperature for panels of k that are held out of the fit.

    Every fold's questions are answered by panels recruited by beliefs that never saw them; the
    temperature is the one under which their right answers are likeliest. Fewer than 10 answered
    questions a fold say too little: the temperature then stays 1.
    """
    beliefs = Beliefs.fit(table)
    # Without the questions that everybody failed at: they would leave a fold with nothing to fit on.
    table = table.select(np.flatnonzero(table.asked_NE.any(1)))
    if len(table) < 10 * folds:
        return beliefs
    order = np.argsort([derive_seed(seed, "fold", qid) for qid in table.questions], kind="stable")
    logs: list[tuple[Floats, npt.NDArray[np.intp]]] = []
    for fold in range(folds):
        held = np.sort(order[fold::folds])
        fitted = Beliefs.fit(table.select(np.setdiff1d(order, held)))
        evidence = _ask_panels(fitted, table.select(held), k, seed)
        chance_QM = chances_of(fitted, evidence)
        gold_Q = find_gold(evidence, table.gold_N[held], chance_QM.shape[1])
        # What is impossible must stay so at any temperature: no floor that counts.
        logs.append((np.log(np.maximum(chance_QM, np.finfo(np.float64).tiny)), gold_Q))
    scored = [(t, sum(_log_score(log / t, gold) for log, gold in logs)) for t in _TEMPERATURES]
    return beliefs.soften(max(scored, key=lambda pair: pair[1])[0])


def expected_calibration_error(confidence_Q: Floats, right_Q: Floats, *, bins: int = 15) -> float:
    """Mean distance of confidence and share right over equal-width bins (Guo et al. 2017); 0 for nothing.

    Raises:
        InputError: a confidence outside [0, 1], or NaN.
    """
    if not len(confidence_Q):
        return 0.0
    if not ((confidence_Q >= 0) & (confidence_Q <= 1 + 1e-9)).all():
        raise InputError("confidences must lie between 0 and 1, and some do not")
    bin_Q = np.minimum((confidence_Q * bins).astype(np.intp), bins - 1)
    count_B = np.bincount(bin_Q, minlength=bins)
    off_B = np.bincount(bin_Q, confidence_Q - right_Q, minlength=bins)
    return float(np.abs(off_B).sum() / count_B.sum())


def find_gold(
    evidence: Evidence, gold_Q: npt.NDArray[np.integer], columns: int
) -> npt.NDArray[np.intp]:
    """The column of `chances_of` that the right answer has: the last where nobody named it."""
    named_Q = (evidence.labels_QE == gold_Q[:, None]).any(1) & (gold_Q >= 0)
    return np.where(named_Q | (evidence.options_Q > 1), gold_Q, columns - 1).astype(np.intp)


_TEMPERATURES = tuple(float(t) for t in np.geomspace(0.5, 4.0, 25))


def _ask_panels(beliefs: Beliefs, table: OutcomeTable, k: int, seed: int) -> Evidence:
    skills = table.skills or ({},) * len(table)
    k = min(k, len(table.experts))
    call = Call(ids=table.questions, skills=skills, table=table, beliefs=beliefs, k=k, seed=seed)
    chosen = recruit_by_skill(call).experts_Qk
    labels_QE = np.full(table.labels_NE.shape, MISSING)
    rows_Q1 = np.arange(len(table))[:, None]
    labels_QE[rows_Q1, chosen] = table.labels_NE[rows_Q1, chosen]
    return Evidence(
        ability_QE=beliefs.foresee(skills), options_Q=table.options_N, labels_QE=labels_QE
    )


def _log_score(logs_QM: Floats, gold_Q: npt.NDArray[np.intp]) -> float:
    top_Q1 = logs_QM.max(1, keepdims=True)
    total_Q = np.log(np.exp(logs_QM - top_Q1).sum(1)) + top_Q1[:, 0]
    return float((logs_QM[np.arange(len(gold_Q)), gold_Q] - total_Q).sum())
