"""Chances and gains against enumeration, and what must not matter to them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.beliefs import OPEN_OPTIONS, Beliefs
from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable
from expertmix.agents.posterior import Evidence, chances_of, gains_of

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]
EXPERTS = 4


def make_beliefs() -> Beliefs:
    """Four experts that differ in strength, slope and readability."""
    rng = np.random.default_rng(5)
    ease_N1 = rng.normal(size=(200, 1))
    z_NE = np.array([-0.8, 0.0, 0.6, 1.4]) + np.array([0.7, 1.0, 1.5, 2.0]) * ease_N1
    right_NE = rng.random(z_NE.shape) < 1 / (1 + np.exp(-z_NE))
    labels_NE = np.where(right_NE, 0, rng.integers(1, 4, z_NE.shape))
    labels_NE[rng.random(z_NE.shape) < [0.3, 0.1, 0.0, 0.05]] = UNREADABLE
    table = OutcomeTable(
        experts=("ada", "bob", "cy", "dee"),
        questions=tuple(str(at) for at in range(200)),
        labels_NE=labels_NE.astype(np.int16),
        gold_N=np.zeros(200, np.int16),
        options_N=np.full(200, 4, np.int16),
    )
    return Beliefs.fit(table)


BELIEFS = replace(make_beliefs(), concentration=0.4)
"""As crowded as the wrong answers of recorded models are; the simulated ones are spread evenly."""
ABILITY_E = BELIEFS.foresee([{}])[0]


def make_evidence(
    labels: npt.ArrayLike, options: int | list[int], ability_QE: Floats | None = None
) -> Evidence:
    labels_QE = np.array(labels, np.int16).reshape(-1, EXPERTS)
    number = len(labels_QE)
    return Evidence(
        ability_QE=np.tile(ABILITY_E, (number, 1)) if ability_QE is None else ability_QE,
        options_Q=np.broadcast_to(np.array(options), number),
        labels_QE=labels_QE,
    )


def chances(labels: list[int], options: int) -> list[float]:
    return chances_of(BELIEFS, make_evidence(labels, options))[0].tolist()


# --- by enumeration: every possible answer on its own, no pooling, no cumulated sums ----------------


def weigh_by_hand(labels: list[int], possible: int, ability_E: Floats = ABILITY_E) -> Floats:
    """P(these answers, gold = g) for each g of all possible answers, up to one constant."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(9)
    c, found = BELIEFS.concentration, np.zeros(possible)
    for gold in range(possible):
        wrong = [sum(label == x for label in labels) for x in range(possible) if x != gold]
        n, total = sum(wrong), c * (possible - 1)
        crowd = math.lgamma(total) - math.lgamma(total + n)
        crowd += sum(math.lgamma(c + x) - math.lgamma(c) for x in wrong)
        for node, weight in zip(nodes, mass / mass.sum(), strict=True):
            likely = weight * math.exp(crowd)
            for expert, label in enumerate(labels):
                right = 1 / (1 + math.exp(-(ability_E[expert] + BELIEFS.slope_E[expert] * node)))
                if label >= 0:
                    likely *= right if label == gold else 1 - right
            found[gold] += likely
    return found / possible


CASES = [
    [MISSING, MISSING, MISSING, MISSING],
    [UNREADABLE, MISSING, UNREADABLE, MISSING],
    [0, MISSING, MISSING, MISSING],
    [1, 1, 1, 1],
    [0, 1, 2, 3],
    [2, 2, MISSING, 0],
    [3, UNREADABLE, 3, 1],
    [0, 0, 1, 1],
]


@pytest.mark.parametrize("labels", CASES)
def test_chances_of_choices_are_those_by_enumeration(labels: list[int]) -> None:
    for options in (4, 7):
        by_hand = weigh_by_hand(labels, options)
        found = chances(labels, options)
        np.testing.assert_allclose(found[:options], by_hand / by_hand.sum(), rtol=0, atol=1e-9)
        assert not any(found[options:])


@pytest.mark.parametrize("labels", CASES)
def test_chances_of_open_questions_are_those_by_enumeration(labels: list[int]) -> None:
    by_hand = weigh_by_hand(labels, OPEN_OPTIONS)
    by_hand /= by_hand.sum()
    found = chances(labels, 0)
    named = sorted({label for label in labels if label >= 0})
    np.testing.assert_allclose([found[x] for x in named], by_hand[named], rtol=0, atol=1e-9)
    unnamed = [x for x in range(OPEN_OPTIONS) if x not in named]
    assert found[-1] == pytest.approx(by_hand[unnamed].sum(), abs=1e-9)
    assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("labels", [case for case in CASES if MISSING in case])
