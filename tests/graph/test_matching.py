"""Who is compared with whom at equal calls and at equal tokens."""

from __future__ import annotations

import pytest

from expertmix.graph import Solution
from expertmix.graph.accounts import Spending
from expertmix.graph.baselines import (
    Debate,
    Majority,
    MixedDebate,
    Oracle,
    SelfConsistency,
    SingleBest,
)
from expertmix.graph.comparison import Entry
from expertmix.graph.matching import SLACK, Pair, match_by
from expertmix.graph.methods import AdaptivePanel, Method, Panel
from expertmix.retrieval import Question


def enter(method: Method, right: str = "++--", tokens: float | None = None) -> Entry:
    """A method that is right where there is a `+`, and generates ten tokens a call unless told."""
    solutions = [
        Solution(
            question=Question(id=str(at), text="?", gold="yes"),
            row={"answer": "yes" if sign == "+" else "no"},
        )
        for at, sign in enumerate(right)
    ]
    spending = Spending(
        calls=method.calls,
        prompt_tokens=100,
        tokens=10.0 * method.calls if tokens is None else tokens,
        seconds=None,
        loads=0,
    )
    return Entry(method=method, by_seed={0: solutions}, spending=spending)


def names(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.ours, pair.other) for pair in pairs]


def test_at_equal_calls_each_method_takes_part_in_its_largest_form() -> None:
    entries = [
        enter(Panel(k=3)),
        enter(Panel(k=6)),
        enter(SingleBest()),
        enter(SelfConsistency(samples=3)),
        enter(SelfConsistency(samples=6)),
        enter(Debate()),
        enter(Oracle(experts=5)),
    ]
    pairs = match_by("calls", entries, (3, 6))
    assert names(pairs) == [
        ("panel@3", "single_best@1"),
        ("panel@3", "self_consistency@3"),
        ("panel@6", "single_best@1"),
        ("panel@6", "self_consistency@6"),
        ("panel@6", "debate@6"),
    ]
    assert [pair.at for pair in pairs] == [3, 3, 6, 6, 6]
    assert {pair.by for pair in pairs} == {"calls"}
    assert not any(pair.is_dearer for pair in pairs)
    assert pairs[0].calls_ratio == pytest.approx(1 / 3)


def test_ours_are_not_compared_with_each_other_nor_with_bounds() -> None:
    entries = [
        enter(Panel(k=3)),
        enter(AdaptivePanel(mean=3)),
        enter(Majority(k=3)),
        enter(Oracle(experts=3)),
    ]
    for pairs in (match_by("calls", entries, (3,)), match_by("tokens", entries)):
        assert names(pairs) == [("panel@3", "majority@3"), ("adaptive@3", "majority@3")]


def test_a_larger_budget_that_changes_nothing_says_nothing() -> None:
    entries = [enter(Panel(k=3)), enter(Majority(k=3))]
    assert len(match_by("calls", entries, (3, 6, 9))) == 1
    entries.append(enter(SelfConsistency(samples=6)))
    pairs = match_by("calls", entries, (3, 6))
    assert [(pair.at, pair.other) for pair in pairs] == [
        (3, "majority@3"),
        (6, "majority@3"),
        (6, "self_consistency@6"),
    ]


def test_a_budget_below_everything_of_ours_says_nothing() -> None:
    assert match_by("calls", [enter(Panel(k=3)), enter(SingleBest())], (1, 2)) == []
    assert match_by("calls", [enter(Panel(k=3))], (3,)) == []
    assert match_by("calls", [enter(SingleBest())], (3,)) == []
    assert match_by("tokens", []) == []


def test_at_equal_tokens_the_dearest_form_within_the_slack_takes_part() -> None:
    ours = enter(Panel(k=3), tokens=100)
    small = enter(SelfConsistency(samples=2), tokens=60)
    fits = enter(SelfConsistency(samples=3), tokens=100 * SLACK)
    large = enter(SelfConsistency(samples=4), tokens=100 * SLACK + 0.1)
    [pair] = match_by("tokens", [ours, small, fits, large])
    assert (pair.other, pair.is_dearer) == ("self_consistency@3", False)
    assert pair.at == 100
    assert pair.tokens_ratio == pytest.approx(SLACK)
    [pair] = match_by("tokens", [ours, small, large])
    assert (pair.other, pair.is_dearer) == ("self_consistency@2", False)


def test_where_even_the_smallest_form_is_dearer_it_is_marked() -> None:
    entries = [
        enter(Panel(k=2), tokens=20),
        enter(Debate(agents=2, rounds=3), tokens=90),
        enter(Debate(agents=2, rounds=2), tokens=50),
    ]
    [pair] = match_by("tokens", entries)
    assert (pair.other, pair.is_dearer) == ("debate@4", True)
    assert pair.tokens_ratio == pytest.approx(2.5)
    assert pair.to_json()["is_dearer"] is True


def test_of_equally_dear_forms_the_one_with_more_calls_takes_part() -> None:
    entries = [
        enter(Panel(k=2), tokens=20),
        enter(SelfConsistency(samples=4), tokens=15),
        enter(SelfConsistency(samples=2), tokens=15),
    ]
    [pair] = match_by("tokens", entries)
    assert pair.other == "self_consistency@4"


def test_experts_that_write_nothing_have_no_tokens_to_match() -> None:
    entries = [enter(Panel(k=2), tokens=0), enter(Majority(k=2), tokens=0)]
    assert match_by("tokens", entries) == []
    [pair] = match_by("calls", entries, (2,))
    assert pair.tokens_ratio == 0


def test_each_of_ours_at_each_size_is_a_family_of_its_own() -> None:
    right, wrong = "+" * 8 + "-" * 4, "-" * 8 + "-" * 4
    entries = [
        enter(Panel(k=2), right),
        enter(Panel(k=4), right),
        enter(SingleBest(), wrong),
        enter(Majority(k=2), wrong),
        enter(MixedDebate(agents=2, rounds=2), wrong),
    ]
    pairs = match_by("calls", entries, (2, 4))
    p = 2 / 2**8
    assert [pair.difference.p for pair in pairs] == pytest.approx([p] * 5)
    assert [pair.difference.p_holm for pair in pairs] == pytest.approx([2 * p] * 2 + [3 * p] * 3)
    assert {pair.difference.mean for pair in pairs} == {8 / 12}


def test_a_pair_is_plain_json() -> None:
    [pair] = match_by("calls", [enter(Panel(k=2), "++-"), enter(Majority(k=2), "+--")], (2,))
    told = pair.to_json()
    assert told["method"] == "panel@2"
    assert told["against"] == "majority@2"
    assert (told["by"], told["at"], told["calls_ratio"], told["tokens_ratio"]) == ("calls", 2, 1, 1)
    assert (told["wins"], told["losses"], told["p"]) == (1, 0, 1)
    assert told["verdict"] == "no significant difference"
