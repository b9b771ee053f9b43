"""The policies on arrays: who is chosen, what must not matter, and the published mistakes that `skill` lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.beliefs import Beliefs
from expertmix.agents.outcomes import MISSING, OutcomeTable, SkillWeights
from expertmix.agents.policies import (
    POLICIES,
    Call,
    Cost,
    Policy,
    fill_costs,
    log_relative,
    recruit_many,
)
from expertmix.retrieval import InputError

Floats = npt.NDArray[np.float64]
SKILLS = ("art", "law", "maths")
OURS: tuple[Policy, ...] = ("skill", "top_k", "knn", "random")


def make_table(
    right_NE: npt.ArrayLike, skills: tuple[SkillWeights, ...], **costs: Floats
) -> OutcomeTable:
    """Ten options, so that wrong answers (numbered by expert) never agree."""
    given_NE = np.array(right_NE, bool)
    number, experts = given_NE.shape
    labels_NE = np.where(given_NE, 0, 1 + np.arange(experts) % 9)
    return OutcomeTable(
        experts=tuple(f"e{at}" for at in range(experts)),
        questions=tuple(f"r{at:03d}" for at in range(number)),
        labels_NE=labels_NE.astype(np.int16),
        gold_N=np.zeros(number, np.int16),
        options_N=np.full(number, 10, np.int16),
        skills=skills,
        **costs,
    )


def make_call(table: OutcomeTable, skills: Sequence[SkillWeights], k: int, **more: Any) -> Call:
    ids = [f"q{at:03d}" for at in range(len(skills))]
    given: dict[str, Any] = {"ids": ids, "beliefs": Beliefs.fit(table)} | more
    return Call(skills=skills, table=table, k=k, **given)


@cache
def draw_profile(seed: int, experts: int = 5, number: int = 60) -> OutcomeTable:
    """Experts with a skill of their own each, and questions of one or two skills."""
    rng = np.random.default_rng(seed)
    chance_ES = rng.uniform(0.1, 0.9, (experts, len(SKILLS)))
    skills: list[SkillWeights] = []
    chances: list[Floats] = []
    for _ in range(number):
        one, two = rng.choice(len(SKILLS), 2, replace=False)
        skills.append({SKILLS[one]: 0.75, SKILLS[two]: 0.25})
        chances.append(0.75 * chance_ES[:, one] + 0.25 * chance_ES[:, two])
    return make_table(rng.random((number, experts)) < np.array(chances), tuple(skills))


def draw_questions(seed: int, number: int = 12) -> list[SkillWeights]:
    rng = np.random.default_rng(seed)
    some: list[SkillWeights] = [{}, {"poetry": 1.0}, {"law": 1.0}, {"law": 0.6, "art": 0.4}]
    return [some[at] for at in rng.integers(0, len(some), number)]


# --- what must not matter -------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(POLICIES), st.integers(0, 50), st.integers(1, 5))
def test_the_same_call_gives_the_same_experts(policy: Policy, seed: int, k: int) -> None:
    near_QN = np.random.default_rng(seed).integers(-1, 60, (12, 20))
    table = draw_profile(seed)
    calls = [
        make_call(table, draw_questions(seed), k, seed=seed, near_QN=near_QN) for _ in range(2)
    ]
    one, other = (recruit_many(call, policy) for call in calls)
    assert one.experts_Qk.tolist() == other.experts_Qk.tolist()
    assert one.experts_Qk.shape == (12, k)
    assert one.experts_Qk.min() >= 0
    assert one.experts_Qk.max() < 5
    if policy in OURS:
        assert all(len(set(row)) == k for row in one.experts_Qk.tolist()), "nobody twice"


@settings(deadline=None)
@given(
    st.sampled_from([policy for policy in POLICIES if policy != "paper-trimmed"]),
    st.integers(0, 50),
    st.permutations(range(12)),
    st.integers(1, 12),
)
def test_a_question_gets_its_experts_whatever_is_asked_with_it(
    policy: Policy, seed: int, order: list[int], number: int
) -> None:
    """All but trimming, which is defined over a batch."""
    table = draw_profile(seed)
    near_QN = np.random.default_rng(seed).integers(-1, 60, (12, 20))
    whole = make_call(table, draw_questions(seed), 3, seed=seed, near_QN=near_QN)
    rows = order[:number]
    part = replace(
        whole,
        ids=[whole.ids[row] for row in rows],
        skills=[whole.skills[row] for row in rows],
        near_QN=near_QN[rows],
    )
    expected = recruit_many(whole, policy).experts_Qk[rows]
    assert recruit_many(part, policy).experts_Qk.tolist() == expected.tolist()


@settings(deadline=None)
@given(st.sampled_from(POLICIES), st.integers(0, 50), st.permutations(range(60)))
def test_the_order_of_the_profile_does_not_matter(
    policy: Policy, seed: int, order: list[int]
) -> None:
    table = draw_profile(seed)
    near_QN = np.random.default_rng(seed).integers(0, 60, (12, 20))
    moved_QN = np.argsort(order)[near_QN]
    plain = make_call(table, draw_questions(seed), 3, near_QN=near_QN)
    other = make_call(table.select(order), draw_questions(seed), 3, near_QN=moved_QN)
    one, two = (recruit_many(call, policy).experts_Qk for call in (plain, other))
    assert one.tolist() == two.tolist()


@pytest.mark.parametrize("policy", ["random", "paper", "paper-trimmed", "reference"])
def test_what_is_drawn_depends_on_the_seed(policy: Policy) -> None:
    call = make_call(draw_profile(1), [{}] * 40, 2)
    drawn = [recruit_many(replace(call, seed=seed), policy).experts_Qk for seed in (0, 0, 1)]
    assert drawn[0].tolist() == drawn[1].tolist()
    assert drawn[0].tolist() != drawn[2].tolist()


@pytest.mark.parametrize("policy", ["skill", "top_k", "knn"])
def test_what_is_not_drawn_does_not(policy: Policy) -> None:
    near_QN = np.tile(np.arange(20), (12, 1))
    call = make_call(draw_profile(1), draw_questions(2), 3, near_QN=near_QN)
    one, other = (recruit_many(replace(call, seed=s), policy).experts_Qk for s in (0, 1))
    assert one.tolist() == other.tolist()


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "knn"])
def test_no_questions_get_no_experts(policy: Policy) -> None:
    assert recruit_many(make_call(draw_profile(0), [], 2), policy).experts_Qk.shape == (0, 2)


# --- skill ----------------------------------------------------------------------------------------


def make_specialists() -> OutcomeTable:
    """Three experts good at one of three skills each, equal overall."""
    right: list[list[bool]] = []
    for skill in range(3):
        for at in range(20):
            right.append([at < (18 if expert == skill else 6) for expert in range(3)])
    skills = tuple({SKILLS[at // 20]: 1.0} for at in range(60))
    return make_table(right, skills)


def test_the_question_decides_who_is_best() -> None:
    call = make_call(make_specialists(), [{name: 1.0} for name in SKILLS], 1)
    assert recruit_many(call, "skill").experts_Qk.tolist() == [[0], [1], [2]]
    assert recruit_many(call, "top_k").experts_Qk.tolist() == [[0], [0], [0]]


def test_equal_experts_come_in_alphabetical_order() -> None:
    table = make_table([[True] * 4, [False] * 4] * 10, ({"law": 1.0},) * 20)
    for policy in ("skill", "top_k"):
        found = recruit_many(make_call(table, [{}, {"law": 1.0}], 2), policy).experts_Qk
        assert found[:, 0].tolist() == [0, 0]
    # An error of rounding, as sums in another order make it, breaks no tie.
    call = make_call(table, [{}] * 3, 4)
    off_E = call.beliefs.ability_E + np.array([0.0, 2e-13, 1e-13, 3e-13])
    nearly = replace(call, beliefs=replace(call.beliefs, ability_E=off_E))
    expected = recruit_many(call, "skill").experts_Qk
    assert recruit_many(nearly, "skill").experts_Qk.tolist() == expected.tolist()


def test_of_two_equal_experts_the_one_whose_errors_differ_is_chosen() -> None:
    rng = np.random.default_rng(0)
    best_N, clone_N = rng.random(100) < 0.7, np.zeros(100, bool)
    clone_N[:] = best_N
    clone_N[np.flatnonzero(best_N)[0]] = False
    other_N = np.zeros(100, bool)
    other_N[rng.choice(100, clone_N.sum(), replace=False)] = True
    table = make_table(np.column_stack([best_N, clone_N, other_N]), ({},) * 100)
    call = make_call(table, [{}], 2)
    assert call.beliefs.strengths.overall_E[1] == call.beliefs.strengths.overall_E[2]
    assert call.beliefs.alike_EE[0, 1] > 0.8 > 0.3 > call.beliefs.alike_EE[0, 2]
    assert recruit_many(call, "skill").experts_Qk.tolist() == [[0, 2]]
    assert recruit_many(call, "top_k").experts_Qk.tolist() == [[0, 1]]


def test_the_stated_chance_is_that_of_the_beliefs() -> None:
    call = make_call(draw_profile(3), [{"law": 1.0}, {}], 2)
    expected = call.beliefs.expect(call.skills)
    np.testing.assert_allclose(recruit_many(call, "skill").chance_QE, expected)


# Known mistakes of the originals (symbolic-moe.md §1.5 and §2), none of which `skill` may make.


def test_being_bad_here_and_everywhere_is_never_a_reward() -> None:
    # e2 is the worst at both skills: -20 at law, -30 in all, of a pool's total of 34.
    law = [[at < 12, at < 10, False] for at in range(20)]
    art = [[True, at < 30, at < 15] for at in range(40)]
    table = make_table([*law, *art], ({"law": 1.0},) * 20 + ({"art": 1.0},) * 40)
    call = make_call(table, [{"law": 1.0}] * 200, 2)
    assert (recruit_many(call, "paper").experts_Qk == 2).mean() > 0.9, "the mistake"
    assert recruit_many(call, "skill").experts_Qk.tolist() == [[0, 1]] * 200
    worse = recruit_many(call, "skill").chance_QE[0]
    assert worse[2] < worse[1] < worse[0]


def test_an_expert_that_gets_worse_never_rises() -> None:
    rng = np.random.default_rng(4)
    right_NE = rng.random((60, 3)) < 0.5
    skills = ({"law": 1.0}, {"art": 1.0}) * 30
    chances: list[float] = []
    for wrong in range(0, 61, 10):
        changed = right_NE.copy()
        changed[:wrong, 1] = False
        call = make_call(make_table(changed, skills), [{"law": 1.0}], 1)
        chances.append(float(recruit_many(call, "skill").chance_QE[0, 1]))
    assert chances == sorted(chances, reverse=True)


def test_no_expert_fills_two_places() -> None:
    table = draw_profile(5)
    questions = [{"law": 1.0}, {}, {"art": 1.0}] * 100
    drawn = recruit_many(make_call(table, questions, 3), "reference").experts_Qk
    assert any(len(set(row)) < 3 for row in drawn.tolist()), "the mistake"
    ours = recruit_many(make_call(table, questions, 3), "skill").experts_Qk
    assert all(len(set(row)) == 3 for row in ours.tolist())


def test_a_question_without_skills_does_not_go_to_anybody() -> None:
    right = [[at % 10 < 8, at % 10 < 5, at % 10 < 1] for at in range(60)]
    call = make_call(make_table(right, ({"law": 1.0},) * 60), [{}, {"poetry": 1.0}] * 100, 1)
    drawn = recruit_many(call, "reference").experts_Qk
    assert set(drawn.ravel().tolist()) == {0, 1, 2}, "the mistake"
    assert set(recruit_many(call, "skill").experts_Qk.ravel().tolist()) == {0}


def test_the_names_of_experts_do_not_decide_who_is_better() -> None:
    """The table sorts its experts, so the order of a listing cannot matter; nor do names but in ties."""
    table = draw_profile(6)
    order = [3, 0, 4, 2, 1]
    moved = replace(table, labels_NE=table.labels_NE[:, order])
    questions = draw_questions(7)
    one = recruit_many(make_call(table, questions, 3), "skill").experts_Qk
    other = recruit_many(make_call(moved, questions, 3), "skill").experts_Qk
    assert np.array(order)[other].tolist() == one.tolist()


def test_a_longer_profile_of_the_same_shares_does_not_make_chances_run_to_1() -> None:
    """A softmax over summed scores does: 10 times the rows, 10 times the logit."""
    table = make_specialists()
    chances: list[Floats] = []
    for times in (1, 10):
        rows = np.tile(np.arange(len(table)), times)
        call = make_call(table.select(rows), [{"law": 1.0}], 1)
        chances.append(recruit_many(call, "skill").chance_QE[0])
    assert chances[1].max() < 0.95
    np.testing.assert_allclose(chances[0], chances[1], atol=0.12)


# --- costs ----------------------------------------------------------------------------------------


def make_costly(tokens: list[float]) -> OutcomeTable:
    """Three experts, the better the earlier."""
    right = [[at % 10 < 8, at % 10 < 7, at % 10 < 6] for at in range(60)]
    return make_table(right, ({},) * 60, tokens_E=np.array(tokens))


def recruit_at_cost(tokens: list[float], k: int = 1, **cost: Any) -> list[int]:
    call = make_call(make_costly(tokens), [{}], k, cost=Cost(**cost))
    return recruit_many(call, "skill").experts_Qk[0].tolist()


def test_a_cost_term_prefers_the_cheap_among_the_nearly_equal() -> None:
    tokens = [4000.0, 200.0, 200.0]
    assert recruit_at_cost(tokens) == [0]
    assert recruit_at_cost(tokens, weight=0.01) == [0]
    assert recruit_at_cost(tokens, weight=1.0) == [1]
    assert recruit_at_cost([200.0] * 3, weight=1.0) == [0]


def test_a_budget_leaves_out_who_does_not_fit() -> None:
    tokens = [500.0, 300.0, 100.0]
    assert recruit_at_cost(tokens, k=3, budget=900.0) == [0, 1, 2]
    assert set(recruit_at_cost(tokens, k=3, budget=650.0)) == {0, 2, -1}
    assert set(recruit_at_cost(tokens, k=3, budget=450.0)) == {1, 2, -1}
    assert recruit_at_cost(tokens, k=3, budget=100.0) == [2, -1, -1]


def test_the_cheapest_is_asked_alone_if_nobody_fits() -> None:
    assert recruit_at_cost([500.0, 300.0, 400.0], k=3, budget=50.0) == [1, -1, -1]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 900), min_size=3, max_size=3), st.integers(1, 2000), st.integers(1, 3)
)
def test_a_budget_is_kept_unless_nobody_fits(tokens: list[int], budget: int, k: int) -> None:
    chosen = recruit_at_cost([float(x) for x in tokens], k=k, budget=float(budget))
    asked = [at for at in chosen if at >= 0]
    spent = sum(tokens[at] for at in asked)
    assert asked
    assert spent <= budget or (len(asked) == 1 and min(tokens) == spent)


def test_an_unknown_cost_counts_as_the_mean_of_the_known() -> None:
    assert fill_costs(np.array([100.0, 0.0, 300.0])).tolist() == [100, 200, 300]
    relative = log_relative(np.array([100.0, 0.0, 300.0]))
    np.testing.assert_allclose(relative, np.log([0.5, 1.0, 1.5]))
    assert recruit_at_cost([100.0, 0.0, 300.0], k=1, budget=150.0) == [0]
    with pytest.raises(InputError, match="holds no costs of calls"):
        recruit_at_cost([0.0] * 3, k=1, budget=150.0)


@pytest.mark.parametrize("given", [{"weight": -1.0}, {"weight": float("nan")}, {"budget": 0.0}])
def test_costs_that_make_no_sense_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InputError, match="choose"):
        Cost(**given)  # pyright: ignore[reportArgumentType]


# --- knn, top_k, random ---------------------------------------------------------------------------


def test_neighbours_are_counted_and_shrunk() -> None:
    # e0 is right on the rows 0 to 2, e1 on the rows 3 to 9: overall 4/12 and 8/12.
    right = [[at < 3, at >= 3] for at in range(10)]
    table = make_table(right, ({},) * 10)
    near_QN = np.array([[0, 1, 2], [3, 4, -1], [-1, -1, -1]])
    found = recruit_many(make_call(table, [{}] * 3, 2, near_QN=near_QN), "knn")
    by_hand = [
        [(3 + 2 * 4 / 12) / 5, (0 + 2 * 8 / 12) / 5],
        [(0 + 2 * 4 / 12) / 4, (2 + 2 * 8 / 12) / 4],
        [4 / 12, 8 / 12],
    ]
    np.testing.assert_allclose(found.chance_QE, by_hand, rtol=1e-12)
    assert found.experts_Qk.tolist() == [[0, 1], [1, 0], [1, 0]]


def test_neighbours_that_an_expert_was_not_asked_say_nothing_about_it() -> None:
    table = make_table([[True, True]] * 4, ({},) * 4)
    labels_NE = table.labels_NE.copy()
    labels_NE[:2, 1] = MISSING
    sparse = replace(table, labels_NE=labels_NE)
    near_QN = np.array([[0, 1]])
    found = recruit_many(make_call(sparse, [{}], 1, near_QN=near_QN), "knn")
    np.testing.assert_allclose(found.chance_QE, [[(2 + 2 * 5 / 6) / 4, 3 / 4]])


def test_neighbours_beyond_the_twentieth_do_not_count() -> None:
    table = make_table([[at < 20, at >= 20] for at in range(60)], ({},) * 60)
    near_QN = np.arange(60)[None]
    assert recruit_many(make_call(table, [{}], 1, near_QN=near_QN), "knn").experts_Qk == [[0]]
    with pytest.raises(InputError, match="knn needs the nearest reference questions"):
        recruit_many(make_call(table, [{}], 1), "knn")


def test_random_recruits_are_everybody_evenly() -> None:
    call = make_call(draw_profile(8), [{}] * 3000, 2)
    found = recruit_many(call, "random").experts_Qk
    shares = np.bincount(found.ravel(), minlength=5) / found.size
    np.testing.assert_allclose(shares, 0.2, atol=0.03)


def test_originals_may_draw_an_expert_more_than_once_and_trimming_drops_the_rare() -> None:
    right = [[at % 10 < 9, at % 10 < 8, at % 40 < 1] for at in range(80)]
    call = make_call(make_table(right, ({"law": 1.0},) * 80), [{"law": 1.0}] * 400, 3)
    plain = recruit_many(call, "reference").experts_Qk
    assert any(len(set(row)) == 1 for row in plain.tolist())
    weak = make_table([[at % 10 < 6, at % 10 < 4, False] for at in range(10)], ({"law": 1.0},) * 10)
    rare = make_call(weak, [{"law": 1.0}] * 400, 3)
    paper, trimmed = (recruit_many(rare, p).experts_Qk for p in ("paper", "paper-trimmed"))
    share = np.bincount(paper.ravel(), minlength=3) / paper.size
    kept = np.unique(trimmed).tolist()
    assert kept == np.flatnonzero(share >= 0.05).tolist()
    common = share[paper] >= 0.05
    assert (trimmed[common] == paper[common]).all()
