"""What a method costs as if it were alone: calls and tokens of its rows, loads against every possible order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from expertmix.agents import Catalog, Ledger
from expertmix.graph import Solution
from expertmix.graph.accounts import Naming, Pace, count_loads, sum_costs
from expertmix.graph.baselines import Debate, SelfConsistency, SymbolicMoE
from expertmix.graph.methods import AdaptivePanel, Panel
from expertmix.retrieval import Question

NO_PACE = Pace({}, {})


def catalog_of(**scripts: str | None) -> Catalog:
    """Experts that take turns on a device; the same script means the same weights, None means elsewhere."""
    experts: list[dict[str, Any]] = []
    for alias, script in scripts.items():
        row = {"alias": alias, "engine": "scripted", "script": script or f"{alias}.json"}
        experts.append(row if script is None else {**row, "memory_gib": 1})
    return Catalog.from_dict({"experts": experts})


LETTERS = catalog_of(**{alias: f"{alias}.json" for alias in "abcde"})


def load_in_every_order(rounds: Sequence[set[str]]) -> int:
    """The fewest loads over all orders of all rounds."""
    fewest = len(rounds) * 10
    for orders in itertools.product(*(itertools.permutations(sorted(r)) for r in rounds)):
        line = [expert for order in orders for expert in order]
        fewest = min(fewest, sum(1 for _ in itertools.groupby(line)))
    return fewest


@pytest.mark.parametrize(
    ("rounds", "loads"),
    [
        ([], 0),
        (["a"], 1),
        (["a", "a", "a"], 1),
        (["abc"], 3),
        (["abc", "abc"], 5),
        (["abc", "abc", "abc"], 7),
        (["ab", "c"], 3),
        (["abc", "a"], 3),
        (["a", "abc", "a"], 4),
        # What comes last must serve the round after the next, too: b, then a.
        (["abc", "ab", "a"], 4),
    ],
)
def test_loads_by_hand(rounds: list[str], loads: int) -> None:
    assert count_loads([set(experts) for experts in rounds], LETTERS) == loads


def test_loads_are_the_fewest_of_all_orders() -> None:
    chance = random.Random(3)
    for _ in range(150):
        rounds = [
            set(chance.sample("abcd", chance.randint(1, 3))) for _ in range(chance.randint(1, 4))
        ]
        assert count_loads(rounds, LETTERS) == load_in_every_order(rounds), rounds


def test_who_shares_weights_is_loaded_once_and_who_runs_elsewhere_never() -> None:
    catalog = catalog_of(a="one.json", b="one.json", c="two.json", far=None)
    assert count_loads([{"a", "b"}], catalog) == 1
    assert count_loads([{"a", "far"}, {"b", "c"}], catalog) == 2
    assert count_loads([{"far"}, {"far"}], catalog) == 0
    assert count_loads([{"a"}, {"far"}, {"b"}], catalog) == 1, "what runs elsewhere unloads nothing"


def test_loads_of_a_large_pool_take_no_time() -> None:
    catalog = catalog_of(**{f"e{at}": f"{at}.json" for at in range(40)})
    everybody = [{f"e{at}" for at in range(40)}] * 12
    assert count_loads(everybody, catalog) == 40 + 11 * 39


def say(expert: str, tokens: int = 10, **more: Any) -> dict[str, Any]:
    """One answer in a row."""
    told = {"expert": expert, "reason": "overall 0.50", "error": None}
    return {**told, "prompt_tokens": 100, "completion_tokens": tokens, **more}


def solve(qid: str, *experts: Mapping[str, Any], merged: int | None = None) -> Solution:
    """A row as `make_row` gives it; `merged` are the words of a model that merged the answers."""
    prompts = sum(row["prompt_tokens"] for row in experts)
    words = sum(row["completion_tokens"] for row in experts)
    row = {
        "experts": list(experts),
        "aggregation": "" if merged is None else "so be it",
        "usage": {"prompt_tokens": prompts, "completion_tokens": words + (merged or 0)},
    }
    return Solution(question=Question(id=qid, text="?"), row=row)


def test_a_panel_is_charged_for_every_answer() -> None:
    rows = [solve("1", say("a", 10), say("b", 20)), solve("2", say("a", 30), say("c", 40))]
    spent = sum_costs(Panel(k=2), [rows], LETTERS, NO_PACE)
    assert (spent.calls, spent.prompt_tokens, spent.tokens) == (2, 200, 50)
    assert spent.loads == 3
    assert spent.seconds is None, "nobody was measured"


def test_what_merges_is_a_call_once() -> None:
    panel = solve("1", say("a"), say("b"), merged=7)
    spent = sum_costs(Panel(k=2), [[panel]], LETTERS, NO_PACE)
    assert (spent.calls, spent.tokens) == (3, 27)
    # In a talk whoever merges has a turn of its own; its words are in the row a second time.
    turns = [say("a", round=0), say("b", round=0), say("a", 7, round=1, merges=True)]
    talked = solve("1", *turns)
    talked = Solution(
        question=talked.question, row={**talked.row, "aggregation": "the merging turn"}
    )
    spent = sum_costs(SymbolicMoE(k=2), [[talked]], LETTERS, NO_PACE)
    assert (spent.calls, spent.tokens) == (3, 27)


def test_one_expert_asked_several_times_is_several_calls_and_one_load() -> None:
    row = solve("1", *(say("a", round=0, agent=at) for at in range(5)))
    spent = sum_costs(SelfConsistency(samples=5), [[row]], LETTERS, NO_PACE)
    assert (spent.calls, spent.tokens, spent.loads) == (5, 50, 1)


def test_rounds_of_a_talk_load_again() -> None:
    turns = [say(expert, round=at) for at in range(3) for expert in "abc"]
    assert sum_costs(Debate(), [[solve("1", *turns)]], LETTERS, NO_PACE).loads == 7


def test_a_growing_panel_loads_in_the_rounds_in_which_it_grew() -> None:
    def grew(expert: str, number: int) -> dict[str, Any]:
        return say(expert, reason=f"round {number}, expected gain 0.041; overall 0.50")

    first = say("a"), say("b")
    early = solve("1", *first, grew("c", 2))
    late = solve("2", *first, grew("c", 4))
    between = solve("3", *first, grew("d", 3))
    method = AdaptivePanel(mean=3, experts=5)
    assert sum_costs(method, [[early]], LETTERS, NO_PACE).loads == 3
    assert sum_costs(method, [[early, between]], LETTERS, NO_PACE).loads == 4
    spent = sum_costs(method, [[early, late, between]], LETTERS, NO_PACE)
    assert (spent.calls, spent.loads) == (3, 5), "c goes for d, and comes back"


def test_who_stands_in_for_a_failed_expert_comes_after_the_others() -> None:
    row = solve("1", say("a"), say("b", error="broken"), say("c", replaces="b"))
    other = solve("2", say("a"), say("c"))
    spent = sum_costs(Panel(k=2), [[row, other]], LETTERS, NO_PACE)
    assert spent.calls == 2.5
    assert spent.loads == 3, "c stays for the second round"


def test_seeds_are_averaged_not_added() -> None:
    seeds = [[solve("1", say("a", 10))], [solve("1", say("b", 30), say("c", 50))]]
    spent = sum_costs(Panel(k=2), seeds, LETTERS, NO_PACE)
    assert (spent.calls, spent.tokens) == (1.5, 45)
    assert spent.loads == 2, "one and two loads, and not three"


def test_naming_skills_is_charged_to_those_who_need_them() -> None:
    naming = Naming(calls=2, prompt_tokens=80, tokens=6, seconds=0.5, expert="e")
    pace = Pace({}, {"a": 1.0})
    rows = [[solve("1", say("a"))]]
    spent = sum_costs(Panel(k=1), rows, LETTERS, pace, naming=naming)
    assert (spent.calls, spent.prompt_tokens, spent.tokens) == (3, 180, 16)
    assert (spent.seconds, spent.loads) == (1.5, 2)
    free = sum_costs(SelfConsistency(samples=1), rows, LETTERS, pace, naming=naming)
    assert (free.calls, free.tokens, free.seconds, free.loads) == (1, 10, 1, 1)


def test_no_question_costs_nothing() -> None:
    spent = sum_costs(Panel(k=1), [[]], LETTERS, NO_PACE)
    assert (spent.calls, spent.tokens, spent.loads) == (0, 0, 0)


def keep_ledger(*accounts: tuple[str, str, int, float]) -> Ledger:
    """Expert, stage, calls and seconds of each account; ten words a call."""
    ledger = Ledger()
    for expert, stage, calls, seconds in accounts:
        account = ledger.account(expert, stage)
        account.calls, account.seconds = calls, seconds
        account.prompt_tokens, account.completion_tokens = 100 * calls, 10 * calls
    return ledger


def test_the_cost_of_naming_is_the_mean_of_all_such_calls() -> None:
    ledger = keep_ledger(("e", "skills", 8, 4.0), ("e", "reason", 5, 100.0))
    assert Naming.of(ledger, 2, "e") == Naming(
        calls=2, prompt_tokens=200, tokens=20, seconds=1.0, expert="e"
    )
    assert Naming.of(ledger, 0, "e") == Naming(), "an encoder asks nobody"
    assert Naming.of(Ledger(), 2, "e").calls == 2


def test_the_pace_is_a_stages_own_where_enough_was_measured() -> None:
    pace = Pace.of(
        keep_ledger(("a", "reason", 20, 10.0), ("a", "debate", 20, 50.0), ("a", "judge", 2, 12.0))
    )
    assert pace.seconds("a", "reason") == 0.5
    assert pace.seconds("a", "debate") == 2.5
    assert pace.seconds("a", "judge") == pytest.approx(72 / 42)
    assert pace.seconds("a", "never") == pytest.approx(72 / 42)
    assert pace.seconds("b", "reason") is None
    assert Pace.of(keep_ledger(("a", "reason", 0, 0.0))).seconds("a", "reason") is None


def test_a_talks_first_round_goes_at_the_pace_of_the_plain_question() -> None:
    pace = Pace.of(keep_ledger(("a", "reason", 20, 10.0), ("a", "debate", 20, 50.0)))
    row = solve("1", say("a", round=0), say("a", round=0), say("a", round=1))
    spent = sum_costs(Debate(agents=2), [[row]], LETTERS, pace)
    assert spent.seconds == pytest.approx(0.5 + 0.5 + 2.5)


def test_one_expert_without_a_pace_leaves_the_time_unknown() -> None:
    pace = Pace({}, {"a": 1.0})
    known, unknown = solve("1", say("a")), solve("2", say("b"))
    assert sum_costs(Panel(k=1), [[known]], LETTERS, pace).seconds == 1
    assert sum_costs(Panel(k=1), [[known, unknown]], LETTERS, pace).seconds is None
