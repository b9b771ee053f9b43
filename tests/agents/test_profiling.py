"""Profiles are built from what experts say, and grow without asking twice."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Answer, AnswerStore, Catalog, Pool, Profile
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.agents.profiling import build_profile, check_gold, drop_duplicates, grade_answers
from expertmix.retrieval import InputError, Question

# symbolic-moe.md §5.3: four rows with gold A, C, C, D and replies (A), (B), (C), unparsable.
GOLD = {"1": "A", "2": "C", "3": "C", "4": "D"}
SAID = {"1": "(A)", "2": "(B)", "3": "(C)", "4": "no idea"}
SKILLS = {
    "1": {"algebra": 0.5, "geometry": 0.5},
    "2": {"algebra": 0.5},
    "3": {"law": 1.0},
}


def references(*ids: str) -> list[Question]:
    options = ("w", "x", "y", "z")
    return [
        Question(id=i, text=f"{i}?", options=options, gold=GOLD[i], kind="choice")
        for i in ids or GOLD
    ]


def engine(faults: Faults | None = None, said: Mapping[str, str] = SAID) -> ScriptedEngine:
    return ScriptedEngine("e", dict(said), faults=faults)


async def build(
    engines: Mapping[str, ScriptedEngine],
    *ids: str,
    store: AnswerStore | None = None,
    **more: Any,
) -> Profile:
    async with Pool.from_engines(engines, store=store) as pool:
        return await build_profile(pool, references(*ids), SKILLS, **more)


async def test_the_pinned_profile_comes_out_right() -> None:
    expert = (await build({"e": engine()}))["e"]
    net = {skill: 2 * (t.right - t.wrong) for skill, t in expert.skills.items()}
    # The reference code counts whole tags: 0, 1 and, doubled, 2; these are half shares of them.
    assert net == {"algebra": 0, "geometry": 1, "law": 2}
    assert (expert.overall.right, expert.overall.wrong) == (2, 2)


async def test_a_failed_request_is_not_a_wrong_answer() -> None:
    profile = await build({"e": engine(Faults(fail_ids={"2"}))})
    assert profile.tally("e") == profile["e"].overall
    assert (profile["e"].overall.right, profile["e"].overall.wrong) == (2, 1)
    assert profile.failed == {"e": 1}
    assert not profile.notes


async def test_an_expert_that_always_fails_stays_with_a_note() -> None:
    profile = await build({"e": engine(), "broken": engine(Faults(load="no memory"))})
    assert profile.failed == {"broken": 4}
    assert profile["broken"].overall.total == 0
    assert 'expert "broken" has no outcomes (4 requests failed)' in profile.notes[0]


@pytest.mark.parametrize("with_store", [True, False])
async def test_growing_asks_only_what_is_missing(tmp_path: Path, with_store: bool) -> None:
    store = AnswerStore(tmp_path / "r.sqlite") if with_store else None

    async def grow(*ids: str, **more: Any) -> tuple[Profile, dict[str, list[str]]]:
        """The profile, and what each expert was asked for it."""
        engines = {"e": engine(), "n": engine()}
        profile = await build(engines, *ids, store=store, **more)
        return profile, {a: [request.id for request in e.requests] for a, e in engines.items()}

    one, asked = await grow("1", "2", experts=["e"])
    assert asked == {"e": ["1#0", "2#0"], "n": []}
    two, asked = await grow("1", "2", known=one)
    assert asked == {"e": [], "n": ["1#0", "2#0"]}, "a new expert"
    three, asked = await grow("1", "2", "3", known=two)
    assert asked == {"e": ["3#0"], "n": ["3#0"]}, "a new reference"
    four, asked = await grow("1", "2", "3", known=three, experts=["n"], samples=2)
    assert asked == {"e": [], "n": ["1#1", "2#1", "3#1"]}, "more samples of one expert"
    assert len(four.outcomes) == 3 + 6
    last, asked = await grow("1", "2", "3", known=four)
    assert asked == {"e": [], "n": []}, "nothing is missing"
    assert last.outcomes == four.outcomes, "samples that are known stay"
    assert last["e"].seconds_per_call == pytest.approx(three["e"].seconds_per_call)


async def test_what_failed_is_asked_again() -> None:
    one = await build({"e": engine(Faults(fail_ids={"2"}))})
    second = engine()
    two = await build({"e": second}, known=one)
    assert [request.id for request in second.requests] == ["2#0"]
    assert (two.failed, two["e"].overall.total) == ({}, 4)


async def test_a_changed_expert_is_asked_everything_again() -> None:
    one = await build({"e": engine()})
    other = engine(said={"*": "(D)"})
    rows = [{"alias": "e", "engine": "given", "persona": "Someone else."}]
    catalog = Catalog.from_dict({"experts": rows})
    async with Pool(catalog, engines={"e": other}) as pool:
        two = await build_profile(pool, references(), SKILLS, known=one)
        two.check(pool, ["e"])
    assert len(other.requests) == 4
    assert {outcome.answer for outcome in two.outcomes} == {"D"}


async def test_changed_references_are_asked_again() -> None:
    one = await build({"e": engine()})
    changed = [Question(id="1", text="Another text?", options=("a", "b"), gold="A", kind="choice")]
    second = engine()
    async with Pool.from_engines({"e": second}) as pool:
        two = await build_profile(pool, [*changed, *references("2")], {}, known=one)
    assert [request.id for request in second.requests] == ["1#0"]
    assert list(two.questions) == ["1", "2"]
    assert two.references != one.references


async def test_another_seed_starts_anew_and_says_who_is_lost() -> None:
    one = await build({"e": engine(), "f": engine()})
    second = engine()
    two = await build({"e": second}, known=one, seed=1)
    assert len(second.requests) == 4
    assert list(two.experts) == ["e"]
    assert "earlier outcomes of f were dropped" in two.notes[0]


async def test_profiles_made_apart_merge_into_the_profile_made_together() -> None:
    whole = await build({"e": engine(), "f": engine(said={"*": "(C)"})})
    one = await build({"e": engine()}, "1", "3")
    two = await build({"e": engine()}, "2", "4")
    three = await build({"f": engine(said={"*": "(C)"})})
    merged = one.merge(three).merge(two)
    assert merged.fingerprint == whole.fingerprint


async def test_a_profile_comes_back_from_disk_and_fits_its_pool(tmp_path: Path) -> None:
    async with Pool.from_engines({"e": engine()}) as pool:
        profile = await build_profile(pool, references(), SKILLS)
        profile.save(tmp_path)
        loaded = Profile.load(tmp_path)
        loaded.check(pool, ["e"])
    assert loaded == profile


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"experts": ["x"]}, '"x"'),
        ({"samples": 0}, "samples is 0"),
    ],
)
async def test_impossible_settings_are_refused(more: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        await build({"e": engine()}, **more)


async def test_without_references_there_is_no_profile() -> None:
    async with Pool.from_engines({"e": engine()}) as pool:
        with pytest.raises(InputError, match="there are no references"):
            await build_profile(pool, [], {})


async def test_shares_that_are_no_numbers_are_refused() -> None:
    async with Pool.from_engines({"e": engine()}) as pool:
        with pytest.raises(InputError, match='skills of the reference "1"'):
            await build_profile(pool, references("1"), {"1": {"x": float("nan")}})


def test_an_answer_that_no_file_can_hold_is_cleaned() -> None:
    question = Question(id="1", text="?", gold="x")
    [outcome] = grade_answers([Answer(question_id="1", expert="e", answer="a\ud800b")], [question])
    assert outcome.answer == "a?b"


def choice(qid: str, text: str, options: tuple[str, ...], gold: str) -> Question:
    return Question(id=qid, text=text, options=options, gold=gold, kind="choice")


TWINS = [
    choice("m", "What is  it?", ("yes", "no"), "A"),
    choice("b", "what is it", ("No", "Yes."), "B"),  # the same answer under another letter
    choice("c", "What is it?", ("yes", "no"), "B"),
    choice("d", "What is it?", ("yes", "no", "both"), "B"),
]


@given(st.randoms(use_true_random=False))
def test_duplicates_are_dropped_and_counted_in_any_order(chance: random.Random) -> None:
    mixed = chance.sample(TWINS, len(TWINS))
    distinct = drop_duplicates(mixed)
    assert [q.id for q in distinct.questions] == [q.id for q in mixed if q.id in "bd"]
    assert distinct.dropped == {"m": "b", "c": "b"}
    assert distinct.contradictory == 1
    assert distinct.remarks == (
        "2 duplicate references were dropped, 1 of them with another gold answer: c is b, m is b",
    )
    assert [q.id for q in drop_duplicates(mixed, prefer="m").questions if q.id != "d"] == ["m"]


def test_a_set_without_duplicates_says_nothing() -> None:
    distinct = drop_duplicates(references())
    assert (distinct.questions, distinct.remarks) == (tuple(references()), ())
    with pytest.raises(InputError, match='two references have the id "1"'):
        drop_duplicates([*references("1"), *references("1")])


async def test_duplicates_are_noted_in_the_profile() -> None:
    async with Pool.from_engines({"e": engine(said={"*": "(A)"})}) as pool:
        profile = await build_profile(pool, TWINS, {})
    assert list(profile.questions) == ["b", "d"]
    assert "2 duplicate references were dropped" in profile.notes[0]


@pytest.mark.parametrize(
    ("gold", "kind", "options"),
    [
        ("B", "choice", ("x", "y")),
        ("081", "number", ()),
        ("080 or 081", "number", ()),
        ("80 || 81", "number", ()),
        (r"\frac{1}{2}", "number", ()),
        (r"2\sqrt{3}", "number", ()),
        ("$1,234.50", "number", ()),
        ("-3", "number", ()),
        ("Rome || Roma", "text", ()),
        ("The Lord of the Rings", "text", ()),
        ("1 || 2", "text", ()),
        ("yes || true", "text", ()),
    ],
)
def test_sound_golds_pass(gold: str, kind: str, options: tuple[str, ...]) -> None:
    check_gold(Question(id="g", text="?", gold=gold, kind=kind, options=options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("gold", "kind", "options", "match"),
    [
        (None, "text", (), 'reference "g" has no "gold"'),
        (
            "C",
            "choice",
            ("x", "y"),
            "malformed gold 'C', which no choice equals; write one of A, B",
        ),
        ("AB", "choice", ("x", "y"), "malformed gold 'AB'"),
        ("unknown", "number", (), "malformed gold 'unknown', which no number equals"),
        ("80 || ", "number", (), "malformed gold"),
        ("80 or unknown", "number", (), "malformed gold"),
        ("080 or 081", "text", (), "alternatives as `80 || 81`"),
        ("7 or 8 or 9.5", "text", (), "malformed gold"),
        (" ", "text", (), "malformed gold"),
    ],
)
def test_malformed_golds_are_named(
    gold: str | None, kind: str, options: tuple[str, ...], match: str
) -> None:
    question = Question(id="g", text="?", gold=gold, kind=kind, options=options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError) as caught:
        check_gold(question)
    assert match in str(caught.value)
    assert '"g"' in str(caught.value)
    with pytest.raises(InputError):
        drop_duplicates([question])
