"""Replays over an artificial pool whose right answers are known, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.adaptive import Adaptive
from expertmix.agents.beliefs import Beliefs
from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable
from expertmix.agents.policies import Call
from expertmix.agents.posterior import Evidence
from expertmix.agents.recorded import Division, Recorded
from expertmix.graph.replay import RULES, Replay
from expertmix.graph.study import (
    FIXED_PANELS,
    merge_by_posterior,
    merge_by_vote,
    replay_adaptive,
    replay_seed,
)
from expertmix.graph.trial import Trial
from expertmix.retrieval import InputError, Question
from expertmix.retrieval.encoded import EncodedTexts

TOPICS = ("sums", "birds", "laws")
EXPERTS = ("ada", "bob", "cy", "di", "ed")


class Topical:
    """Vectors that show a text's first word, its topic."""

    name, revision = "topical", "1"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = [[text.split()[0] == topic for topic in TOPICS] for text in texts]
        noise = [[len(text) % 7 / 40] for text in texts]
        vectors = np.concatenate([np.array(rows, np.float32), np.array(noise)], axis=1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def record(number: int, *, mergeable: bool = True, seed: int = 0) -> Recorded:
    """Five experts, two of them good at one topic each, the others at nothing much."""
    chance = np.random.default_rng(seed)
    topics = [TOPICS[n % 3] for n in range(number)]
    skill = np.array([[0.9, 0.3, 0.3], [0.3, 0.9, 0.3], [0.4] * 3, [0.35] * 3, [0.3] * 3])
    gold = chance.integers(0, 4, number)
    right = chance.random((number, 5)) < skill.T[[TOPICS.index(topic) for topic in topics]]
    wrong = (gold[:, None] + chance.integers(1, 4, (number, 5))) % 4
    labels = np.where(right, gold[:, None], wrong).astype(np.int16)
    labels[chance.random((number, 5)) < 0.05] = UNREADABLE
    if not mergeable:
        labels = np.where(right, 0, 1 + np.arange(5)).astype(np.int16)
        gold = np.zeros(number)
    options = tuple("wxyz") if mergeable else ()
    return Recorded(
        questions=tuple(
            Question(
                id=f"q{n:04d}", text=f"{topic} {n}", options=options, gold="A", skills=(topic,)
            )
            for n, topic in enumerate(topics)
        ),
        splits=tuple("profile" if n % 3 == 0 or n % 7 < 2 else "test" for n in range(number)),
        categories=tuple(topics),
        table=OutcomeTable(
            experts=EXPERTS,
            questions=tuple(f"q{n:04d}" for n in range(number)),
            labels_NE=labels,
            gold_N=gold.astype(np.int16),
            options_N=np.full(number, len(options), np.int16),
        ),
        tokens_NE=np.tile(np.array([10.0, 20.0, 30.0, 40.0, 50.0]), (number, 1)),
        mergeable=mergeable,
    )


def make_trial(number: int = 600, **other: Any) -> Trial:
    recorded = record(number, **other)
    rows = np.arange(number)
    learnt, tested = rows[: number // 2], rows[number // 2 :]
    trial = Trial.of(recorded, Division(profile=learnt, test=tested))
    texts = [question.text for question in recorded.questions]
    return trial.with_encoder(EncodedTexts.compute(Topical(), texts))


@pytest.fixture(scope="module")
def trial() -> Trial:
    return make_trial()


def shares(replays: Sequence[Replay]) -> dict[tuple[str, int], float]:
    return {(r.policy, r.calls): float(r.right_Q.mean()) for r in replays}


def test_every_policy_is_replayed_and_the_good_ones_are_better(trial: Trial) -> None:
    replays, lacking = replay_seed(trial, policies=list(RULES), calls=[2, 3])
    assert not lacking
    share = shares(replays)
    for policy, rule in RULES.items():
        sizes = {calls for name, calls in share if name == policy}
        expected = {"alone": {1}, "any": {5}}.get(rule, {2, 3})
        assert sizes == (set(range(1, 6)) if policy == "top_k_vote" else expected), policy
    assert share["skill", 3] > share["random", 3] + 0.05
    assert share["skill", 3] > share["top_k_vote", 3]
    assert share["skill", 3] > share["skill_shuffled", 3] + 0.05, "the skills themselves count"
    assert share["oracle", 5] == max(share.values())
    assert share["best_single_hindsight", 1] >= share["best_single", 1]
    costs = {(r.policy, r.calls): (r.calls_mean, r.tokens_mean) for r in replays}
    assert costs["oracle", 5] == (5, 150)
    assert costs["reference", 3][0] == 3, "a repeated draw is a call of its own"
    assert costs["adaptive", 3][0] <= 3
    assert all((r.ece is None) == (RULES[r.policy] != "posterior") for r in replays)


def test_nothing_is_learnt_from_the_test(trial: Trial) -> None:
    """Other gold answers change who is right, but nobody's panel, so no cost and no confidence."""
    other = replace(trial.test, gold_N=(trial.test.gold_N + 1) % 4)
    policies = [name for name in RULES if name != "best_single_hindsight"]
    first, _ = replay_seed(trial, policies=policies, calls=[3])
    second, _ = replay_seed(replace(trial, test=other), policies=policies, calls=[3])
    assert [r.tokens_mean for r in first] == [r.tokens_mean for r in second]
    for one, two in zip(first, second, strict=True):
        if RULES[one.policy] != "any":
            assert not (one.right_Q & two.right_Q).any(), one.policy


def test_a_seed_repeats_and_another_draws_anew(trial: Trial) -> None:
    runs = [
        replay_seed(trial, policies=["random_vote", "top_k_vote"], calls=[2], seed=seed)[0]
        for seed in (1, 1, 2)
    ]
    one, again, other = ([r.right_Q.tolist() for r in run] for run in runs)
    assert one == again
    assert one != other


def test_the_order_of_questions_changes_no_verdict(trial: Trial) -> None:
    order = np.random.default_rng(0).permutation(len(trial.test))
    shuffled = replace(
        trial, test=trial.test.select(order), asked=tuple(trial.asked[at] for at in order)
    )
    policies = [name for name in RULES if name != "skill_shuffled"]
    first, _ = replay_seed(trial, policies=policies, calls=[3])
    second, _ = replay_seed(shuffled, policies=policies, calls=[3])
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.right_Q[order], two.right_Q), one.policy


@pytest.mark.parametrize("skills", ["category", "none"])
def test_other_sources_of_skills_need_no_vectors(trial: Trial, skills: Any) -> None:
    bare = replace(trial, encoder=None)
    replays, lacking = replay_seed(bare, policies=["skill", "knn"], calls=[3], skills=skills)
    assert [r.policy for r in replays] == ["skill"]
    assert "knn" in lacking[0]
    with pytest.raises(InputError, match="vectors"):
        replay_seed(bare, policies=["skill"], calls=[3])


def test_categories_that_do_not_exist_are_missed(trial: Trial) -> None:
    nameless = replace(
        trial,
        learnt=tuple(replace(q, skills=()) for q in trial.learnt),
        asked=tuple(replace(q, skills=()) for q in trial.asked),
    )
    with pytest.raises(InputError, match="no column category"):
        replay_seed(nameless, policies=["skill"], calls=[3], skills="category")


def test_without_answers_the_first_recruit_answers_alone() -> None:
    trial = make_trial(mergeable=False)
    replays, _ = replay_seed(trial, policies=list(RULES), calls=[3])
    share = shares(replays)
    assert all(r.calls_mean == 1 for r in replays if r.policy != "oracle")
    assert share["skill", 3] == share["adaptive", 3] > share["best_single", 1] + 0.05
    assert share["top_k_vote", 3] == share["best_single", 1]


def test_a_pool_of_two_and_twenty_questions() -> None:
    recorded = record(20)
    recorded = replace(
        recorded,
        table=recorded.table.select(np.arange(20), ["ada", "bob"]),
        tokens_NE=recorded.tokens_NE[:, :2],
    )
    trial = Trial.of(recorded, Division(profile=np.arange(10), test=np.arange(10, 20)))
    texts = [q.text for q in recorded.questions]
    trial = trial.with_encoder(EncodedTexts.compute(Topical(), texts))
    replays, lacking = replay_seed(trial, policies=list(RULES), calls=[1, 2])
    assert not lacking
    assert {r.policy for r in replays} == set(RULES)


def test_what_cannot_be_replayed_is_refused(trial: Trial) -> None:
    with pytest.raises(InputError, match='unknown policy "best"'):
        replay_seed(trial, policies=["best"], calls=[3])
    for calls in ([6], [0, 3], []):
        with pytest.raises(InputError, match="between 1 and 5 experts"):
            replay_seed(trial, policies=["skill"], calls=calls)
    assert FIXED_PANELS == 16


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 50), st.integers(1, 5))
def test_an_adaptive_panel_keeps_its_budget_and_asks_nobody_twice(
    calls: int, seed: int, rounds: int
) -> None:
    table = record(60, seed=seed).table
    said = np.where(table.labels_NE == 2, UNREADABLE, table.labels_NE)
    call = Call(ids=table.questions, skills=[{}] * 60, table=table, beliefs=Beliefs.fit(table), k=1)
    limits = Adaptive(calls=calls, first=min(2, calls), most=8, rounds=rounds)
    experts = replay_adaptive(call, limits, table, said)
    counts = (experts >= 0).sum(1)
    assert counts.sum() <= calls * 60
    assert counts.min() >= limits.first
    for row in experts:
        asked = row[row >= 0].tolist()
        assert len(set(asked)) == len(asked)
        assert (row[len(asked) :] == -1).all(), "no gaps"


