"""Values recorded from the published code, and its known faults: pinned, so that ours can differ."""

from __future__ import annotations

import random
import time
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.originals import (
    count_tags,
    draw_uniforms,
    draw_with_replacement,
    local_scores,
    net_scores,
    normalise,
    profile_rows,
    rank_by_skill,
    replacement_weights,
    trim_rare,
    weigh_paper,
    weigh_reference,
)
from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable
from expertmix.retrieval import InputError

Floats = npt.NDArray[np.float64]
GAMMA = [0.5, 0.3, 0.2]
NAN = float("nan")


def python_uniforms(seed: int, rows: int, k: int) -> Floats:
    """The numbers that the global generator gives, row after row."""
    chance = random.Random(seed)
    return np.array([[chance.random() for _ in range(k)] for _ in range(rows)])


def seeded(rows: int, k: int = 3, seed: int = 0) -> Floats:
    return draw_uniforms([f"q{row}" for row in range(rows)], k, seed)


# --- recorded values (symbolic-moe.md §5.3) ---------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "temperature", "shares"),
    [
        ([10, 20, 30], 0.5, [1, 4, 9]),
        ([0, 5], 0.5, [0, 1]),
        ([-7, 0, 3, 120], 0.5, [1, 64, 121, 16384]),
        ([-50, -20, -20], 0.5, [1, 961, 961]),
        ([4], 0.5, [1]),
        ([10, 20, 30], 1, [1, 2, 3]),
        ([-7, 0, 3, 120], 1, [1, 8, 11, 128]),
        ([-50, -20, -20], 1, [1, 31, 31]),
    ],
)
def test_strengths_are_normalised_as_published(
    values: list[float], temperature: float, shares: list[float]
) -> None:
    expected = np.array(shares) / sum(shares)
    np.testing.assert_allclose(normalise(values, temperature), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ((4, 8, 1), (0.4348, 0.5217, 0.0435)),
        ((-4, 8, 0), (0, 1, 0)),
        ((-1, -3, 0), (1.5 / 2.6, 0.3 / 2.6, 0.8 / 2.6)),
    ],
)
def test_chances_are_those_of_the_published_code(
    local: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(weigh_reference([local], GAMMA), [expected], atol=5e-5)


def test_paper_and_code_differ_as_in_the_worked_example() -> None:
    local = [(8, 4, 1)]
    np.testing.assert_allclose(weigh_paper(local, [3, 5, 2]), [[0.684, 0.307, 0.008]], atol=6e-4)
    code = weigh_reference(local, [0.3, 0.5, 0.2])
    np.testing.assert_allclose(code, [[0.522, 0.435, 0.043]], atol=5e-4)


def test_the_recorded_draws_of_seed_0_come_out() -> None:
    p_QE = weigh_reference([(8, 4, 1)] * 6, [0.3, 0.5, 0.2])  # m2, m1, m3
    drawn = draw_with_replacement(p_QE, python_uniforms(0, rows=6, k=3))
    assert [[("m2", "m1", "m3")[at] for at in row] for row in drawn.tolist()] == [
        ["m1", "m1", "m2"],
        ["m2", "m2", "m2"],
        ["m1", "m2", "m2"],
        ["m1", "m1", "m2"],
        ["m2", "m1", "m1"],
        ["m2", "m1", "m3"],
    ]


def test_rare_experts_are_replaced_by_the_recorded_shares() -> None:
    shares = replacement_weights([60, 30, 6, 3, 1])
    np.testing.assert_allclose(shares, [0.625, 0.3125, 0.0625, 0, 0], atol=1e-12)
    assert replacement_weights([95, 5]).tolist() == [0.95, 0.05]
    experts = np.repeat([0, 1, 2, 3, 4], [60, 30, 6, 3, 1]).reshape(25, 4)
    trimmed = trim_rare(experts, seeded(25, k=4))
    assert set(trimmed.ravel().tolist()) == {0, 1, 2}
    assert (trimmed[experts < 3] == experts[experts < 3]).all()


def test_replaced_slots_go_to_the_kept_in_proportion() -> None:
    experts = np.repeat([0, 1, 2], [60_000, 36_000, 4_000]).reshape(-1, 4)
    replaced = trim_rare(experts, seeded(len(experts), k=4))[experts == 2]
    assert np.bincount(replaced)[0] / 4_000 == pytest.approx(0.625, abs=0.03)


def test_rankings_are_those_of_the_published_code() -> None:
    profiles = {"x": {"alg": 2, "geo": -1}, "y": {"alg": 2, "bio": 5}, "z": {"alg": 3}}
    assert rank_by_skill(profiles, ["alg", "geo", "bio", "art"]) == {
        "alg": [("z", 3), ("x", 2), ("y", 2)],
        "geo": [("x", -1)],
        "bio": [("y", 5)],
        "art": [],
    }


TAGS = [("algebra", "geometry"), ("algebra",), ("law", "law"), ()]


def test_the_recorded_profile_comes_out_of_four_rows() -> None:
    right = [reply == gold for reply, gold in zip(["A", "B", "C", None], "ACCD", strict=True)]
    profile = profile_rows(TAGS, right)
    assert profile == {"algebra": 0, "geometry": 1, "law": 2}
    assert list(profile) == ["algebra", "geometry", "law"]
    assert 100 * sum(right) / len(right) == 50.0


def test_the_routing_of_a_pool_is_as_steep_as_recorded() -> None:
    """The recorded pool is not known; on one like it: 10.5 %, 36.4 % and 4 of 16 were recorded."""
    chance = np.random.default_rng(0)
    skill_ES = np.clip(np.linspace(0.2, 0.7, 16)[:, None] + chance.normal(0, 0.07, (16, 14)), 0, 1)
    right_ES = chance.binomial(25, skill_ES)
    scores_ES = (2 * right_ES - 25).astype(float)
    counts_QS = np.eye(14)[np.arange(2100) % 14] + np.eye(14)[chance.integers(0, 14, 2100)]
    p_QE = weigh_reference(local_scores(scores_ES, counts_QS), normalise(scores_ES.sum(axis=1)))
    experts = draw_with_replacement(p_QE, seeded(2100))
    different = Counter(len(set(row)) for row in experts.tolist())
    assert 0.07 < different[1] / 2100 < 0.15
    assert 0.30 < different[3] / 2100 < 0.45
    frequent = np.flatnonzero(np.bincount(experts.ravel(), minlength=16) >= 0.05 * 6300)
    assert 3 <= len(frequent) <= 6
    assert np.unique(trim_rare(experts, seeded(2100, seed=1))).tolist() == frequent.tolist()


# --- from a table of answers ------------------------------------------------------------------------


def table(labels: list[list[int]], skills: tuple[dict[str, float], ...] = ()) -> OutcomeTable:
    return OutcomeTable(
        experts=("a", "b"),
        questions=tuple(f"q{row}" for row in range(len(labels))),
        labels_NE=np.array(labels, dtype=np.int16).reshape(-1, 2),
        gold_N=np.zeros(len(labels), dtype=np.int16),
        options_N=np.full(len(labels), 4, dtype=np.int16),
        skills=skills,
    )


def test_scores_of_a_table_count_unreadable_as_wrong_and_skip_the_missing() -> None:
    skills = ({"law": 0.9, "ethics": 0.1}, {"law": 0.5}, {"art": 1.0}, {})
    answers = table([[0, 1], [0, UNREADABLE], [MISSING, 0], [1, 1]], skills)
    scores_ES = net_scores(answers, ["ethics", "law", "unseen"])
    assert scores_ES.tolist() == [[1, 2, 0], [-1, -2, 0]]


def test_an_expert_without_rows_and_a_table_without_skills_score_0() -> None:
    answers = [[MISSING, 0], [MISSING, 1]]
    assert net_scores(table(answers, ({"law": 1.0}, {"law": 1.0})), ["law"]).tolist() == [[0], [0]]
    assert net_scores(table(answers), ["law"]).tolist() == [[0], [0]]
    assert net_scores(table([]), ["law"]).tolist() == [[0], [0]]


def test_tags_are_counted_with_repeats_and_without_strangers() -> None:
    assert count_tags([*TAGS, ("art",)], ["law", "algebra"]).tolist() == [
        [0, 1],
        [0, 1],
        [2, 0],
        [0, 0],
        [0, 0],
    ]
    assert count_tags([], ["law"]).shape == (0, 1)
    assert count_tags([("law",)], []).shape == (1, 0)


# --- known faults: none of these may hold for the policies of our own -----------------------------


def test_fault_the_paper_rewards_an_expert_that_is_bad_here_and_everywhere() -> None:
    totals = [60, 40, -40]
    awful, average = weigh_paper([(4, 2, -8)], totals)[0, [2, 1]]
    assert awful > average
    assert weigh_reference([(4, 2, -8)], normalise(totals))[0, 2] == 0


def test_fault_the_paper_gives_a_chance_to_experts_that_failed_the_skill() -> None:
    assert weigh_paper([(1, 0, -1)], [5, 3, 2])[0].min() > 0.15
    assert weigh_reference([(1, 0, -1)], GAMMA).tolist() == [[1, 0, 0]]


def test_fault_the_chances_of_the_paper_sharpen_with_the_size_of_the_profile() -> None:
    local, totals = np.array([[3.0, 2.0]]), np.array([30, 20])
    small, large = weigh_paper(local, totals), weigh_paper(10 * local, 10 * totals)
    assert large[0, 0] > 0.99 > 0.9 > small[0, 0]
    alike = [weigh_reference(n * local, normalise(n * totals)) for n in (1, 10)]
    np.testing.assert_allclose(alike[0], alike[1])


def test_fault_the_paper_knows_no_bounds_near_a_total_of_0() -> None:
    assert weigh_paper([(2, 2, 1)], [10, 11, -20])[0, 1] > 0.98
    undefined = weigh_paper([(2, 2, 1)], [10, 10, -20])
    negative = weigh_paper([(2, 2, 1)], [10, 10, -30])
    assert undefined.tolist() == negative.tolist()
    assert undefined[0, 0] == undefined[0, 1] > undefined[0, 2]  # the stated fallback: γ = 1/E


def test_fault_one_very_bad_expert_makes_the_others_alike() -> None:
    without, with_it = normalise([120, 30]), normalise([120, 30, -2000])
    assert without[0] / without[1] == pytest.approx(16)
    assert with_it[0] / with_it[1] < 1.1


def test_fault_a_question_without_skills_goes_to_anybody() -> None:
    known = np.array([False, True])
    p_QE = weigh_reference([(0, 0, 0), (0, 0, 0)], GAMMA, known)
    np.testing.assert_allclose(p_QE, [[1 / 3] * 3, GAMMA])
    np.testing.assert_allclose(weigh_paper([(0, 0, 0)], [9, 3, -3]), [[1 / 3] * 3])


def test_fault_a_skill_that_two_keywords_map_to_counts_twice() -> None:
    scores_ES = [[4.0, 1.0], [1.0, 5.0]]
    once, twice = local_scores(scores_ES, count_tags([("a", "b"), ("a", "b", "a")], ["a", "b"]))
    assert once.argmax() == 1
    assert twice.argmax() == 0


def test_fault_the_order_of_experts_changes_who_is_drawn() -> None:
    names, p_E = np.array(["x", "y", "z"]), np.array([0.5, 0.3, 0.2])
    uniforms = seeded(20)
    drawn = names[draw_with_replacement(np.tile(p_E, (20, 1)), uniforms)]
    other = names[::-1][draw_with_replacement(np.tile(p_E[::-1], (20, 1)), uniforms)]
    assert drawn.tolist() != other.tolist()


def test_fault_one_expert_may_fill_all_places() -> None:
    drawn = draw_with_replacement(np.tile([0.5, 0.3, 0.2], (1000, 1)), seeded(1000))
    thrice = np.mean([len(set(row)) == 1 for row in drawn.tolist()])
    assert thrice == pytest.approx(0.5**3 + 0.3**3 + 0.2**3, abs=0.04)


def test_fault_trimming_makes_a_question_depend_on_the_batch() -> None:
    alone = np.array([[0, 1, 2]])
    batch = np.concatenate([alone, np.zeros((50, 3), dtype=np.intp)])
    uniforms = seeded(51)
    assert trim_rare(alone, uniforms[:1]).tolist() == alone.tolist()
    assert trim_rare(batch, uniforms)[0].tolist() == [0, 0, 0]


def test_fault_the_net_score_hides_how_much_was_seen() -> None:
    few = profile_rows([("law",)] * 2, [True, False])
    assert few == profile_rows([("law",)] * 100, [True, False] * 50) == {"law": 0}


# --- what holds for all input -----------------------------------------------------------------------


@st.composite
def pools(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """Scores of up to six experts on up to four skills, and tags of up to five questions."""
    experts, skills = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    score, count = st.integers(-30, 30), st.integers(0, 3)

    def rows(cell: st.SearchStrategy[int], least: int, most: int) -> Floats:
        row = st.lists(cell, min_size=skills, max_size=skills)
        return np.array(draw(st.lists(row, min_size=least, max_size=most)), dtype=np.float64)

    return rows(score, experts, experts), rows(count, 1, 5)


def weigh_both(scores_ES: Floats, counts_QS: Floats) -> list[Floats]:
    local_QE, totals_E = local_scores(scores_ES, counts_QS), scores_ES.sum(axis=1)
    known_Q = counts_QS.sum(axis=1) > 0
    return [
        weigh_reference(local_QE, normalise(totals_E), known_Q),
        weigh_paper(local_QE, totals_E),
    ]


@given(pools())
def test_chances_are_chances(pool: tuple[Floats, Floats]) -> None:
    for p_QE in weigh_both(*pool):
        np.testing.assert_allclose(p_QE.sum(axis=1), 1)
        assert ((p_QE >= 0) & (p_QE <= 1)).all()


@given(pools(), st.randoms(use_true_random=False))
def test_the_order_of_experts_and_skills_only_reorders_chances(
    pool: tuple[Floats, Floats], chance: random.Random
) -> None:
    scores_ES, counts_QS = pool
    experts = chance.sample(range(len(scores_ES)), len(scores_ES))
    skills = chance.sample(range(scores_ES.shape[1]), scores_ES.shape[1])
    moved = weigh_both(scores_ES[experts][:, skills], counts_QS[:, skills])
    for before, after in zip(weigh_both(*pool), moved, strict=True):
        np.testing.assert_allclose(before[:, experts], after, atol=1e-9)


@given(pools(), st.randoms(use_true_random=False))
def test_the_order_of_questions_changes_nothing_about_any(
    pool: tuple[Floats, Floats], chance: random.Random
) -> None:
    scores_ES, counts_QS = pool
    ids = [f"q{row}" for row in range(len(counts_QS))]
    order = chance.sample(range(len(ids)), len(ids))
    moved = weigh_both(scores_ES, counts_QS[order])
    for before, after in zip(weigh_both(*pool), moved, strict=True):
        drawn = draw_with_replacement(before, draw_uniforms(ids, 3, 0))
        again = draw_with_replacement(after, draw_uniforms([ids[row] for row in order], 3, 0))
        assert drawn[order].tolist() == again.tolist()


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    st.integers(0, 2**32),
    st.integers(1, 5),
)
def test_draws_are_those_of_random_choices(weights: list[int], seed: int, k: int) -> None:
    drawn = draw_with_replacement([weights] * 2, python_uniforms(seed, rows=2, k=k))
    chance = random.Random(seed)
    places = range(len(weights))
    assert drawn.tolist() == [chance.choices(places, weights, k=k) for _ in range(2)]


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=30))
def test_after_trimming_every_expert_was_frequent_and_kept_slots_stay(
    slots: list[list[int]],
) -> None:
    experts = np.array(slots)
    counts = np.bincount(experts.ravel())
    trimmed = trim_rare(experts, seeded(len(experts)), least=0.1)
    frequent = counts >= 0.1 * counts.sum()
    assert frequent[trimmed].all()
    assert (trimmed == experts)[frequent[experts]].all()


