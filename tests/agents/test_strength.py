"""Shrunk shares right: by hand, against known quantiles, and with the little that may be known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable, SkillWeights
from expertmix.agents.strength import Strengths, beta_interval, fit_prior, weigh_skills
from expertmix.retrieval import InputError

R, W = 0, 1  # the labels of a right and of a wrong answer


def make_table(labels: npt.ArrayLike, *skills: SkillWeights) -> OutcomeTable:
    labels_NE = np.array(labels, np.int16)
    number, experts = labels_NE.shape
    return OutcomeTable(
        experts=tuple(f"e{at}" for at in range(experts)),
        questions=tuple(f"q{at:03d}" for at in range(number)),
        labels_NE=labels_NE,
        gold_N=np.zeros(number, np.int16),
        options_N=np.full(number, 4, np.int16),
        skills=skills,
    )


def test_an_estimate_is_shrunk_to_neighbours_and_those_to_overall() -> None:
    # Two questions of law alone, one of law and art in equal parts, one of nothing known.
    skills = ({"law": 1.0}, {"law": 1.0}, {"law": 0.5, "art": 0.5}, {})
    fitted = Strengths.fit(make_table([[R], [R], [W], [W]], *skills))
    overall = (2 + 1) / (4 + 2)
    assert fitted.overall_E[0] == overall
    assert fitted.skills == ("art", "law")
    # The cosine of the questions that art (0, 0, ½) and law (1, 1, ½) come with.
    near = 0.25 / (0.5 * 1.5)
    art_prior = (near * 2 + 5 * overall) / (near * 2.5 + 5)  # its own answers are no prior of it
    law_prior = (near * 0 + 5 * overall) / (near * 0.5 + 5)
    worth = fitted.prior
    art = (0 + worth * art_prior) / (0.5 + worth)
    law = (2 + worth * law_prior) / (2.5 + worth)
    np.testing.assert_allclose(fitted.skill_ES, [[art, law]], rtol=1e-12)
    expected = [[0.3 * art + 0.6 * law + 0.1 * overall], [0.4 * law + 0.6 * overall], [overall]]
    asked = fitted.estimate([{"law": 0.6, "art": 0.3}, {"law": 0.4, "poetry": 0.6}, {}])
    np.testing.assert_allclose(asked, expected, rtol=1e-12)


def test_two_lucky_answers_do_not_make_an_expert() -> None:
    labels = [[R]] * 2 + [[R]] * 10 + [[W]] * 90
    fitted = Strengths.fit(make_table(labels, *[{"law": 1.0}] * 2, *[{"art": 1.0}] * 100))
    law = fitted.estimate([{"law": 1.0}])[0, 0]
    assert fitted.overall_E[0] < law < 0.6


def test_more_answers_of_the_same_share_count_for_more() -> None:
    def law(times: int) -> float:
        labels = [[R]] * times + [[W]] * 40
        skills = [{"law": 1.0}] * times + [{"art": 1.0}] * 40
        fitted = Strengths.fit(make_table(labels, *skills))
        return fitted.skill_ES[0, 1] - fitted.overall_E[0]

    assert law(2) < law(10)


def test_unreadable_is_wrong_and_missing_does_not_count() -> None:
    labels = [[R, R], [UNREADABLE, MISSING], [R, R]]
    fitted = Strengths.fit(make_table(labels, *[{"law": 1.0}] * 3))
    assert fitted.overall_E.tolist() == [3 / 5, 3 / 4]
    assert fitted.total_ES.tolist() == [[3.0], [2.0]]
    assert fitted.asked_E.tolist() == [3.0, 2.0]


def test_an_expert_without_rows_is_worth_a_half_with_a_wide_interval() -> None:
    fitted = Strengths.fit(make_table([[R, MISSING], [W, MISSING]], {"law": 1.0}, {}))
    assert fitted.estimate([{"law": 1.0}, {}])[:, 1].tolist() == [0.5, 0.5]
    assert fitted.interval("e1") == pytest.approx((0.025, 0.975), abs=1e-3)


def test_a_table_without_skills_knows_overall_shares() -> None:
    fitted = Strengths.fit(make_table([[R, W], [R, R]]))
    assert fitted.skills == ()
    assert fitted.estimate([{}, {"law": 1.0}]).tolist() == [[3 / 4, 2 / 4]] * 2
    assert fitted.estimate([]).shape == (0, 2)


def test_no_order_of_questions_changes_an_estimate() -> None:
    skills = [{"law": 0.7, "art": 0.3}, {"art": 1.0}, {}, {"law": 1.0}]
    labels = [[R, W], [W, W], [R, R], [MISSING, R]]
    table = make_table(labels, *skills)
    one = Strengths.fit(table)
    other = Strengths.fit(table.select([3, 1, 0, 2]))
    np.testing.assert_allclose(one.skill_ES, other.skill_ES, rtol=1e-12)


def test_specialists_are_known_by_their_own_answers_and_equals_borrow() -> None:
    total_ES = np.full((4, 6), 12.0)
    prior_ES = np.full((4, 6), 0.5)
    specialists = np.where(np.eye(4, 6, dtype=bool), 12.0, 5.0)
    specialists[:, 4:] = 0.0
    alike = np.full((4, 6), 6.0)
    assert fit_prior(specialists, total_ES, prior_ES) <= 5
    assert fit_prior(alike, total_ES, prior_ES) == 100
    assert fit_prior(alike, 0 * total_ES, prior_ES) == 100, "nothing was seen"


def test_the_prior_is_the_likeliest_for_simulated_experts() -> None:
    chance = np.random.default_rng(0)
    for worth in (3.0, 20.0):
        share_ES = chance.beta(0.4 * worth, 0.6 * worth, (40, 20))
        right_ES = chance.binomial(30, share_ES).astype(float)
        found = fit_prior(right_ES, np.full((40, 20), 30.0), np.full((40, 20), 0.4))
        assert worth / 1.7 <= found <= worth * 1.8


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [  # quantiles 0.025 and 0.975, from scipy 1.17.1
        (2, 3, 0.06759, 0.80588),
        (1, 1, 0.025, 0.975),
        (0.5, 0.5, 0.00154, 0.99846),
        (3000, 2000, 0.58639, 0.61354),
        (0.2, 5, 0.00000, 0.27900),
        (0.05, 5, 0.00000, 0.11746),
        (5, 0.05, 0.88254, 1.00000),
        (0.3, 100, 0.00000, 0.01889),
    ],
)
def test_intervals_are_those_of_the_beta_distribution(
    a: float, b: float, low: float, high: float
) -> None:
    assert beta_interval(a, b) == pytest.approx((low, high), abs=5e-4)


def test_a_wider_interval_holds_more_mass() -> None:
    assert beta_interval(1, 1, mass=0.5) == pytest.approx((0.25, 0.75), abs=5e-4)


@given(st.floats(0.03, 1e4), st.floats(0.03, 1e4))
def test_an_interval_is_ordered_and_mirrors(a: float, b: float) -> None:
    low, high = beta_interval(a, b)
    assert 0 <= low < high <= 1
    assert beta_interval(b, a) == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_an_interval_at_a_skill_shrinks_as_answers_come_and_holds_the_estimate() -> None:
    def interval(times: int) -> tuple[float, float]:
        table = make_table([[R]] * times + [[W]] * times, *[{"law": 1.0}] * (2 * times))
        return Strengths.fit(table).interval("e0", "law")

    assert interval(3)[0] < interval(30)[0] < 0.5 < interval(30)[1] < interval(3)[1]


def test_the_interval_of_a_skill_never_seen_is_that_over_everything() -> None:
    fitted = Strengths.fit(make_table([[R], [W], [W]], *[{"law": 1.0}] * 3))
    assert fitted.interval("e0", "poetry") == fitted.interval("e0")
    assert fitted.interval("e0") == pytest.approx((0.06759, 0.80588), abs=5e-4)  # Beta(2, 3)
    assert fitted.interval("e0", "law") != fitted.interval("e0")
    with pytest.raises(InputError, match='no expert "bob"; there are e0'):
        fitted.interval("bob", "law")


# --- shares of skills -----------------------------------------------------------------------------


def test_shares_become_a_matrix_without_strangers() -> None:
    skills = [{"law": 0.6, "poetry": 0.3}, {}, {"art": 1.0}]
    assert weigh_skills(skills, ["art", "law"]).tolist() == [[0, 0.6], [0, 0], [1, 0]]
    assert weigh_skills([], ["art"]).shape == (0, 1)
    assert weigh_skills([{"law": 1.0}], []).shape == (1, 0)


@pytest.mark.parametrize(
    "weights",
    [
        {"law": float("nan")},
        {"law": -0.1},
        {"law": 0.9, "art": -0.1},
        {"law": 0.7, "art": 0.4},
        {"law": 0.7, "poetry": 0.4},
        {"law": float("inf")},
        {"law": float("inf"), "art": float("-inf")},
    ],
)
def test_shares_that_are_no_shares_are_refused(weights: SkillWeights) -> None:
    with pytest.raises(InputError, match="shares of skills must be at least 0 and sum to at most"):
        weigh_skills([{"law": 1.0}, weights], ["art", "law"])
    with pytest.raises(InputError, match="shares of skills"):
        Strengths.fit(make_table([[R], [W]], {"law": 1.0}, weights))


def test_shares_that_were_rounded_may_pass_one() -> None:
    thirds = {"a": 0.333334, "b": 0.333333, "c": 0.333333 + 5e-7}
    assert weigh_skills([thirds], ["a", "b", "c"]).sum() > 1
