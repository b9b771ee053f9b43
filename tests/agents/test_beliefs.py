"""The fitted model: it finds what was put in, sits at its optimum, and stays finite with next to nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from expertmix.agents.beliefs import (
    OPEN_OPTIONS,
    Beliefs,
    correlate_errors,
    count_options,
    fit_abilities,
    fit_concentration,
)
from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable, SkillWeights
from expertmix.retrieval import InputError

Floats = npt.NDArray[np.float64]
GRID = np.linspace(-8, 8, 401)


def make_table(
    labels: npt.ArrayLike, *, options: int = 4, skills: tuple[SkillWeights, ...] = ()
) -> OutcomeTable:
    labels_NE = np.array(labels, np.int16)
    number, experts = labels_NE.shape
    return OutcomeTable(
        experts=tuple(f"e{at}" for at in range(experts)),
        questions=tuple(f"q{at:04d}" for at in range(number)),
        labels_NE=labels_NE,
        gold_N=np.zeros(number, np.int16),
        options_N=np.full(number, options, np.int16),
        skills=skills,
    )


def simulate(
    ability_E: Floats, slope_E: Floats, *, number: int, seed: int = 0, options: int = 10
) -> OutcomeTable:
    """Answers drawn from the model, wrong ones evenly."""
    rng = np.random.default_rng(seed)
    ease_N1 = rng.normal(size=(number, 1))
    chance_NE = 1 / (1 + np.exp(-(ability_E + slope_E * ease_N1)))
    right_NE = rng.random(chance_NE.shape) < chance_NE
    wrong_NE = rng.integers(1, options, chance_NE.shape)
    return make_table(np.where(right_NE, 0, wrong_NE), options=options)


# --- ability and slope ----------------------------------------------------------------------------


def test_simulated_abilities_and_slopes_are_recovered() -> None:
    ability_E = np.array([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0])
    slope_E = np.array([0.8, 1.2, 1.5, 2.0, 1.0, 1.5])
    found_E, steep_E = fit_abilities(simulate(ability_E, slope_E, number=6000))
    np.testing.assert_allclose(found_E, ability_E, atol=0.15)
    np.testing.assert_allclose(steep_E, slope_E, atol=0.2)


def objective(ability_E: Floats, slope_E: Floats, labels_NE: npt.NDArray[np.int16]) -> float:
    """Log-posterior as the module states it, written once more; the common slope at its best.

    The same quadrature as the fit: of nine points, for which no outside value exists.
    """
    nodes_K, mass_K = np.polynomial.hermite_e.hermegauss(9)
    mass_K = mass_K / mass_K.sum()
    common = (slope_E.sum() / 0.25 + 1.5) / (len(slope_E) / 0.25 + 1)
    value = -((common - 1.5) ** 2) / 2
    for ability, slope in zip(ability_E, slope_E, strict=True):
        value += -(ability**2) / 8 - (slope - common) ** 2 / 0.5
    for row in labels_NE:
        chance_K = mass_K.copy()
        for expert, label in enumerate(row):
            if label >= 0:
                hit_K = 1 / (1 + np.exp(-(ability_E[expert] + slope_E[expert] * nodes_K)))
                chance_K *= hit_K if label == 0 else 1 - hit_K
        value += math.log(chance_K.sum())
    return value


def gradients(
    ability_E: Floats, slope_E: Floats, labels_NE: npt.NDArray[np.int16], step: float = 1e-4
) -> tuple[Floats, Floats]:
    """By finite differences."""

    def differ(by_ability: Floats, by_slope: Floats) -> float:
        up = objective(ability_E + by_ability, slope_E + by_slope, labels_NE)
        down = objective(ability_E - by_ability, slope_E - by_slope, labels_NE)
        return (up - down) / (2 * step)

    none, each = np.zeros(len(ability_E)), np.eye(len(ability_E)) * step
    return (
        np.array([differ(one, none) for one in each]),
        np.array([differ(none, one) for one in each]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_an_optimum_of_the_stated_posterior(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ability_E, slope_E = rng.normal(0, 1, 4), rng.uniform(0.5, 2.5, 4)
    table = simulate(ability_E, slope_E, number=150, seed=seed)
    labels_NE = table.labels_NE.copy()
    labels_NE[rng.random(labels_NE.shape) < 0.2] = MISSING
    labels_NE[rng.random(labels_NE.shape) < 0.1] = UNREADABLE
    by_ability, by_slope = gradients(*fit_abilities(make_table(labels_NE)), labels_NE)
    assert np.abs([by_ability, by_slope]).max() < 0.02
    off, _ = gradients(np.zeros(4), np.full(4, 1.5), labels_NE)
    assert np.abs(off).max() > 1, "elsewhere the gradient is large"


def test_an_expert_that_errs_where_others_do_not_is_held_at_slope_0() -> None:
    rng = np.random.default_rng(0)
    easy_N = rng.random(300) < 0.5
    others_NE = rng.random((300, 3)) < np.where(easy_N, 0.9, 0.2)[:, None]
    contrary_N = rng.random(300) < np.where(easy_N, 0.1, 0.8)
    labels_NE = 1 - np.column_stack([contrary_N, others_NE]).astype(np.int16)
    ability_E, slope_E = fit_abilities(make_table(labels_NE))
    assert slope_E[0] == 0
    by_ability, by_slope = gradients(ability_E, slope_E, labels_NE)
    assert np.abs(by_ability).max() < 0.05, "the ability is the best for the slope that is held"
    assert np.abs(by_slope[1:]).max() < 0.05
    assert by_slope[0] < 0, "only a slope below 0 would be better"


def test_unreadable_replies_change_readability_and_not_ability() -> None:
    readable = simulate(np.array([0.0, 1.0]), np.array([1.0, 1.0]), number=60)
    labels_NE = np.concatenate([readable.labels_NE, np.full((40, 2), UNREADABLE)])
    labels_NE[60:, 1] = MISSING
    one, other = Beliefs.fit(readable), Beliefs.fit(make_table(labels_NE, options=10))
    np.testing.assert_allclose(one.ability_E, other.ability_E, atol=1e-9)
    assert other.readable_E.tolist() == [61 / 101, 1.0]
    assert one.readable_E.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("label", [0, 1, UNREADABLE])
@pytest.mark.parametrize("options", [0, 2, 10])
@pytest.mark.parametrize("number", [1, 30, 2000])
def test_a_reference_set_of_one_class_stays_finite(label: int, options: int, number: int) -> None:
    fitted = Beliefs.fit(make_table(np.full((number, 3), label), options=options))
    numbers = [
        fitted.ability_E,
        fitted.slope_E,
        fitted.readable_E,
        fitted.alike_EE,
        [fitted.concentration],
        fitted.expect([{}, {"law": 1.0}]),
    ]
    assert all(np.isfinite(part).all() for part in numbers)
    assert (fitted.slope_E >= 0).all()
    chance = fitted.expect([{}])[0, 0]
    # One reply says little about whether the next one can be read.
    least = 0.5 if number > 1 else 0.3
    assert (chance > least) if label == 0 else (chance < 0.5 or label == UNREADABLE)


def test_replies_can_be_read_though_nobody_knew_the_answer() -> None:
    table = make_table(np.arange(120).reshape(40, 3) % 4, options=0)
    unknown = replace(table, gold_N=np.full(40, UNREADABLE, np.int16))
    assert not unknown.right_NE.any()
    for gold in (UNREADABLE, MISSING):
        fitted = Beliefs.fit(replace(table, gold_N=np.full(40, gold, np.int16)))
        assert (fitted.legible.overall_E > 0.95).all()


def test_an_expert_without_rows_takes_the_prior_and_spoils_nothing() -> None:
    two = simulate(np.array([0.0, 1.0]), np.array([1.0, 2.0]), number=200)
    with_new = make_table(np.column_stack([two.labels_NE, np.full(200, MISSING)]), options=10)
    fitted, plain = Beliefs.fit(with_new), Beliefs.fit(two)
    assert fitted.ability_E[2] == pytest.approx(0, abs=1e-9)
    assert fitted.slope_E[2] == pytest.approx(fitted.slope_E.mean(), abs=0.3)
    assert fitted.readable_E[2] == 1
    assert fitted.alike_EE[2].tolist() == [0, 0, 0]
    np.testing.assert_allclose(fitted.ability_E[:2], plain.ability_E, atol=0.02)
    assert fitted.expect([{"law": 1.0}])[0, 2] == pytest.approx(0.25), (
        "neither whether it answers nor whether it is right is known"
    )


def test_a_table_without_any_answer_says_what_to_do() -> None:
    with pytest.raises(InputError, match="holds no answers; run `expertmix profile` again"):
        Beliefs.fit(make_table(np.full((3, 2), MISSING)))
    with pytest.raises(InputError, match="holds no answers"):
        Beliefs.fit(make_table(np.zeros((0, 2))))


def test_no_order_of_questions_or_of_experts_changes_the_fit() -> None:
    table = simulate(np.array([-1.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.5]), number=120)
    one = Beliefs.fit(table)
    other = Beliefs.fit(make_table(table.labels_NE[::-1, ::-1], options=10))
    np.testing.assert_allclose(one.ability_E, other.ability_E[::-1], atol=1e-9)
    np.testing.assert_allclose(one.slope_E, other.slope_E[::-1], atol=1e-9)
    np.testing.assert_allclose(one.alike_EE, other.alike_EE[::-1, ::-1], atol=1e-12)
    assert one.concentration == other.concentration


# --- what a question's skills let expect ----------------------------------------------------------


def test_expectation_is_the_integral_over_ease() -> None:
    ability_E, slope_E = np.array([-1.0, 0.5, 2.0]), np.array([0.5, 1.5, 2.0])
    table = simulate(ability_E, slope_E, number=400)
    fitted = Beliefs.fit(table)
    density_G = np.exp(-(GRID**2) / 2) / math.sqrt(2 * math.pi) * (GRID[1] - GRID[0])
    z_EG = fitted.ability_E[:, None] + fitted.slope_E[:, None] * GRID
    exact_E = (1 / (1 + np.exp(-z_EG))) @ density_G
    found_E = fitted.expect([{}])[0]
    np.testing.assert_allclose(found_E, exact_E * fitted.readable_E, atol=0.02)
    share_E = table.right_NE.mean(0)
    np.testing.assert_allclose(found_E, share_E, atol=0.03)


def test_skills_tell_experts_apart_more_than_they_tell_questions_apart() -> None:
    # Both are good at law and bad at art, but e0 far better at law than e1.
    labels = [[0, 0]] * 15 + [[0, 1]] * 20 + [[1, 0]] * 5 + [[1, 1]] * 40
    skills = ({"law": 1.0},) * 40 + ({"art": 1.0},) * 40
    fitted = Beliefs.fit(make_table(labels, skills=skills))
    law, art, nothing = fitted.foresee([{"law": 1.0}, {"art": 1.0}, {}])
    np.testing.assert_allclose(nothing, fitted.ability_E, atol=1e-12)
    strengths = fitted.strengths

    def logit(share: Floats) -> Floats:
        return np.log(share / (1 - share))

    moved = logit(strengths.skill_ES[:, 1]) - logit(strengths.overall_E)
    steep = np.sqrt(1 + math.pi / 8 * fitted.slope_E**2)
    np.testing.assert_allclose(law - nothing, (moved - moved.mean() / 2) * steep, atol=1e-9)
    assert law[0] - law[1] > nothing[0] - nothing[1] > art[0] - art[1]


# --- crowding of wrong answers --------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [0.15, 0.5, 2.0])
@pytest.mark.parametrize("options", [10, 0])
def test_a_simulated_concentration_is_recovered(concentration: float, options: int) -> None:
    rng = np.random.default_rng(1)
    others = (options or OPEN_OPTIONS) - 1
    share_NM = rng.dirichlet(np.full(others, concentration), 1500)
    drawn_NE = np.array([rng.choice(others, 6, p=share_M) for share_M in share_NM]) + 1
    labels_NE = np.where(rng.random(drawn_NE.shape) < 0.3, 0, drawn_NE)
    found = fit_concentration(make_table(labels_NE, options=options))
    assert found == pytest.approx(concentration, rel=0.25)


def test_without_wrong_answers_the_concentration_is_that_of_its_prior() -> None:
    assert fit_concentration(make_table(np.zeros((5, 3)))) == pytest.approx(1, rel=0.01)


def test_the_numbers_of_wrong_answers_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    labels_NE = rng.integers(0, 9, (60, 5))
    other_NE = np.where(labels_NE > 0, 9 - labels_NE, 0)
    one, other = (fit_concentration(make_table(x, options=10)) for x in (labels_NE, other_NE))
    assert one == other


def test_questions_without_options_count_as_if_they_had_many() -> None:
    assert count_options(np.array([0, 1, 2, 10])).tolist() == [OPEN_OPTIONS, OPEN_OPTIONS, 2, 10]


# --- errors alike ---------------------------------------------------------------------------------


def test_correlations_are_those_of_numpy_where_all_were_asked() -> None:
    rng = np.random.default_rng(3)
    table = make_table(rng.integers(0, 3, (80, 5)))
    expected = np.corrcoef(table.right_NE.astype(float).T)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(correlate_errors(table, shrink=0), expected, atol=1e-12)
    np.testing.assert_allclose(correlate_errors(table), expected * 80 / 90, atol=1e-12)


def test_only_questions_that_both_answered_count() -> None:
    # e0 and e1 have the rows 1 to 5 in common; e2 has none with anybody.
    labels = [[0, MISSING, MISSING], [0, 0, MISSING], [0, 0, MISSING], [1, 1, MISSING]]
    labels += [[0, 1, MISSING], [1, UNREADABLE, MISSING], [MISSING, MISSING, 0]]
    common = np.array([[1, 1, 0, 1, 0], [1, 1, 0, 0, 0]], float)
    expected = np.corrcoef(common)[0, 1] * 5 / (5 + 10)
    found = correlate_errors(make_table(labels))
    np.testing.assert_allclose(found, [[0, expected, 0], [expected, 0, 0], [0, 0, 0]], atol=1e-12)
    assert np.isfinite(correlate_errors(make_table(labels), shrink=0)).all()


def test_an_expert_that_is_always_right_is_like_nobody() -> None:
    labels = [[0, 0], [0, 1], [0, 0]]
    assert correlate_errors(make_table(labels)).tolist() == [[0, 0], [0, 0]]
