"""Profiles merge whichever comes first, and refuse what cannot be one profile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Profile
from expertmix.agents.records import ExpertRecord, Outcome, Reference, hash_references
from expertmix.retrieval import InputError

REFERENCES = {f"q{n}": Reference(f"q{n}", "AB"[n % 2], 2, "choice", {"x": 1.0}) for n in range(4)}
IDENTITIES = {alias: ExpertRecord(f"id of {alias}") for alias in "abc"}
KEYS = [(qid, alias, sample) for qid in REFERENCES for alias in IDENTITIES for sample in (0, 1)]


def make(
    outcomes: dict[tuple[str, str, int], str], questions: dict[str, Reference] | None = None
) -> Profile:
    used = REFERENCES if questions is None else questions
    rows = [
        Outcome(*key, answer, answer == used[key[0]].gold, 5) for key, answer in outcomes.items()
    ]
    return Profile(
        references=hash_references(used.values()),
        prompts="p",
        seed=0,
        experts={key[1]: IDENTITIES[key[1]] for key in outcomes},
        questions=used,
        outcomes=tuple(rows),
    )


answers = st.dictionaries(st.sampled_from(KEYS), st.sampled_from("AB"))


@given(answers, answers, answers)
def test_merging_is_commutative_associative_and_idempotent(
    first: dict[tuple[str, str, int], str],
    second: dict[tuple[str, str, int], str],
    third: dict[tuple[str, str, int], str],
) -> None:
    a, b, c = make(first), make(second), make(third)
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a
    assert {o.key for o in a.merge(b).outcomes} == first.keys() | second.keys()


def test_disjoint_references_give_the_fingerprint_of_all() -> None:
    left = {qid: REFERENCES[qid] for qid in ("q0", "q1")}
    right = {qid: REFERENCES[qid] for qid in ("q2", "q3")}
    one, two = make({("q0", "a", 0): "A"}, left), make({("q2", "b", 0): "A"}, right)
    merged = one.merge(two)
    assert merged.references == hash_references(REFERENCES.values())
    assert list(merged.questions) == list(REFERENCES)
    assert merged.table().asked_NE.sum() == 2


def test_times_are_means_over_the_calls_and_failures_are_bounded() -> None:
    one = make({("q0", "a", 0): "A", ("q1", "a", 0): "A", ("q2", "a", 0): "A"})
    one = replace(one, experts={"a": ExpertRecord("id of a", 1.0, failed=1)})
    two = replace(
        make({("q3", "a", 0): "A"}), experts={"a": ExpertRecord("id of a", 5.0, failed=3)}
    )
    merged = one.merge(two)
    assert merged.experts["a"].seconds_per_call == pytest.approx((3 * 1.0 + 5.0) / 4)
    assert merged.experts["a"].failed == 0, "between them, everything has an answer"


def test_what_cannot_be_one_profile_is_refused() -> None:
    profile = make({("q0", "a", 0): "A"})
    stranger = replace(profile, experts={"a": ExpertRecord("someone else")})
    with pytest.raises(InputError, match='two different experts "a"'):
        profile.merge(stranger)
    for parts, name in (({"prompts": "q"}, "prompts"), ({"seed": 1}, "seed")):
        with pytest.raises(InputError, match=f"their {name} differ"):
            profile.merge(replace(profile, **parts))
    with pytest.raises(InputError, match="their extractor differ"):
        profile.merge(replace(profile, extractor="other"))


@pytest.mark.parametrize(
    ("parts", "name"),
    [({"gold": "B"}, "gold"), ({"skills": {"y": 1.0}}, "skills"), ({"content": "x"}, "content")],
)
def test_one_reference_with_two_meanings_is_refused(parts: dict[str, object], name: str) -> None:
    changed = {**REFERENCES, "q0": replace(REFERENCES["q0"], **parts)}
    with pytest.raises(InputError, match=f'the {name} of the reference "q0" differs'):
        make({("q1", "a", 0): "A"}).merge(make({("q1", "b", 0): "A"}, changed))
