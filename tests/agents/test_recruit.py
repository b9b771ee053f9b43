"""Recruiting by name with reasons: what people read is what was computed, and mistakes are explained."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.beliefs import Beliefs
from expertmix.agents.outcomes import MISSING, OutcomeTable, SkillWeights
from expertmix.agents.policies import POLICIES, Call, Cost, Policy, recruit_many
from expertmix.agents.recruit import Recruit, explain_recruit, recruit
from expertmix.retrieval import InputError

LAW, ART = {"law": 1.0}, {"art": 1.0}
EXPERTS = ("average", "lawyer", "painter")


def make_table(right_NE: npt.ArrayLike, skills: tuple[SkillWeights, ...]) -> OutcomeTable:
    given_NE = np.array(right_NE, bool)
    return OutcomeTable(
        experts=EXPERTS,
        questions=tuple(f"r{at}" for at in range(len(given_NE))),
        labels_NE=np.where(given_NE, 0, [1, 2, 3]).astype(np.int16),
        gold_N=np.zeros(len(given_NE), np.int16),
        options_N=np.full(len(given_NE), 10, np.int16),
        skills=skills,
        tokens_E=np.array([120.0, 300.0, 0.0]),
    )


# Twenty questions of law and twenty of art: right are 10 and 10, 18 and 3, 2 and 16.
TABLE = make_table(
    [[at % 2 == 0, at < 18, at >= 18] for at in range(20)]
    + [[at % 2 == 0, at < 3, at < 16] for at in range(20)],
    (LAW,) * 20 + (ART,) * 20,
)
BELIEFS = Beliefs.fit(TABLE)


def choose(skills: SkillWeights, k: int = 1, policy: Policy = "skill") -> list[Recruit]:
    near = {"q": [0, 1, 2]}
    return recruit({"q": skills}, EXPERTS, k=k, table=TABLE, policy=policy, near=near)["q"]


def test_the_question_decides_who_is_best() -> None:
    assert [one.expert for one in choose(LAW)] == ["lawyer"]
    assert [one.expert for one in choose(ART)] == ["painter"]
    assert choose(LAW)[0].weight > choose(ART)[0].weight > 0.5


def test_skills_never_seen_count_as_none() -> None:
    names = [[one.expert for one in choose(skills, k=3)] for skills in ({}, {"poetry": 1.0})]
    assert names[0] == names[1]
    assert [one.weight for one in choose({}, k=3)] == [
        one.weight for one in choose({"poetry": 1.0}, k=3)
    ]


@settings(deadline=None)
@given(st.permutations(EXPERTS), st.integers(0, 5), st.sampled_from(POLICIES))
def test_no_order_of_experts_or_questions_changes_who_is_recruited(
    aliases: list[str], seed: int, policy: Policy
) -> None:
    skills: dict[str, SkillWeights] = {"1": LAW, "2": {}, "3": {"art": 0.7, "law": 0.3}}
    near = {"1": [0, 1], "2": [5], "3": [30, 31, 32]}
    shuffled = dict(random.Random(seed).sample(list(skills.items()), 3))
    plain = recruit(skills, EXPERTS, k=2, table=TABLE, policy=policy, seed=seed, near=near)
    other = recruit(shuffled, aliases, k=2, table=TABLE, policy=policy, seed=seed, near=near)
    assert list(other) == list(shuffled)
    assert plain == {qid: other[qid] for qid in plain}


@settings(deadline=None)
@given(st.sampled_from(POLICIES), st.integers(0, 20), st.integers(1, 3))
def test_names_are_those_of_the_arrays(policy: Policy, seed: int, k: int) -> None:
    skills: dict[str, SkillWeights] = {"a": LAW, "b": ART, "c": {}}
    near = {"a": [0, 1], "b": [25], "c": ()}
    told = recruit(skills, EXPERTS, k=k, table=TABLE, policy=policy, seed=seed, near=near)
    near_QN = np.array([[0, 1], [25, -1], [-1, -1]])
    call = Call(
        ids=list(skills),
        skills=list(skills.values()),
        table=TABLE,
        beliefs=BELIEFS,
        k=k,
        seed=seed,
        near_QN=near_QN,
    )
    chosen = recruit_many(call, policy)
    for row, recruits in enumerate(told.values()):
        drawn = [EXPERTS[at] for at in chosen.experts_Qk[row]]
        assert [one.expert for one in recruits] == list(dict.fromkeys(drawn))
        assert [one.samples for one in recruits] == [drawn.count(one.expert) for one in recruits]
        for one in recruits:
            assert one.weight == chosen.chance_QE[row, EXPERTS.index(one.expert)]


# --- reasons --------------------------------------------------------------------------------------


def test_a_reason_tells_estimate_interval_and_overall_share() -> None:
    strengths = BELIEFS.strengths
    estimate = strengths.estimate([LAW])[0, 1]
    low, high = strengths.interval("lawyer", "law")
    overall = (18 + 3 + 1) / (40 + 2)
    expected = f"law {estimate:.2f} [{low:.2f}, {high:.2f}], overall {overall:.2f} (40 answers)"
    assert explain_recruit(BELIEFS, "lawyer", LAW) == expected
    assert choose(LAW)[0].reason == expected
    assert 0 < low < estimate < high < 1


def test_a_reason_says_what_was_never_seen() -> None:
    reason = explain_recruit(BELIEFS, "painter", {"poetry": 0.5, "law": 0.5})
    assert reason.startswith("poetry never seen, law 0.")
    labels_NE = TABLE.labels_NE.copy()
    labels_NE[:, 0] = MISSING
    beliefs = Beliefs.fit(replace(TABLE, labels_NE=labels_NE, skills=()))
    assert explain_recruit(beliefs, "average", LAW) == "law never seen, overall 0.50 (no answers)"
    with pytest.raises(InputError, match='no expert "bob"; there are average, lawyer, painter'):
        explain_recruit(BELIEFS, "bob", LAW)


def test_the_reason_of_a_later_recruit_tells_how_alike_its_errors_are() -> None:
    first, second, third = choose(LAW, k=3)
    assert "errors alike" not in first.reason
    places = [EXPERTS.index(one.expert) for one in (first, second, third)]
    alike = BELIEFS.alike_EE
    assert f"so far {alike[places[1], places[0]]:.2f}" in second.reason
    assert f"so far {alike[places[2], places[:2]].mean():.2f}" in third.reason


def test_the_reason_of_a_neighbourhood_is_its_share_right() -> None:
    best = choose({}, policy="knn")[0]
    share = (3 + 2 * BELIEFS.strengths.overall_E[1]) / 5
    assert best.expert == "lawyer"
    assert best.reason.endswith(f"; right on its nearest references {share:.2f}")
    assert best.weight == pytest.approx(share)


def test_reasons_of_drawn_experts_say_so_with_the_seed() -> None:
    assert choose({}, policy="random")[0].reason.endswith("; drawn at random (seed 0)")
    for policy in ("paper", "paper-trimmed", "reference"):
        assert "; drawn with replacement (seed 0)" in choose(LAW, policy=policy)[0].reason


def test_an_expert_that_is_drawn_twice_stands_once_with_its_draws() -> None:
    skills: dict[str, SkillWeights] = {str(at): LAW for at in range(50)}
    found = recruit(skills, EXPERTS, k=3, table=TABLE, policy="reference")
    assert all(sum(one.samples for one in recruits) == 3 for recruits in found.values())
    twice = [one for recruits in found.values() for one in recruits if one.samples > 1]
    assert twice
    assert twice[0].to_json()["draws"] == twice[0].samples
    assert "draws" not in Recruit(expert="a", weight=0.5, reason="").to_json()


def test_a_cost_stands_in_the_reason_and_a_budget_in_who_is_asked() -> None:
    found = recruit({"q": LAW}, EXPERTS, k=3, table=TABLE, cost=Cost(budget=330.0))["q"]
    by_name = {one.expert: one.reason for one in found}
    assert list(by_name) == ["lawyer"]
    assert "; 300 tokens a call" in by_name["lawyer"]
    dear = recruit({"q": {}}, EXPERTS, k=3, table=TABLE, cost=Cost(weight=0.1))["q"]
    reasons = {one.expert: one.reason for one in dear}
    assert "; 120 tokens a call" in reasons["average"]
    assert "; unknown tokens a call" in reasons["painter"]


@settings(deadline=None)
@given(st.sampled_from(POLICIES), st.integers(0, 9))
def test_reasons_are_words_and_finite_numbers(policy: Policy, seed: int) -> None:
    near = {"q": [seed]}
    found = recruit(
        {"q": {"law": 0.5, "poetry": 0.2}},
        EXPERTS,
        k=3,
        table=TABLE,
        policy=policy,
        seed=seed,
        near=near,
    )
    for one in found["q"]:
        assert re.search(
            r"law 0\.\d\d \[0\.\d\d, 0\.\d\d\], poetry never seen, overall 0", one.reason
        )
        assert "nan" not in one.reason
        assert "{" not in one.reason


# --- without a profile, with part of one, with the wrong one ------------------------------------------


def test_without_a_profile_recruits_are_drawn_and_say_so() -> None:
    skills: dict[str, SkillWeights] = {str(at): {} for at in range(60)}
    draws = [recruit(skills, EXPERTS, k=2, seed=seed) for seed in (0, 1)]
    firsts = [[draw[qid][0].expert for qid in skills] for draw in draws]
    assert set(firsts[0]) == set(EXPERTS)
    assert firsts[0] != firsts[1]
    assert all(len({one.expert for one in found}) == 2 for found in draws[0].values())
    one = draws[1]["0"][0]
    assert (one.weight, one.reason) == (0.5, "no profile: drawn at random (seed 1)")


def test_a_part_of_the_experts_is_believed_what_its_own_answers_say() -> None:
    pair = ["painter", "average"]
    found = recruit({"q": LAW}, pair, k=2, table=TABLE, beliefs=BELIEFS)["q"]
    alone = recruit({"q": LAW}, pair, k=2, table=TABLE.select(range(40), pair))["q"]
    assert found == alone
    assert {one.expert for one in found} == set(pair)


def test_beliefs_about_others_are_refused() -> None:
    strangers = Beliefs.fit(TABLE.select(range(40), ["lawyer", "painter"]))
    with pytest.raises(InputError, match="beliefs are about lawyer, painter, but the table about"):
        recruit({"q": LAW}, EXPERTS, k=1, table=TABLE, beliefs=strangers)


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_must_fit_the_pool(k: int) -> None:
    for table in (None, TABLE):
        with pytest.raises(InputError, match=f"k is {k}, but the pool has 3 experts .* 1 and 3"):
            recruit({"q": {}}, EXPERTS, k=k, table=table)


def test_no_questions_get_no_recruits() -> None:
    assert recruit({}, EXPERTS, k=1, table=TABLE) == {}
    assert recruit({}, EXPERTS, k=1) == {}


def test_an_unknown_policy_is_named_with_those_that_exist() -> None:
    with pytest.raises(InputError, match='unknown policy "best"; policies are skill, top_k, knn'):
        recruit({"q": {}}, EXPERTS, k=1, table=TABLE, policy="best")  # pyright: ignore[reportArgumentType]


def test_an_expert_without_a_profile_is_named() -> None:
    with pytest.raises(InputError, match='no expert "new" in the table; it has average, lawyer'):
        recruit({"q": {}}, [*EXPERTS, "new"], k=1, table=TABLE)


def test_neighbours_need_references() -> None:
    with pytest.raises(InputError, match="knn needs the profile's reference questions"):
        recruit({"q": {}}, EXPERTS, k=1, table=TABLE, policy="knn")


def test_shares_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="shares of skills"):
        recruit({"q": {"law": float("nan")}}, EXPERTS, k=1, table=TABLE)
