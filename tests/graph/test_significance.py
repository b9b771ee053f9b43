"""Whether methods differ: against scipy, against values worked out by hand, and what must hold of any numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.graph.significance import Difference, adjust_by_holm, compare_pairs, mcnemar_p

Bools = npt.NDArray[np.bool_]
Floats = st.floats(0, 1, allow_nan=False)


def marks(text: str) -> Bools:
    """Of a method, which questions are right: `+` or `-` for each."""
    return np.array([sign == "+" for sign in text])


def draw_gap(number: int, gap: float, seed: int) -> tuple[Bools, Bools]:
    """Two methods on the same questions; the first is right so much more often, on average."""
    chance = np.random.default_rng(seed).random((2, number))
    return chance[0] < 0.5 + gap, chance[1] < 0.5


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (4, 4, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_by_hand(wins: int, losses: int, p: float) -> None:
    assert mcnemar_p(wins, losses) == pytest.approx(p)


def test_mcnemar_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    some = [(a, b) for a in range(0, 24, 3) for b in range(24)]
    for wins, losses in [*some, (1500, 1400), (4000, 3700), (700, 20)]:
        if wins + losses:
            exact = stats.binomtest(wins, wins + losses).pvalue
            assert mcnemar_p(wins, losses) == pytest.approx(exact, rel=1e-8), (wins, losses)


def test_mcnemar_stays_a_probability_however_many_questions_there_are() -> None:
    assert 0 <= mcnemar_p(100_000, 0) < 1e-300
    assert 0.99 < mcnemar_p(100_000, 100_001) <= 1


def test_holm_by_hand() -> None:
    # Holm (1979): .01 × 4, .02 × 3, .03 × 2 and .04 × 1, none below the one before.
    assert adjust_by_holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert adjust_by_holm([0.005, 0.9, 0.02]) == pytest.approx([0.015, 0.9, 0.04])
    assert adjust_by_holm([0.5, 0.7]) == [1.0, 1.0]
    assert adjust_by_holm([0.03]) == [0.03]
    assert adjust_by_holm([]) == []


@given(st.lists(Floats, min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_holm_never_lowers_keeps_the_order_and_does_not_care_for_it(
    values: list[float], chance: object
) -> None:
    adjusted = adjust_by_holm(values)
    number = len(values)
    for p, holm in zip(values, adjusted, strict=True):
        assert p <= holm <= min(1, p * number) + 1e-12
    ranked = [adjusted[at] for at in sorted(range(number), key=lambda at: values[at])]
    assert ranked == sorted(ranked)
    places = list(range(number))
    chance.shuffle(places)  # pyright: ignore[reportAttributeAccessIssue]
    shuffled = adjust_by_holm([values[at] for at in places])
    assert sorted(shuffled) == pytest.approx(sorted(adjusted))
    for at, holm in zip(places, shuffled, strict=True):
        twins = [adjusted[i] for i in range(number) if values[i] == values[at]]
        assert any(math.isclose(holm, twin) for twin in twins)


def test_a_pair_by_hand() -> None:
    [found] = compare_pairs([([marks("++++++--+-")], [marks("------+-+-")])])
    assert (found.wins, found.losses) == (6, 1)
    assert found.mean == pytest.approx(0.5)
    assert found.p == found.p_holm == pytest.approx(2 * (1 + 7) / 128)
    assert found.verdict == "no significant difference"
    assert found.low < 0.5 < found.high
    assert found.to_json() == {
        "mean": 0.5,
        "low": pytest.approx(found.low, abs=1e-5),
        "high": pytest.approx(found.high, abs=1e-5),
        "p": 0.125,
        "p_holm": 0.125,
        "wins": 6,
        "losses": 1,
        "verdict": "no significant difference",
    }


def test_a_family_shares_the_correction_and_no_family_is_no_error() -> None:
    strong, weak = draw_gap(200, 0.25, 1)
    pairs = [([strong], [weak]), ([strong], [strong]), ([weak], [strong])]
    better, same, worse = compare_pairs(pairs)
    assert better.p_holm == pytest.approx(3 * better.p)
    assert [d.verdict for d in (better, same, worse)] == [
        "better",
        "no significant difference",
        "worse",
    ]
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert compare_pairs([]) == []


def test_exchanging_the_two_turns_the_sign_and_nothing_else() -> None:
    first, second = draw_gap(60, 0.1, 2), draw_gap(60, 0.0, 3)
    [ours] = compare_pairs([(first, second)])
    [theirs] = compare_pairs([(second, first)])
    assert theirs.mean == pytest.approx(-ours.mean)
    assert (theirs.low, theirs.high) == pytest.approx((-ours.high, -ours.low))
    assert (theirs.wins, theirs.losses, theirs.p) == (ours.losses, ours.wins, ours.p)


def test_pairs_of_a_family_do_not_change_each_others_intervals() -> None:
    pairs = [([a], [b]) for a, b in (draw_gap(50, 0.1, 4), draw_gap(50, 0.2, 5))]
    together = compare_pairs(pairs)
    for alone, found in zip((compare_pairs([pair])[0] for pair in pairs), together, strict=True):
        assert (alone.mean, alone.low, alone.high) == pytest.approx(
            (found.mean, found.low, found.high)
        )


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    gap, hits, trials = 0.1, 0, 200
    for trial in range(trials):
        first, second = draw_gap(150, gap, 100 + trial)
        [found] = compare_pairs([([first], [second])], seed=trial)
        hits += found.low <= gap <= found.high
    assert 0.90 <= hits / trials <= 0.985


def test_noise_is_seldom_taken_for_a_difference() -> None:
    families = 150
    alarms = 0
    for trial in range(families):
        base = np.random.default_rng(trial).random((5, 120)) < 0.6
        found = compare_pairs([([base[0]], [base[other]]) for other in range(1, 5)])
        alarms += any(pair.verdict != "no significant difference" for pair in found)
    assert alarms / families <= 0.08


def test_seeds_are_averaged_and_the_test_is_of_the_first() -> None:
    seeds = [marks("++++----"), marks("++------")]
    still = [marks("--------")] * 2
    [found] = compare_pairs([(seeds, still)])
    assert found.mean == pytest.approx(3 / 8)
    assert (found.wins, found.losses) == (4, 0)
    assert found.p == pytest.approx(2 / 16)
    [once] = compare_pairs([(seeds[:1], still[:1])])
    assert once.mean == pytest.approx(0.5)
    assert once.p == found.p


def difference(mean: float, wins: int, losses: int, p: float = 0.01) -> Difference:
    return Difference(mean=mean, low=0, high=0, p=p, p_holm=p, wins=wins, losses=losses)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (difference(0.1, 20, 2), "better"),
        (difference(-0.1, 2, 20), "worse"),
        (difference(0.1, 20, 2, p=0.05), "no significant difference"),
        (difference(0.0, 20, 2), "no significant difference"),
        # The first seed, which is tested, and the mean of all seeds point in different directions.
        (difference(0.1, 2, 20), "no significant difference"),
    ],
)
def test_a_verdict_needs_the_test_and_the_mean(found: Difference, verdict: str) -> None:
    assert found.verdict == verdict


@pytest.mark.parametrize("pair", [("+", "-"), ("-", "-"), ("+", "+")])
def test_one_question_proves_nothing(pair: Sequence[str]) -> None:
    [found] = compare_pairs([([marks(pair[0])], [marks(pair[1])])])
    assert found.p == 1.0
    assert found.verdict == "no significant difference"