def test_a_vote_counts_repeated_draws_and_the_first_drawn_wins_a_tie() -> None:
    labels = np.array(
        [
            [2, 1, 1],
            [2, 1, 0],
            [UNREADABLE, 1, UNREADABLE],
            [UNREADABLE, MISSING, MISSING],
            [3, 0, UNREADABLE],
        ]
    )
    assert merge_by_vote(labels).tolist() == [1, 2, 1, UNREADABLE, 3]


def test_the_posterior_names_an_answer_that_was_given_or_none() -> None:
    beliefs = Beliefs.fit(record(200).table)
    labels = np.array([[1, 1, 2], [UNREADABLE] * 3, [UNREADABLE, 3, UNREADABLE]])
    said = np.full((3, 5), MISSING)
    said[:, :3] = labels
    evidence = Evidence(
        ability_QE=beliefs.foresee([{}] * 3), options_Q=np.full(3, 4), labels_QE=said
    )
    label, chance = merge_by_posterior(beliefs, evidence, labels)
    assert label.tolist() == [1, UNREADABLE, 3]
    assert chance[1] == 0
    assert 0 < chance[0] < 1


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_replay_survives_its_file(right: list[bool]) -> None:
    replay = Replay(
        policy="skill", calls=3, right_Q=np.array(right), calls_mean=3.0, tokens_mean=0.5, ece=0.1
    )
    again = Replay.from_json(replay.to_json())
    assert again.right_Q.tolist() == right
    assert replace(again, right_Q=replay.right_Q) == replay