@given(
    st.lists(st.tuples(st.lists(st.sampled_from("abc"), max_size=4), st.booleans()), max_size=12)
)
def test_a_profile_of_rows_is_the_arithmetic_of_counts(rows: list[tuple[list[str], bool]]) -> None:
    tags, right = [tags for tags, _ in rows], [right for _, right in rows]
    net_S = np.where(right, 1.0, -1.0) @ count_tags(tags, "abc")
    profile = profile_rows(tags, right)
    assert [profile.get(name, 0) for name in "abc"] == net_S.tolist()


def test_uniforms_depend_on_question_and_seed_alone() -> None:
    base = draw_uniforms(["a", "b", "\ud800"], 3, 0)
    assert draw_uniforms(["b"], 3, 0).tolist() == base[1:2].tolist()
    assert draw_uniforms(["a"], 20, 0)[:, :3].tolist() == base[:1].tolist()
    assert len(np.unique(draw_uniforms(["a"], 20, 0))) == 20
    assert not np.isin(draw_uniforms(["a"], 20, -1), draw_uniforms(["a"], 20, 0)).any()
    assert draw_uniforms(["a"], 1, 0)[0, 0] == pytest.approx(0.9634329865136544, abs=1e-15)
    assert draw_uniforms([], 3, 0).shape == (0, 3)