@pytest.mark.parametrize("options", [4, 7, 0])
@pytest.mark.parametrize("harder", [0.0, 7.0])
def test_gains_are_those_by_enumeration(labels: list[int], options: int, harder: float) -> None:
    """Exact for open questions too: what is pooled is counted answer by answer.

    Of questions so hard that an expert is worse than chance, what it says is what is not right.
    """
    ability_E = ABILITY_E - harder
    gains = gains_of(BELIEFS, make_evidence(labels, options, ability_E[None]))
    possible = options or OPEN_OPTIONS
    before = weigh_by_hand(labels, possible, ability_E)
    chance = before / before.sum()

    def entropy(p: Floats) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    for expert in range(EXPERTS):
        if labels[expert] != MISSING:
            assert gains.flip_QE[0, expert] == gains.news_QE[0, expert] == -np.inf
            continue
        largest, left, total = 0.0, 0.0, 0.0
        for answer in range(possible):
            more = [*labels[:expert], answer, *labels[expert + 1 :]]
            after = weigh_by_hand(more, possible, ability_E) / before.sum()
            total, largest = total + after.sum(), largest + after.max()
            left += after.sum() * entropy(after / after.sum())
        assert total == pytest.approx(1, abs=1e-12), "the enumeration is a distribution"
        readable = BELIEFS.readable_E[expert]
        flip, news = (largest - chance.max()) * readable, (entropy(chance) - left) * readable
        assert gains.flip_QE[0, expert] == pytest.approx(flip, abs=1e-9)
        assert gains.news_QE[0, expert] == pytest.approx(news, abs=1e-9)


# --- what votes say -------------------------------------------------------------------------------


def test_rows_without_a_vote_give_the_prior() -> None:
    for labels in ([MISSING] * 4, [UNREADABLE] * 4, [MISSING, UNREADABLE] * 2):
        np.testing.assert_allclose(chances(labels, 5), [0.2] * 5, atol=1e-12)
        assert chances(labels, 0) == pytest.approx([0, 1])


def test_an_unreadable_answer_is_no_vote() -> None:
    assert chances([0, 1, UNREADABLE, 1], 4) == chances([0, 1, MISSING, 1], 4)


def test_more_agreement_is_more_confidence() -> None:
    rows = [[2, -2, -2, -2], [2, 2, -2, -2], [2, 2, 2, -2], [2, 2, 2, 2]]
    for options in (4, 10, 0):
        stated = [chances(row, options)[2] for row in rows]
        assert stated == sorted(stated)
        assert stated[0] < stated[-1] - 0.2
    assert chances([2, 2, 2, 1], 4)[2] < chances([2, 2, 2, MISSING], 4)[2]


def test_a_stronger_expert_counts_for_more() -> None:
    weak, strong = chances([0, MISSING, MISSING, 1], 4)[:2]
    assert strong > weak
    assert chances([0, 0, 0, 1], 4)[0] > weak, "but the weak gain by agreeing"


def test_a_higher_temperature_flattens_and_changes_no_verdict() -> None:
    evidence = make_evidence(CASES, 4)
    sharp, flat = chances_of(BELIEFS, evidence), chances_of(BELIEFS.soften(3.0), evidence)
    assert (flat.max(1) <= sharp.max(1)).all()
    assert flat[3].max() < sharp[3].max()
    assert (sharp.argmax(1) == flat.argmax(1)).all()
    powers = sharp ** (1 / 3)
    np.testing.assert_allclose(flat, powers / powers.sum(1, keepdims=True), atol=1e-12)


def test_a_choice_of_many_wrong_answers_leaves_something_for_the_unnamed() -> None:
    many = 60
    beliefs = Beliefs.fit(
        OutcomeTable(
            experts=tuple(f"e{at:02d}" for at in range(many)),
            questions=("q1", "q2"),
            labels_NE=np.array([[0] * many, list(range(many))], np.int16),
            gold_N=np.zeros(2, np.int16),
            options_N=np.zeros(2, np.int16),
        )
    )
    split = Evidence(
        ability_QE=beliefs.foresee([{}]), options_Q=np.array([0]), labels_QE=np.arange(many)[None]
    )
    assert chances_of(beliefs, split)[0, -1] > 0, (
        "more answers than an open question is said to have"
    )


def test_no_questions_give_no_rows() -> None:
    none = make_evidence([], 4)
    assert len(chances_of(BELIEFS, none)) == 0
    assert gains_of(BELIEFS, none).flip_QE.shape == (0, EXPERTS)


# --- what must not matter -------------------------------------------------------------------------

LABELS = st.lists(st.integers(MISSING, 4), min_size=EXPERTS, max_size=EXPERTS)
OPTIONS = st.sampled_from([0, 5, 8])


