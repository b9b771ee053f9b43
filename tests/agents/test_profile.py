"""Profiles count right and wrong, grow without asking twice, and refuse strangers."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertmix.agents import AnswerStore, Pool, Profile, build_profile
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.retrieval import InputError, Question

# symbolic-moe.md §5.3: four rows with gold A, C, C, D and replies (A), (B), (C), unparsable.
GOLD = {"1": "A", "2": "C", "3": "C", "4": "D"}
SAID = {"1": "(A)", "2": "(B)", "3": "(C)", "4": "no idea"}
TAGS = {"1": ("algebra", "geometry"), "2": ("algebra",), "3": ("law", "law"), "4": ()}


def references() -> list[Question]:
    options = ("w", "x", "y", "z")
    return [
        Question(id=i, text=f"{i}?", options=options, gold=gold, kind="choice")
        for i, gold in GOLD.items()
    ]


def engine(faults: Faults | None = None) -> ScriptedEngine:
    return ScriptedEngine("e", SAID, faults=faults)


async def test_the_pinned_profile_comes_out_right() -> None:
    async with Pool.from_engines({"e": engine()}) as pool:
        profile = await build_profile(pool, references(), TAGS)
    expert = profile["e"]
    net = {skill: t.right - t.wrong for skill, t in expert.skills.items()}
    # The reference code counts the doubled tag `law` twice (2); a skill is one skill here.
    assert net == {"algebra": 0, "geometry": 1, "law": 1}
    assert (expert.overall.right, expert.overall.wrong) == (2, 2)


async def test_a_failed_request_is_not_a_wrong_answer() -> None:
    async with Pool.from_engines({"e": engine(Faults(fail_ids={"2"}))}) as pool:
        expert = (await build_profile(pool, references(), TAGS))["e"]
    assert (expert.overall.right, expert.overall.wrong, expert.failed) == (2, 1, 1)


async def test_growing_asks_only_the_new_expert(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "r.sqlite")
    first, again, new = engine(), engine(), engine()
    async with Pool.from_engines({"e": first}, store=store) as pool:
        one = await build_profile(pool, references(), TAGS)
    async with Pool.from_engines({"e": again, "n": new}, store=store) as pool:
        two = await build_profile(pool, references(), TAGS)
    assert (first.calls, again.calls, new.calls) == (1, 0, 1)
    assert one["e"].skills == two["e"].skills


async def test_a_profile_comes_back_from_disk(tmp_path: Path) -> None:
    async with Pool.from_engines({"e": engine()}) as pool:
        profile = await build_profile(pool, references(), TAGS)
        profile.save(tmp_path / "profile.json")
        loaded = Profile.load(tmp_path)
        loaded.check(pool, ["e"])
    assert loaded.to_json() == profile.to_json()


async def test_a_profile_refuses_experts_it_was_not_made_for() -> None:
    async with Pool.from_engines({"e": engine()}) as pool:
        profile = await build_profile(pool, references(), TAGS)
    from expertmix.agents import Catalog

    catalog = Catalog.from_dict(
        {"experts": [{"alias": "e", "engine": "given", "persona": "Someone else."}]}
    )
    with pytest.raises(InputError, match='"e" is not the one that was profiled'):
        profile.check(Pool(catalog, engines={"e": engine()}), ["e"])
    with pytest.raises(InputError, match='does not know the expert "x"'):
        profile.check(Pool.from_engines({"x": engine()}), ["x"])


async def test_references_need_gold_answers() -> None:
    async with Pool.from_engines({"e": engine()}) as pool:
        with pytest.raises(InputError, match='"7" has no "gold"'):
            await build_profile(pool, [Question(id="7", text="?")], {})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"profile\.json"):
        Profile.load(path)