def test_uniforms_are_uniform_and_cheap() -> None:
    ids = [f"question {row}" for row in range(100_000)]
    start = time.thread_time()
    drawn = draw_uniforms(ids, 10, 0)
    assert time.thread_time() - start < 2
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn.T:
        tenths = np.bincount((10 * column).astype(int), minlength=10)
        assert tenths.tolist() == pytest.approx([10_000] * 10, rel=0.05)


# --- bad input and stated fallbacks -----------------------------------------------------------------


def test_where_the_published_code_divides_by_zero_all_are_equal() -> None:
    assert normalise([0, 0]).tolist() == [0.5, 0.5]
    assert weigh_reference([(3, 0, -1)], [0, 1, 0]).tolist() == [[1, 0, 0]]
    assert weigh_reference([(3, 1, -1)], [0, 0, 1]).tolist() == [[0.5, 0.5, 0]]


def test_no_questions_give_no_draws() -> None:
    p_QE = weigh_reference(np.zeros((0, 3)), GAMMA)
    assert p_QE.shape == weigh_paper(np.zeros((0, 3)), GAMMA).shape == (0, 3)
    drawn = draw_with_replacement(p_QE, draw_uniforms([], 3, 0))
    assert trim_rare(drawn, draw_uniforms([], 3, 1)).shape == (0, 3)