@settings(deadline=None)
@given(LABELS, OPTIONS)
def test_chances_are_a_distribution_and_gains_are_no_losses(
    labels: list[int], options: int
) -> None:
    found = chances(labels, options)
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    gains = gains_of(BELIEFS, make_evidence(labels, options))
    asked = np.array(labels) != MISSING
    assert (gains.flip_QE[0][~asked] >= 0).all()
    assert (gains.news_QE[0][~asked] >= 0).all()
    assert np.isneginf(gains.flip_QE[0][asked]).all()


@settings(deadline=None)
@given(LABELS, st.permutations(range(5)), st.booleans())
def test_the_numbers_of_answers_do_not_matter(
    labels: list[int], order: list[int], far: bool
) -> None:
    """Nor gaps between them: what experts that were not asked said cannot leak through a number."""
    numbers = [at + (9 if far else 0) for at in order]
    renamed = [numbers[label] if label >= 0 else label for label in labels]
    one, other = chances(labels, 0), chances(renamed, 0)
    for label in set(labels):
        if label >= 0:
            assert one[label] == pytest.approx(other[numbers[label]], abs=1e-12)
    assert one[-1] == pytest.approx(other[-1], abs=1e-12)
    gains = [gains_of(BELIEFS, make_evidence(given, 0)) for given in (labels, renamed)]
    np.testing.assert_allclose(gains[0].flip_QE, gains[1].flip_QE, atol=1e-12)
    np.testing.assert_allclose(gains[0].news_QE, gains[1].news_QE, atol=1e-12)


@settings(deadline=None)
@given(LABELS, st.permutations(range(5)))
def test_the_letters_of_options_do_not_matter(labels: list[int], order: list[int]) -> None:
    renamed = [order[label] if label >= 0 else label for label in labels]
    one, other = chances(labels, 5)[:5], chances(renamed, 5)
    np.testing.assert_allclose(one, [other[at] for at in order], atol=1e-12)


@settings(deadline=None)
@given(LABELS, OPTIONS, st.permutations(range(EXPERTS)))
def test_the_order_of_experts_does_not_matter(
    labels: list[int], options: int, order: list[int]
) -> None:
    moved = replace(
        BELIEFS,
        ability_E=BELIEFS.ability_E[order],
        slope_E=BELIEFS.slope_E[order],
        readable_E=BELIEFS.readable_E[order],
        alike_EE=BELIEFS.alike_EE[np.ix_(order, order)],
    )
    plain = make_evidence(labels, options)
    other = make_evidence([labels[at] for at in order], options, ABILITY_E[None, order])
    np.testing.assert_allclose(chances_of(BELIEFS, plain), chances_of(moved, other), atol=1e-12)
    one, two = gains_of(BELIEFS, plain), gains_of(moved, other)
    np.testing.assert_allclose(one.flip_QE[:, order], two.flip_QE, atol=1e-12)
    np.testing.assert_allclose(one.news_QE[:, order], two.news_QE, atol=1e-12)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99))
def test_a_question_is_judged_as_if_it_were_alone(seed: int) -> None:
    """More questions than are worked on at once, choices and open ones mixed."""
    rng = np.random.default_rng(seed)
    number = 2500
    options_Q = rng.choice([0, 3, 10], number)
    labels_QE = rng.integers(MISSING, 3, (number, EXPERTS))
    ability_QE = ABILITY_E + rng.normal(size=(number, EXPERTS))
    whole = Evidence(ability_QE=ability_QE, options_Q=options_Q, labels_QE=labels_QE)
    chance_QM, gains = chances_of(BELIEFS, whole), gains_of(BELIEFS, whole)
    for row in [0, 1, 1023, 1024, 2047, 2048, *rng.integers(0, number, 20).tolist()]:
        alone = whole.rows(slice(row, row + 1))
        found, gain = chances_of(BELIEFS, alone)[0], gains_of(BELIEFS, alone)
        # The last column of an open question, and the first ones of a choice.
        columns, there = (slice(0, 3), slice(0, 3)) if options_Q[row] else (slice(-1, None),) * 2
        np.testing.assert_allclose(chance_QM[row, columns], found[there], atol=1e-12)
        np.testing.assert_allclose(gains.flip_QE[row], gain.flip_QE[0], atol=1e-12)
        np.testing.assert_allclose(gains.news_QE[row], gain.news_QE[0], atol=1e-12)
    order = rng.permutation(number)
    np.testing.assert_array_equal(chances_of(BELIEFS, whole.rows(order)), chance_QM[order])


def test_all_combinations_of_three_answers_agree_with_their_own_prediction() -> None:
    """Averaged over what the panel will say, chances are what they were before it was asked."""
    weights, found = 0.0, np.zeros(3)
    for labels in product(range(3), repeat=3):
        row = [*labels, MISSING]
        weight = weigh_by_hand(row, 3).sum()
        weights += weight
        found += weight * np.array(chances(row, 3)[:3])
    assert weights == pytest.approx(1)
    np.testing.assert_allclose(found, [1 / 3] * 3, atol=1e-12)
