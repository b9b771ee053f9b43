"""Which methods take part, at which sizes, and why some do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from expertmix.agents import Catalog
from expertmix.graph.lineup import Lineup
from expertmix.graph.methods import BOUNDS, METHODS, OURS, fit_method
from expertmix.retrieval import InputError

ASK_MORE = [
    "self_refine",
    "debate",
    "debate_mixed",
    "mixture_of_agents",
    "self_moa",
    "reconcile",
    "random_panel",
    "symbolic_moe",
]


def catalog_of(number: int, *, recorded: int = 0) -> Catalog:
    """So many experts, of which the first are recordings."""
    rows: list[dict[str, Any]] = []
    for at in range(number):
        row = {"alias": f"e{at}", "engine": "scripted", "script": f"{at}.json"}
        if at < recorded:
            row = {"alias": f"e{at}", "engine": "replay", "table": "t", "model": f"m{at}"}
        rows.append(row)
    return Catalog.from_dict({"experts": rows})


FIVE = catalog_of(5)


def labels(lineup: Lineup) -> list[str]:
    return [f"{method.name}@{method.calls}" for method in lineup.methods]


def test_all_methods_take_part_each_at_every_size_once() -> None:
    lineup = Lineup.choose(["all"], [6, 3, 6], FIVE)
    assert lineup.budgets == (3, 6)
    assert lineup.skipped == {}
    assert labels(lineup) == [
        "panel@3",
        "panel@5",
        "adaptive@3",
        "single_best@1",
        "knn_router@1",
        "majority@3",
        "majority@5",
        "self_consistency@3",
        "self_consistency@6",
        "self_refine@3",
        "self_refine@5",
        "debate@6",
        "debate_mixed@6",
        "mixture_of_agents@3",
        "mixture_of_agents@6",
        "self_moa@3",
        "self_moa@6",
        "reconcile@6",
        "random_panel@3",
        "random_panel@6",
        "symbolic_moe@3",
        "symbolic_moe@6",
        "oracle@5",
    ]


def test_the_strongest_alone_always_takes_part_and_the_order_is_that_of_tables() -> None:
    lineup = Lineup.choose(["oracle", "majority", "panel"], [3], FIVE)
    assert labels(lineup) == ["panel@3", "single_best@1", "majority@3", "oracle@5"]
    assert labels(Lineup.choose(["single_best"], [9], FIVE)) == ["single_best@1"]


def test_with_recordings_only_what_asks_the_plain_question_once_takes_part() -> None:
    for recorded in (1, 5):
        lineup = Lineup.choose(["all"], [3, 6], catalog_of(5, recorded=recorded))
        names = list(dict.fromkeys(method.name for method in lineup.methods))
        assert names == ["panel", "adaptive", "single_best", "knn_router", "majority", "oracle"]
        assert set(lineup.skipped) == {*ASK_MORE, "self_consistency"}
        assert "recorded answers do not answer that" in lineup.skipped["debate"]
        assert "one answer of each" in lineup.skipped["self_consistency"]


def test_with_one_expert_only_it_and_its_conversations_take_part() -> None:
    lineup = Lineup.choose(["all"], [6], catalog_of(1))
    assert set(lineup.skipped) == {
        "adaptive",
        "majority",
        "debate_mixed",
        "mixture_of_agents",
        "reconcile",
        "random_panel",
        "symbolic_moe",
    }
    assert lineup.skipped["majority"] == "has no form for 6 calls per question and 1 expert"
    assert "panel@1" in labels(lineup)


def test_with_one_call_nobody_mixes() -> None:
    assert labels(Lineup.choose(["all"], [1], FIVE)) == [
        "panel@1",
        "single_best@1",
        "knn_router@1",
        "oracle@5",
    ]


@pytest.mark.parametrize(
    ("names", "calls", "recorded", "words"),
    [
        (["debait"], [3], 0, 'there is no method "debait"; there are panel, adaptive, '),
        (["all", "debait"], [3], 0, 'there is no method "debait"'),
        ([], [3], 0, "there is no method named; there are panel"),
        (["panel"], [], 0, "calls per question are none; give one or more numbers from 1 on"),
        (["panel"], [3, 0], 0, "calls per question are 3, 0; give"),
        (["panel"], [-1], 0, "calls per question are -1; give"),
        (
            ["debate"],
            [3],
            0,
            "the method debate cannot take part: it has no form for 3 calls per question and 5 experts",
        ),
        (["debate"], [6], 5, "the method debate cannot take part: it asks more than the plain"),
        (["self_consistency"], [6], 1, "it asks one expert several times"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    names: Sequence[str], calls: Sequence[int], recorded: int, words: str
) -> None:
    with pytest.raises(InputError) as error:
        Lineup.choose(names, calls, catalog_of(5, recorded=recorded))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_no_method_makes_more_calls_than_it_may() -> None:
    for name in METHODS:
        for calls in range(1, 14):
            for experts in range(1, 8):
                method = fit_method(name, calls=calls, experts=experts)
                if method is not None and name not in BOUNDS:
                    assert 1 <= method.calls <= calls, (name, calls, experts)
    with pytest.raises(InputError, match='no method "all"'):
        fit_method("all", calls=3, experts=3)


def test_more_calls_never_make_a_method_smaller() -> None:
    for name in set(METHODS) - {"adaptive"}:
        for experts in range(2, 8):
            forms = [fit_method(name, calls=calls, experts=experts) for calls in range(1, 14)]
            sizes = [0 if form is None else form.calls for form in forms]
            assert sizes == sorted(sizes), (name, experts)


def test_forms_of_one_method_differ_in_their_label() -> None:
    for experts in (1, 2, 3, 5, 9):
        lineup = Lineup.choose(["all"], range(1, 16), catalog_of(experts))
        assert len(set(labels(lineup))) == len(lineup.methods)


def test_every_method_says_what_it_is_and_where_it_comes_from() -> None:
    lineup = Lineup.choose(["all"], [6], catalog_of(7))
    assert [method.name for method in lineup.methods] == list(METHODS)
    assert len({method.title for method in lineup.methods}) == len(METHODS)
    for method in lineup.methods:
        assert method.source
        assert method.speaks == (method.name in ASK_MORE)
    assert {*OURS, *BOUNDS} < set(METHODS)
    assert {m.name for m in lineup.methods if m.needs_skills} == {*OURS, "symbolic_moe"}