def test_bad_input_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="2 values at temperature 0"):
        normalise([1, 2], 0)
    with pytest.raises(InputError, match="0 values"):
        normalise([])
    with pytest.raises(InputError, match="NaN"):
        normalise([1, NAN])
    with pytest.raises(InputError, match="NaN"):
        weigh_paper([(1, NAN, 2)], [1, 2, 3])
    with pytest.raises(InputError, match="3 experts, global ones 2"):
        weigh_paper([(1, 2, 3)], [1, 2])
    with pytest.raises(InputError, match="temperature is -1"):
        weigh_paper([(1, 2, 3)], [1, 2, 3], -1)
    with pytest.raises(InputError, match="γ must not be negative, got -1"):
        weigh_reference([(1, 2)], [2, -1])
    with pytest.raises(InputError, match="known_Q has the shape"):
        weigh_reference([(1, 2)], [2, 1], np.ones(2, dtype=np.bool_))
    with pytest.raises(InputError, match="2 skills, but questions 1"):
        local_scores([[1, 2]], [[1]])
    with pytest.raises(InputError, match="only 1 names"):
        count_tags([], ["law", "law"])
    with pytest.raises(InputError, match="2 rows have tags, but 1"):
        profile_rows([(), ()], [True])
    with pytest.raises(InputError, match="k is 0"):
        draw_uniforms(["a"], 0, 0)


def test_a_product_that_is_rounded_up_to_the_sum_draws_the_last_expert() -> None:
    least = 5e-324
    assert 0.9 * least == least
    assert draw_with_replacement([(least,)], np.array([[0.9]])).tolist() == [[0]]


def test_impossible_draws_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="one above 0"):
        draw_with_replacement([(0.5, 0.5), (0, 0)], seeded(2))
    with pytest.raises(InputError, match="at least 0"):
        draw_with_replacement([(0.5, -0.5)], seeded(1))
    with pytest.raises(InputError, match="1 rows of chances, 2 of"):
        draw_with_replacement([(0.5, 0.5)], seeded(2))
    with pytest.raises(InputError, match="no expert has 60% of the selections"):
        trim_rare(np.array([[0, 1]]), seeded(1, k=2), least=0.6)
    with pytest.raises(InputError, match="differ"):
        trim_rare(np.array([[0, 1]]), seeded(1, k=3))
    with pytest.raises(InputError, match="at least 0, and one above 0"):
        replacement_weights([0, 0])
