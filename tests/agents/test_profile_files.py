"""A profile on disk is whole or refused, whatever happened while it was written."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Profile
from expertmix.agents.profile_files import FORMAT, find_format
from expertmix.agents.records import ExpertRecord, Outcome, Reference
from expertmix.retrieval import InputError


def make(answer: str | None = "A", skills: dict[str, float] | None = None) -> Profile:
    references = (
        Reference("c", "A", 2, "choice", skills or {"law": 0.7, "art": 0.1}, "f00"),
        Reference("n", "1/2", 0, "number"),
    )
    return Profile(
        references="r",
        prompts="p",
        seed=3,
        extractor="labels",
        experts={"e": ExpertRecord("id", 0.25, 1), "silent": ExpertRecord("id2", 0.0, 2)},
        questions={reference.id: reference for reference in references},
        outcomes=(
            Outcome("c", "e", 0, answer, answer == "A", 12),
            Outcome("c", "e", 1, "B", False, 3),
        ),
        remarks=("a remark",),
    )


def test_a_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    profile = make()
    profile.save(tmp_path / "new" / "folder")
    assert Profile.load(tmp_path / "new" / "folder") == profile
    assert Profile.load(tmp_path / "new" / "folder" / "profile.json") == profile
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "outcomes.parquet",
        "profile.json",
        "references.parquet",
    ]


@given(
    answer=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    skills=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.floats(1e-9, 0.25), max_size=4
    ),
)
def test_any_text_and_any_share_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, answer: str | None, skills: dict[str, float]
) -> None:
    folder = tmp_path_factory.mktemp("profile")
    profile = make(answer, skills)
    profile.save(folder)
    loaded = Profile.load(folder)
    assert loaded == profile
    assert [*loaded.questions["c"].skills] == [*profile.questions["c"].skills], "the order stays"


def test_saving_the_same_again_writes_the_same_bytes(tmp_path: Path) -> None:
    def read(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    make().save(tmp_path / "one")
    make().save(tmp_path / "two")
    Profile.load(tmp_path / "one").save(tmp_path / "one")
    assert read("one") == read("two")


@pytest.mark.parametrize("steps", range(9))
def test_a_kill_at_any_step_leaves_the_old_or_the_new_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The replacements on disk are the only steps that count; after `steps` of them we are killed."""
    old, new = make("A"), make("B", {"law": 0.5})
    old.save(tmp_path)
    left, replace_file = steps, os.replace

    def step(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", step)
    try:
        new.save(tmp_path)
        is_saved = True
    except KeyboardInterrupt:
        is_saved = False
    monkeypatch.undo()
    loaded = Profile.load(tmp_path)
    assert loaded == (new if steps > 2 else old)
    assert is_saved == (steps > 4)
    new.save(tmp_path)
    assert Profile.load(tmp_path) == new
    assert len(list(tmp_path.iterdir())) == 3, "what a killed run left is cleared away"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "2"}', "\0", "[" * 100_000])
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(InputError, match=r"profile\.json is no profile; make one with"):
        Profile.load(tmp_path)


def test_another_format_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(InputError, match="no profile at"):
        Profile.load(tmp_path)
    path.write_text('{"format": 1, "experts": {}}')
    with pytest.raises(
        InputError, match=r"has profile format 1.*run `expertmix profile` again: only"
    ):
        Profile.load(tmp_path)
    path.write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99; this version reads 2; use the version"):
        Profile.load(tmp_path)
    assert (find_format(path), find_format(tmp_path / "nothing")) == (99, None)
    assert FORMAT == 2


@pytest.mark.parametrize("name", ["outcomes", "references"])
def test_damaged_tables_are_refused(tmp_path: Path, name: str) -> None:
    make().save(tmp_path)
    table = tmp_path / f"{name}.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=rf"{name}\.parquet is not the table that the manifest"):
        Profile.load(tmp_path)
    table.unlink()
    with pytest.raises(InputError, match=rf"{name}\.parquet is missing; run `expertmix profile`"):
        Profile.load(tmp_path)


def change(folder: Path, **parts: Any) -> None:
    path = folder / "profile.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"experts": {}}, 'outcome of "e" on "c" belongs to no expert'),
        ({"experts": {"e": {"identity": "id", "x": 1}}}, "is damaged"),
        ({"experts": []}, "is damaged"),
        ({"seed": "x"}, "is damaged"),
        ({"prompts": None}, "is damaged"),
        ({"sha256": {}}, "is damaged"),
        ({"sha256": {"outcomes": "../../etc/passwd"}}, "is no hash"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, parts: dict[str, Any], match: str
) -> None:
    make().save(tmp_path)
    change(tmp_path, **parts)
    with pytest.raises(InputError, match=match):
        Profile.load(tmp_path)


def test_a_foreign_table_is_refused_even_with_its_hash(tmp_path: Path) -> None:
    import hashlib

    import pyarrow as pa
    from pyarrow import parquet

    make().save(tmp_path)
    sound = json.loads((tmp_path / "profile.json").read_text())["sha256"]
    parquet.write_table(pa.table({"x": [1]}), tmp_path / "outcomes.parquet")
    for content, match in ((None, "has the columns x"), (b"PAR1 nothing", "is no parquet file")):
        if content is not None:
            (tmp_path / "outcomes.parquet").write_bytes(content)
        found = hashlib.sha256((tmp_path / "outcomes.parquet").read_bytes()).hexdigest()
        change(tmp_path, sha256={**sound, "outcomes": found})
        with pytest.raises(InputError, match=match):
            Profile.load(tmp_path)


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the profile to"):
        make().save(tmp_path / "file" / "folder")
    profile = make()
    odd = replace(profile.questions["n"], id="\ud800")
    with pytest.raises(InputError, match="no valid Unicode"):
        replace(profile, questions={**profile.questions, odd.id: odd}).save(tmp_path)
