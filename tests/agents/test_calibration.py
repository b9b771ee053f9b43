"""Stated confidence against share right: by hand, and on simulated answers that mislead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from expertmix.agents.beliefs import Beliefs
from expertmix.agents.calibration import calibrate, expected_calibration_error, find_gold
from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable
from expertmix.agents.posterior import Evidence, chances_of
from expertmix.retrieval import InputError


def make_table(
    labels_NE: npt.NDArray[np.integer], *, options: int = 4, gold: int = 0
) -> OutcomeTable:
    number, experts = labels_NE.shape
    return OutcomeTable(
        experts=tuple(f"e{at:02d}" for at in range(experts)),
        questions=tuple(f"q{at:04d}" for at in range(number)),
        labels_NE=labels_NE.astype(np.int16),
        gold_N=np.full(number, gold, np.int16),
        options_N=np.full(number, options, np.int16),
    )


def simulate(number: int, *, groups: int = 3, copies: int = 3, seed: int = 0) -> OutcomeTable:
    """Independent experts, each with exact copies: the model knows one ease for all, no cliques."""
    rng = np.random.default_rng(seed)
    right_NG = rng.random((number, groups)) < 0.6
    labels_NG = np.where(right_NG, 0, rng.integers(1, 4, right_NG.shape))
    return make_table(np.repeat(labels_NG, copies, axis=1))


def ask_all(beliefs: Beliefs, table: OutcomeTable) -> npt.NDArray[np.float64]:
    """Chances of the answers when every expert is asked."""
    evidence = Evidence(
        ability_QE=beliefs.foresee([{}] * len(table)),
        options_Q=table.options_N,
        labels_QE=table.labels_NE,
    )
    return chances_of(beliefs, evidence)


# --- expected calibration error -------------------------------------------------------------------


def test_the_error_is_the_weighted_gap_of_the_bins() -> None:
    # Two bins of equal width: [0, ½) holds 0.2 and 0.4, [½, 1] holds 0.6, 0.8 and 1.
    confidence = np.array([0.2, 0.6, 0.4, 0.8, 1.0])
    right = np.array([0.0, 1.0, 1.0, 0.0, 0.0])
    low, high = abs(0.3 - 0.5) * 2, abs(0.8 - 1 / 3) * 3
    found = expected_calibration_error(confidence, right, bins=2)
    assert found == pytest.approx((low + high) / 5)
    assert expected_calibration_error(confidence, right, bins=1) == pytest.approx(0.6 - 0.4)


def test_a_perfect_statement_has_no_error_and_a_reversed_one_all() -> None:
    sure = np.array([1.0, 1.0, 0.0])
    assert expected_calibration_error(sure, sure) == 0
    assert expected_calibration_error(sure, 1 - sure) == 1
    assert expected_calibration_error(np.zeros(0), np.zeros(0)) == 0


@pytest.mark.parametrize("wrong", [1.2, -0.1, float("nan")])
def test_a_confidence_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        expected_calibration_error(np.array([0.5, wrong]), np.array([1.0, 0.0]))


# --- temperature ----------------------------------------------------------------------------------


def test_experts_that_copy_each_other_raise_the_temperature() -> None:
    table = simulate(600)
    plain, found = Beliefs.fit(table), calibrate(table, k=9)
    assert found.temperature > 1.4
    np.testing.assert_array_equal(found.ability_E, plain.ability_E)
    fresh = simulate(2000, seed=1)
    scores = [np.log(ask_all(beliefs, fresh)[:, 0]).mean() for beliefs in (plain, found)]
    assert scores[1] > scores[0] + 0.02, "right answers are likelier so, on questions not seen"


def test_answers_that_fit_the_model_leave_it_near_1() -> None:
    rng = np.random.default_rng(3)
    z_NE = rng.normal(0, 1.5, (1500, 1)) + np.array([-0.5, 0.0, 0.3, 0.6, 1.0])
    right_NE = rng.random(z_NE.shape) < 1 / (1 + np.exp(-z_NE))
    share_NM = rng.dirichlet([0.5] * 9, 1500)
    wrong_NE = np.array([rng.choice(9, 5, p=share_M) for share_M in share_NM]) + 1
    table = make_table(np.where(right_NE, 0, wrong_NE), options=10)
    found = calibrate(table, k=5)
    assert 0.8 < found.temperature < 1.25
    chance_QM = ask_all(found, table)
    right_Q = (chance_QM.argmax(1) == 0).astype(float)
    assert expected_calibration_error(chance_QM.max(1), right_Q) < 0.05


def test_questions_that_everybody_failed_at_make_no_folds() -> None:
    labels_NE = np.full((60, 2), MISSING)
    labels_NE[7] = 0
    assert calibrate(make_table(labels_NE)).temperature == 1.0
    whole = simulate(200)
    failed = np.full((100, whole.labels_NE.shape[1]), MISSING)
    more = make_table(np.concatenate([whole.labels_NE, failed]))
    assert calibrate(more).temperature == calibrate(whole).temperature


@pytest.mark.parametrize("number", [1, 20, 49])
def test_a_small_table_keeps_1(number: int) -> None:
    assert calibrate(simulate(number), k=9).temperature == 1
    assert calibrate(simulate(60), k=9).temperature > 1


@pytest.mark.parametrize("label", [0, 1, UNREADABLE])
def test_one_class_stays_finite(label: int) -> None:
    for options in (4, 0):
        found = calibrate(make_table(np.full((60, 2), label), options=options))
        assert np.isfinite(found.temperature)
        stated = ask_all(found, make_table(np.full((3, 2), label), options=options))
        assert np.isfinite(stated).all()


def test_a_panel_larger_than_the_pool_is_the_pool() -> None:
    table = simulate(100, copies=1)
    assert calibrate(table, k=7).temperature == calibrate(table, k=3).temperature


def test_the_seed_decides_the_folds_and_the_order_of_questions_nothing() -> None:
    table = simulate(150)
    order = np.random.default_rng(1).permutation(150)
    one, same, moved = calibrate(table), calibrate(table), calibrate(table.select(order))
    assert one.temperature == same.temperature == moved.temperature


def test_options_that_do_not_exist_do_not_count_against_a_high_temperature() -> None:
    """A question of 500 options, that nobody was asked, brings columns that are no answers to the others."""
    table = simulate(101, copies=10)
    labels_NE = table.labels_NE.copy()
    labels_NE[-1] = MISSING
    found: list[float] = []
    for last in (4, 500):
        options_N = np.array([4] * 100 + [last], np.int16)
        given = replace(table, labels_NE=labels_NE, options_N=options_N)
        found.append(calibrate(given, k=30).temperature)
    assert found[0] == found[1] > 3


# --- where the right answer stands ----------------------------------------------------------------


def test_the_right_answer_of_a_choice_is_its_option_and_of_an_open_question_what_was_named() -> (
    None
):
    evidence = Evidence(
        ability_QE=np.zeros((5, 2)),
        options_Q=np.array([4, 0, 0, 0, 0]),
        labels_QE=np.array([[0, 1], [3, 1], [0, 1], [UNREADABLE, MISSING], [UNREADABLE, 0]]),
    )
    gold_Q = np.array([2, 3, 2, 0, UNREADABLE])
    assert find_gold(evidence, gold_Q, 6).tolist() == [2, 3, 5, 5, 5]
