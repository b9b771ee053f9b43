"""Profiles count from their outcomes, become tables, and refuse strangers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Catalog, Pool, Profile
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.agents.outcomes import MISSING, UNREADABLE
from expertmix.agents.reason import reason_prompt_hash
from expertmix.agents.records import ExpertRecord, Outcome, Reference, Tally, hash_references
from expertmix.retrieval import InputError

CHOICE = Reference("c", "B", 4, "choice", {"law": 0.75, "history": 0.25})
NUMBER = Reference("n", "7", 0, "number", {"sums": 0.5})
TEXT = Reference("t", "Rome || Roma", 0, "text", {})


def outcome(qid: str, expert: str, answer: str | None, right: bool, sample: int = 0) -> Outcome:
    return Outcome(qid, expert, sample, answer, right, 10)


OUTCOMES = (
    outcome("c", "zoe", "B", True),
    outcome("c", "ann", "D", False),
    outcome("n", "zoe", "8", False),
    outcome("n", "ann", "9", False),
    outcome("n", "bob", "8", False),
    outcome("t", "zoe", "Roma", True),
    outcome("t", "ann", None, False),
)


def make(
    outcomes: tuple[Outcome, ...] = OUTCOMES,
    references: tuple[Reference, ...] = (CHOICE, NUMBER, TEXT),
    experts: Mapping[str, ExpertRecord] | None = None,
) -> Profile:
    return Profile(
        references=hash_references(references),
        prompts=reason_prompt_hash(),
        seed=0,
        experts=experts or {a: ExpertRecord(f"id of {a}", 0.5) for a in ("zoe", "ann", "bob")},
        questions={reference.id: reference for reference in references},
        outcomes=outcomes,
    )


def test_the_table_has_labels_that_say_who_agrees() -> None:
    table = make().table()
    assert table.experts == ("ann", "bob", "zoe")
    assert table.questions == ("c", "n", "t")
    assert table.labels_NE.tolist() == [
        [3, MISSING, 1],  # options
        [1, 2, 2],  # wrong answers in the order of the experts: 9, then 8
        [UNREADABLE, MISSING, 0],  # another spelling of the gold is the gold
    ]
    assert table.gold_N.tolist() == [1, 0, 0]
    assert table.options_N.tolist() == [4, 0, 0]
    assert table.skills[0] == {"law": 0.75, "history": 0.25}
    assert table.tokens_E.tolist() == [10, 10, 10]
    assert table.seconds_E.tolist() == [0.5, 0.5, 0.5]
    assert table.right_NE.sum(0).tolist() == [0, 0, 2]


def test_a_table_of_some_experts_has_only_them() -> None:
    table = make().table(["zoe", "bob", "zoe"])
    assert table.experts == ("bob", "zoe")
    assert table.labels_NE.shape == (3, 2)
    with pytest.raises(InputError, match='does not know the expert "eve", only ann, bob, zoe'):
        make().table(["eve"])


@given(st.randoms(use_true_random=False))
def test_nothing_depends_on_the_order_of_what_is_given(chance: random.Random) -> None:
    def shuffled(items: tuple[str, ...]) -> list[str]:
        return chance.sample(items, len(items))

    mixed = make(
        outcomes=tuple(chance.sample(OUTCOMES, len(OUTCOMES))),
        references=tuple(chance.sample((CHOICE, NUMBER, TEXT), 3)),
        experts={a: ExpertRecord(f"id of {a}", 0.5) for a in shuffled(("zoe", "ann", "bob"))},
    )
    plain = make()
    assert mixed == plain
    assert mixed.fingerprint == plain.fingerprint
    assert np.array_equal(mixed.table().labels_NE, plain.table().labels_NE)


def test_tallies_count_shares_of_skills_and_a_question_once() -> None:
    asked_twice = (*OUTCOMES, outcome("c", "zoe", "A", False, sample=1))
    profile = make(asked_twice)
    assert profile.tally("zoe", "law") == Tally(0.375, 0.375)
    assert profile.tally("zoe", "sums") == Tally(0.0, 0.5)
    assert profile.tally("zoe") == Tally(1.5, 1.5)
    assert profile.tally("zoe", "no such skill").total == 0
    assert profile["zoe"].strength == pytest.approx(2.5 / 5)
    assert profile.table().labels_NE[0, 2] == 1, "the first sample is the label"


def test_a_later_sample_is_the_label_where_the_first_failed() -> None:
    profile = make((outcome("c", "zoe", "B", True, sample=1),))
    assert profile.table().labels_NE[0].tolist() == [MISSING, MISSING, 1]


def test_an_expert_without_outcomes_stays_with_a_note() -> None:
    experts = {"zoe": ExpertRecord("z"), "ann": ExpertRecord("a"), "bob": ExpertRecord("b", 0, 3)}
    profile = make(tuple(o for o in OUTCOMES if o.expert != "bob"), experts=experts)
    assert profile.failed == {"bob": 3}
    assert profile["bob"].overall.total == 0
    assert profile["bob"].strength == 0.5
    assert (profile.table().labels_NE[:, 1] == MISSING).all()
    [note] = profile.notes
    assert 'expert "bob" has no outcomes (3 requests failed)' in note


def test_references_with_one_gold_answer_are_noted() -> None:
    same = tuple(replace(CHOICE, id=str(number)) for number in range(4))
    assert "all 4 references have the same gold answer" in make((), same).notes[0]
    assert not make().notes


def test_the_fingerprint_changes_with_answers_and_skills_but_not_with_times() -> None:
    profile = make()
    slower = {a: replace(e, seconds_per_call=9.0) for a, e in profile.experts.items()}
    assert replace(profile, experts=slower).fingerprint == profile.fingerprint
    assert make(OUTCOMES[1:]).fingerprint != profile.fingerprint
    other = (replace(CHOICE, skills={"law": 1.0}), NUMBER, TEXT)
    assert make(references=other).fingerprint != profile.fingerprint


@pytest.mark.parametrize(
    ("outcomes", "match"),
    [
        ((OUTCOMES[0], OUTCOMES[0]), "two outcomes of one request"),
        ((outcome("c", "eve", "A", False),), 'outcome of "eve" on "c" belongs to no expert'),
        ((outcome("x", "zoe", "A", False),), 'outcome of "zoe" on "x" belongs to no'),
    ],
)
def test_outcomes_that_do_not_belong_are_refused(outcomes: tuple[Outcome, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make(outcomes)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"gold": "E"}, "gold 'E', but its options are A to D"),
        ({"gold": "AB"}, "gold 'AB'"),
        ({"options": 0}, "choice with 0 options"),
        ({"kind": "riddle"}, "unknown kind 'riddle'"),
        ({"skills": {"law": 0.0}}, "sum to at most 1"),
        ({"skills": {"law": float("nan")}}, "sum to at most 1"),
        ({"skills": {"law": 0.8, "art": 0.3}}, "sum to at most 1"),
    ],
)
def test_impossible_references_are_refused(parts: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        replace(CHOICE, **parts)


def test_a_profile_refuses_experts_it_was_not_made_for() -> None:
    engines = {"e": ScriptedEngine("e", {"*": "(A)"})}
    pool = Pool.from_engines(engines)
    experts = {"e": ExpertRecord(pool.identity("e"))}
    profile = make((), experts=experts)
    profile.check(pool, ["e"])
    persona = {"alias": "e", "engine": "given", "persona": "Someone else."}
    changed = Pool(Catalog.from_dict({"experts": [persona]}), engines=engines)
    with pytest.raises(InputError, match='"e" is not the one that was profiled'):
        profile.check(changed, ["e"])
    with pytest.raises(InputError, match='does not know the expert "x"'):
        profile.check(Pool.from_engines({"x": engines["e"]}), ["x"])
    with pytest.raises(InputError, match="made with other prompts"):
        replace(profile, prompts="old").check(pool, ["e"])


def test_the_summary_is_plain_json() -> None:
    summary = make().to_json()
    assert summary["experts"]["zoe"]["overall"] == [2, 1]
    assert summary["experts"]["zoe"]["skills"]["law"] == [0.75, 0]
    assert summary["questions"] == 3
