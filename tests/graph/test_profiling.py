"""A profile's folder grows, survives interruption and damage, and never forgets its references."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from expertmix.agents import Pool, Profile
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import ProfileFolder
from expertmix.graph.extractors import share_labels
from expertmix.retrieval import InputError, Question

QUESTIONS = [
    Question(id="a", text="1 + 1?", gold="2", kind="number", skills=("sums", "small", "sums")),
    Question(id="b", text="Red?", options=("yes", "no"), gold="B", kind="choice", skills=("law",)),
    Question(id="c", text="Name it.", gold="Rome || Roma"),
]
SAID = {"a": "Answer: 2", "b": "Answer: (A)", "c": "Answer: Roma", "z": "Answer: 3"}


async def build(
    folder: Path,
    references: Sequence[Question] = QUESTIONS,
    *,
    faults: Faults | None = None,
    experts: tuple[str, ...] = ("e",),
    samples: int = 1,
) -> tuple[Profile, int]:
    """The profile and the number of calls that it took."""
    made = ProfileFolder(folder)
    engines = {alias: ScriptedEngine(alias, SAID, faults=faults) for alias in experts}
    async with Pool.from_engines(engines, store=made.store) as pool:
        profile = await made.build(pool, references, samples=samples)
    return profile, sum(len(engine.requests) for engine in engines.values())


async def test_a_folder_holds_everything_and_asks_nothing_twice(tmp_path: Path) -> None:
    profile, calls = await build(tmp_path)
    assert calls == 3
    assert sorted(path.name for path in tmp_path.iterdir() if "sqlite" not in path.name) == [
        "outcomes.parquet",
        "profile.json",
        "references.jsonl",
        "references.parquet",
    ]
    assert profile.questions["a"].skills == {"sums": 0.5, "small": 0.5}
    assert profile.questions["c"].skills == {}
    assert profile.extractor == "the references' own labels"
    again, calls = await build(tmp_path)
    assert calls == 0
    assert again.fingerprint == profile.fingerprint
    assert Profile.load(tmp_path) == again
    assert ProfileFolder(tmp_path).references() == QUESTIONS


async def test_it_grows_by_experts_references_and_samples(tmp_path: Path) -> None:
    await build(tmp_path, QUESTIONS[:2])
    _, calls = await build(tmp_path, QUESTIONS[:2], experts=("e", "f"))
    assert calls == 2
    _, calls = await build(tmp_path, QUESTIONS, experts=("e", "f"))
    assert calls == 2
    profile, calls = await build(tmp_path, QUESTIONS, experts=("f",), samples=2)
    assert calls == 3
    assert list(profile.experts) == ["e", "f"], "who is not in the pool now is not forgotten"
    assert len(profile.outcomes) == 3 + 6


async def test_references_are_not_forgotten_or_changed(tmp_path: Path) -> None:
    await build(tmp_path)
    for other in (QUESTIONS[:2], [*QUESTIONS[:2], Question(id="c", text="Name it.", gold="Oslo")]):
        with pytest.raises(InputError, match="holds a profile of other references"):
            await build(tmp_path, other)


async def test_duplicates_are_dropped_and_what_is_known_stays(tmp_path: Path) -> None:
    twin = Question(id="Z", text="name IT", gold="Rome")
    first, _ = await build(tmp_path)
    grown, calls = await build(tmp_path, [twin, *QUESTIONS])
    assert calls == 0, "its twin is asked already, although it sorts behind"
    assert list(grown.questions) == list(first.questions)
    assert "1 duplicate references were dropped" in grown.notes[0]
    assert "Z is c" in grown.notes[0]
    assert "Z" not in (tmp_path / "references.jsonl").read_text()
    assert Profile.load(tmp_path).notes == grown.notes


async def test_what_failed_is_asked_again(tmp_path: Path) -> None:
    profile, _ = await build(tmp_path, faults=Faults(fail_ids={"b"}))
    assert profile.failed == {"e": 1}
    profile, calls = await build(tmp_path)
    assert (profile.failed, calls) == ({}, 1)


async def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, _ = await build(tmp_path / "whole")
    await build(tmp_path / "cut", faults=Faults(die_after=1))
    for name in ("profile.json", "outcomes.parquet", "references.parquet"):
        (tmp_path / "cut" / name).unlink()  # it was killed before it wrote them
    resumed, calls = await build(tmp_path / "cut")
    assert calls == 2
    assert resumed.fingerprint == whole.fingerprint


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 2}'])
async def test_an_old_or_damaged_profile_is_made_anew_from_the_replies(
    tmp_path: Path, content: str
) -> None:
    profile, _ = await build(tmp_path)
    (tmp_path / "profile.json").write_text(content)
    again, calls = await build(tmp_path)
    assert calls == 0
    assert again.fingerprint == profile.fingerprint
    assert any("could not be read" in note for note in again.notes) == ("1" not in content)


async def test_a_newer_profile_is_left_alone(tmp_path: Path) -> None:
    await build(tmp_path)
    (tmp_path / "profile.json").write_text('{"format": 3}')
    with pytest.raises(InputError, match="format 3; this version reads 2"):
        await build(tmp_path)
    assert json.loads((tmp_path / "profile.json").read_text()) == {"format": 3}


async def test_a_malformed_gold_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    odd = Question(id="z", text="How many?", gold="080 or 081", kind="text")
    with pytest.raises(InputError, match='reference "z" has the malformed gold'):
        await build(tmp_path, [*QUESTIONS, odd])
    assert not (tmp_path / "references.jsonl").exists()


def test_an_empty_folder_has_no_references(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no profile in"):
        ProfileFolder(tmp_path).references()


def test_labels_share_a_question_equally() -> None:
    assert share_labels(("x", "y", "x")) == {"x": 0.5, "y": 0.5}
    assert share_labels(()) == {}
