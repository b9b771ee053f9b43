"""Who is asked next: within the budget, where it may change the verdict, whatever the order of the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.adaptive import Adaptive, Next, choose_next
from expertmix.agents.beliefs import Beliefs
from expertmix.agents.outcomes import MISSING, UNREADABLE, OutcomeTable
from expertmix.agents.policies import Cost
from expertmix.agents.posterior import Evidence
from expertmix.retrieval import InputError

EXPERTS = 6


def make_beliefs() -> Beliefs:
    rng = np.random.default_rng(0)
    chance_E = np.array([0.45, 0.5, 0.5, 0.55, 0.6, 0.65])
    ease_N1 = rng.normal(0, 1, (150, 1))
    z_NE = np.log(chance_E / (1 - chance_E)) + 1.2 * ease_N1
    right_NE = rng.random(z_NE.shape) < 1 / (1 + np.exp(-z_NE))
    return Beliefs.fit(
        OutcomeTable(
            experts=tuple(f"e{at}" for at in range(EXPERTS)),
            questions=tuple(str(at) for at in range(150)),
            labels_NE=np.where(right_NE, 0, rng.integers(1, 5, z_NE.shape)).astype(np.int16),
            gold_N=np.zeros(150, np.int16),
            options_N=np.full(150, 5, np.int16),
        )
    )


BELIEFS = make_beliefs()


def make_evidence(labels: Any, options: int = 5) -> Evidence:
    labels_QE = np.array(labels).reshape(-1, EXPERTS)
    number = len(labels_QE)
    return Evidence(
        ability_QE=BELIEFS.foresee([{}] * number),
        options_Q=np.full(number, options),
        labels_QE=labels_QE,
    )


def ask(evidence: Evidence, limits: Adaptive, **more: Any) -> list[Next]:
    given: dict[str, Any] = {"left": 1000, "round_": limits.rounds - 1}
    given["ids"] = [f"q{at:03d}" for at in range(len(evidence))]
    return choose_next(BELIEFS, evidence, limits, **(given | more))


def replay(answers_QE: Any, limits: Adaptive, ids: list[str]) -> tuple[Evidence, list[int]]:
    """A batch to its end: what was asked, and the calls of each round."""
    number = len(answers_QE)
    labels_QE = np.full((number, EXPERTS), MISSING)
    labels_QE[:, -limits.first :] = answers_QE[:, -limits.first :]
    left, calls = int(limits.calls * number) - number * limits.first, list[int]()
    for round_ in range(limits.rounds):
        evidence = make_evidence(labels_QE)
        chosen = choose_next(BELIEFS, evidence, limits, ids=ids, left=left, round_=round_)
        for one in chosen:
            assert labels_QE[one.row, one.expert] == MISSING, "nobody is asked twice"
            labels_QE[one.row, one.expert] = answers_QE[one.row, one.expert]
        left -= len(chosen)
        calls.append(len(chosen))
    return make_evidence(labels_QE), calls


def draw_answers(seed: int, number: int) -> Any:
    """Some experts fail: who was asked and gave nothing is unreadable."""
    return np.random.default_rng(seed).integers(UNREADABLE, 5, (number, EXPERTS))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 99),
    st.integers(1, 25),
    st.floats(1, 6),
    st.integers(1, 6),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.005, 0.05]),
)
def test_no_limit_is_ever_passed(
    seed: int, number: int, calls: float, most: int, rounds: int, least: float
) -> None:
    calls = min(calls, most)
    limits = Adaptive(calls=calls, first=1, most=most, rounds=rounds, least=least)
    ids = [str(at) for at in range(number)]
    evidence, per_round = replay(draw_answers(seed, number), limits, ids)
    asked_QE = evidence.labels_QE != MISSING
    assert asked_QE.sum() <= calls * number
    assert asked_QE.sum() == number + sum(per_round)
    assert asked_QE.sum(1).max() <= min(most, EXPERTS)
    assert max(per_round) <= number, "at most one more call for a question in a round"


@settings(deadline=None)
@given(st.integers(0, 99), st.permutations(range(12)), st.integers(1, 12))
def test_the_order_of_the_batch_does_not_matter(seed: int, order: list[int], left: int) -> None:
    labels_QE = draw_answers(seed, 12) % 2
    labels_QE[:, 2:] = MISSING  # two answers of two options each: many equal gains
    ids = [f"q{at:02d}" for at in range(12)]
    limits = Adaptive(least=0.0)
    one = ask(make_evidence(labels_QE), limits, ids=ids, left=left)
    moved_ids = [ids[at] for at in order]
    other = ask(make_evidence(labels_QE[order]), limits, ids=moved_ids, left=left)
    plain = [(ids[x.row], x.expert, x.gain) for x in one]
    assert plain == [(moved_ids[x.row], x.expert, x.gain) for x in other]
    assert len(plain) == left


def test_equal_gains_go_to_the_smaller_id() -> None:
    evidence = make_evidence([[0, 1] + [MISSING] * 4] * 4)
    chosen = ask(evidence, Adaptive(), ids=["d", "b", "c", "a"], left=2)
    assert [one.row for one in chosen] == [3, 1]


def test_a_panel_that_agrees_is_left_alone_while_a_split_one_is_asked() -> None:
    agreed, split = [1, 1, 1, 1, 1, MISSING], [1, 1, 2, 2, 3, MISSING]
    chosen = ask(make_evidence([agreed, split, agreed]), Adaptive())
    assert [(one.row, one.expert) for one in chosen] == [(1, 5)]
    both = ask(make_evidence([agreed, split]), Adaptive(least=0.0))
    assert [one.row for one in both] == [1, 0], "the larger gain first"
    assert both[0].gain > Adaptive().least > both[1].gain


def test_nobody_is_asked_for_less_than_the_least_gain() -> None:
    split = make_evidence([[1, 2, MISSING, MISSING, MISSING, MISSING]])
    gain = ask(split, Adaptive(least=0.0))[0].gain
    assert gain > 0
    assert ask(split, Adaptive(least=gain))
    assert not ask(split, Adaptive(least=gain + 1e-6))


def test_a_full_panel_asks_nobody_more() -> None:
    three = make_evidence([[1, 2, 3, MISSING, MISSING, MISSING]])
    assert not ask(three, Adaptive(calls=3, most=3))
    assert ask(three, Adaptive(calls=3, most=4))
    everybody = make_evidence([[1, 2, 3, 1, 2, 3]])
    assert not ask(everybody, Adaptive(least=0.0))


def test_failures_count_as_asked() -> None:
    failed = make_evidence([[UNREADABLE] * 5 + [MISSING], [UNREADABLE] * 6])
    chosen = ask(failed, Adaptive(least=0.0))
    assert [(one.row, one.expert) for one in chosen] == [(0, 5)]
    assert not ask(failed, Adaptive(calls=4, most=5, least=0.0))


def test_what_is_left_is_spread_over_the_rounds_that_remain() -> None:
    evidence = make_evidence([[1, 2] + [MISSING] * 4] * 30)
    limits = Adaptive(rounds=3)
    assert [len(ask(evidence, limits, left=20, round_=at)) for at in (0, 1, 2)] == [7, 10, 20]
    assert not ask(evidence, limits, left=20, round_=3)
    assert not ask(evidence, limits, left=0, round_=0)
    assert not ask(evidence, limits, left=-2, round_=0)
    _, per_round = replay(
        draw_answers(1, 40), Adaptive(calls=3, rounds=4, least=0.0), list("ab" * 20)
    )
    assert per_round == [10, 10, 10, 10]


def test_an_empty_batch_asks_nobody() -> None:
    assert ask(make_evidence([]), Adaptive()) == []


def test_a_stronger_expert_is_asked_first_and_an_expert_like_the_panel_later() -> None:
    first = [0, 1, MISSING, MISSING, MISSING, MISSING]
    best = ask(make_evidence([first]), Adaptive())[0].expert
    assert BELIEFS.ability_E[best] == BELIEFS.ability_E[2:].max()
    alike_EE = np.zeros((EXPERTS, EXPERTS))
    alike_EE[:2, best] = alike_EE[best, :2] = 0.99
    copies = replace(BELIEFS, alike_EE=alike_EE)
    limits = Adaptive()
    other = choose_next(copies, make_evidence([first]), limits, ids=["q"], left=9, round_=0)
    assert other[0].expert != best


def test_costs_weigh_on_gains_and_a_budget_ends_them() -> None:
    evidence = make_evidence([[0, 1, MISSING, MISSING, MISSING, MISSING]])
    best = ask(evidence, Adaptive())[0].expert
    spent_E = np.full(EXPERTS, 100.0)
    spent_E[best] = 2000.0
    dear = ask(evidence, Adaptive(), cost=Cost(weight=1.0), spent_E=spent_E)
    assert dear[0].expert != best
    free = ask(evidence, Adaptive(), cost=Cost(), spent_E=spent_E)
    assert free[0].expert == best
    # Two calls of 100 are made: 100 more fit into 300, and 2000 do not.
    fits = ask(evidence, Adaptive(), cost=Cost(budget=300.0), spent_E=spent_E)
    assert fits[0].expert not in (best, 0, 1)
    assert not ask(evidence, Adaptive(), cost=Cost(budget=299.0), spent_E=spent_E)
    with pytest.raises(InputError, match="holds no costs of calls"):
        ask(evidence, Adaptive(), cost=Cost(weight=1.0))


def test_a_broken_expert_is_not_asked() -> None:
    evidence = make_evidence([[0, 1, *[MISSING] * 4]])
    best = ask(evidence, Adaptive())[0].expert
    other = ask(evidence, Adaptive(), broken=[BELIEFS.experts[best]])
    assert other[0].expert not in (best, 0, 1)
    assert not ask(evidence, Adaptive(), broken=BELIEFS.experts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first": 0}, "1 <= first <= calls <= most, got first 0"),
        ({"calls": 1.5}, "got first 2, calls 1.5"),
        ({"calls": 9.0}, "calls 9, most 8"),
        ({"calls": float("nan")}, "calls nan"),
        ({"rounds": 0}, "at least one round and no negative least gain, got rounds 0"),
        ({"least": -0.1}, "least -0.1"),
        ({"least": float("nan")}, "least nan"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Adaptive(**given)
