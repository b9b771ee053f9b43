"""Accuracies and differences over the same questions, with intervals that can be checked."""

from __future__ import annotations

import numpy as np
import pytest

from expertmix.graph.intervals import resample, summarise
from expertmix.graph.replay import Replay


def replay(policy: str, calls: int, right: list[bool], **other: float) -> Replay:
    told = {"calls_mean": float(calls), "tokens_mean": 0.0} | other
    return Replay(policy=policy, calls=calls, right_Q=np.array(right), **told)


def test_resampled_means_have_the_spread_of_a_mean() -> None:
    values = np.random.default_rng(0).random((400, 2)) < (0.5, 0.1)
    means = resample(values.astype(float))
    assert means.shape == (2000, 2)
    assert means.mean(0) == pytest.approx(values.mean(0), abs=0.003)
    share = values.mean(0)
    assert means.std(0) == pytest.approx(np.sqrt(share * (1 - share) / 400), rel=0.06)
    assert np.array_equal(means, resample(values.astype(float)))
    assert not np.array_equal(means, resample(values.astype(float), seed=1))


def test_resampling_is_paired() -> None:
    values = np.random.default_rng(0).random((300, 1))
    means = resample(np.concatenate([values, values + 0.25], axis=1))
    assert np.ptp(means[:, 1] - means[:, 0]) < 1e-9


def test_rows_have_the_promised_keys_and_differences() -> None:
    right, wrong = [True] * 30 + [False] * 10, [True] * 10 + [False] * 30
    by_seed = {
        seed: [
            replay("skill", 3, right if seed else wrong, ece=0.2 * seed, tokens_mean=9.0),
            replay("top_k_vote", 2, wrong),
            replay("top_k_vote", 3, wrong),
            replay("reference", 3, right),
            replay("best_single", 1, wrong),
            replay("best_single_hindsight", 1, right),
        ]
        for seed in (0, 1)
    }
    rows = summarise(by_seed, policies=["skill", "best_single"], skills="learned")
    assert [row["policy"] for row in rows] == ["skill", "best_single"]
    skill, single = rows
    assert {"policy", "calls", "calls_mean", "accuracy", "low", "high", "n"} <= set(skill)
    assert (skill["accuracy"], skill["n"], skill["seeds"]) == (0.5, 40, 2)
    assert skill["low"] < 0.5 < skill["high"]
    assert (skill["ece"], skill["tokens_mean"], skill["seed_spread"]) == (0.1, 9.0, 0.25)
    assert skill["delta_best_single"]["mean"] == skill["delta_top3"]["mean"] == 0.25
    assert skill["delta_best_single_hindsight"]["mean"] == skill["delta_reference"]["mean"] == -0.25
    assert skill["delta_top3"]["low"] < 0.25 < skill["delta_top3"]["high"]
    assert single["delta_best_single"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert single["delta_reference"] is None
    assert single["ece"] is single["tokens_mean"] is None


def test_what_a_seed_could_not_replay_is_left_out() -> None:
    by_seed = {
        0: [replay("skill", 1, [True, False]), replay("paper-trimmed", 1, [True, True])],
        1: [replay("skill", 1, [True, False])],
    }
    rows = summarise(by_seed, policies=["skill", "paper-trimmed"], skills="none")
    assert [row["policy"] for row in rows] == ["skill"]
    assert summarise({0: []}, policies=["skill"], skills="none") == []
