"""Settings are checked against pool and profile before anything is asked: one sentence each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from expertmix.agents import Adaptive, Pool, Profile
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import ProfileFolder, make_resources
from expertmix.retrieval import InputError, Question

REFERENCES = [
    Question(id=f"r{at}", text=f"{at}?", options=("x", "y"), gold="A", kind="choice")
    for at in range(4)
]
LETTERS = {"a": "A", "b": "B", "c": "A"}


def make_engines() -> dict[str, ScriptedEngine]:
    return {
        name: ScriptedEngine(name, {"*": f"Answer: ({letter})"}) for name, letter in LETTERS.items()
    }


class Fake(DeterministicFakeEmbedding):
    """Stands in for MiniLM."""

    size: int = 8
    revision: str = "1"


@pytest.fixture
async def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Pool]:
    """Three experts, whose profile is in `tmp_path / "made"`."""
    for module in ("extractors", "resources"):
        monkeypatch.setattr(f"expertmix.graph.{module}.MiniLM", Fake)
    folder = ProfileFolder(tmp_path / "made")
    async with Pool.from_engines(make_engines(), store=folder.store) as opened:
        await folder.build(opened, REFERENCES)
        yield opened


BAD: dict[str, tuple[dict[str, Any], bool, str]] = {
    "adaptive, no profile": ({"adaptive": 2}, False, "an adaptive panel needs a profile: make one"),
    "best, no profile": ({"aggregator": "best"}, False, 'aggregator "best" needs a profile'),
    "knn, no profile": ({"policy": "knn"}, False, "policy knn needs a profile"),
    "best, no benchmark": ({"aggregator": "best"}, True, "no scores of aggregators at"),
    "k of 0": ({"k": 0}, True, "k is 0, but there are 3 experts .* choose k between 1 and 3"),
    "k too large": ({"k": 2, "experts": ("a",)}, True, "k is 2, but there are 1 experts"),
    "calls above the pool": ({"adaptive": 4}, True, "adaptive is 4 calls .* between 1 and 3"),
    "calls below 1": ({"adaptive": 0.5}, True, "adaptive is 0.5 calls"),
    "calls no number": ({"adaptive": math.nan}, True, "adaptive is nan calls"),
    "calls without end": ({"adaptive": math.inf}, True, "adaptive is inf calls"),
    "abstain above 1": ({"abstain_below": 1.5}, True, "abstain_below is 1.5; a confidence lies"),
    "abstain no number": ({"abstain_below": math.nan}, True, "abstain_below is nan"),
    "no samples": ({"samples": 0}, True, "samples is 0; ask each expert at least once"),
    "unknown expert": ({"experts": ("a", "z")}, True, 'no expert named "z"'),
    "unknown aggregator": ({"aggregator": "z"}, True, 'no expert named "z"; the pool has a, b, c'),
}


@pytest.mark.parametrize(("settings", "known", "words"), BAD.values(), ids=BAD)
async def test_settings_that_do_not_fit_are_refused(
    pool: Pool, tmp_path: Path, settings: dict[str, Any], known: bool, words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        make_resources(pool, profile=tmp_path / "made" if known else None, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("settings", [{"policy": "knn"}, {"aggregator": "best"}])
async def test_some_settings_need_the_folder(
    pool: Pool, tmp_path: Path, settings: dict[str, Any]
) -> None:
    profile = Profile.load(tmp_path / "made")
    with pytest.raises(InputError, match="folder of a profile, not a profile in memory"):
        make_resources(pool, profile=profile, **settings)


async def test_a_profile_that_is_not_there_is_one_sentence(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="profile"):
        make_resources(pool, profile=tmp_path / "nowhere", adaptive=2)


@pytest.mark.parametrize(
    ("calls", "first", "most"), [(1, 1, 3), (1.5, 1, 3), (2, 2, 3), (2.5, 2, 3), (3, 2, 3)]
)
async def test_a_mean_becomes_limits(
    pool: Pool, tmp_path: Path, calls: float, first: int, most: int
) -> None:
    made = make_resources(pool, profile=tmp_path / "made", adaptive=calls)
    assert made.adaptive == Adaptive(calls=calls, first=first, most=most)


async def test_knn_gets_the_references_and_other_policies_do_not(
    pool: Pool, tmp_path: Path
) -> None:
    near = make_resources(pool, profile=tmp_path / "made", policy="knn").expertise
    plain = make_resources(pool, profile=tmp_path / "made").expertise
    assert near is not None
    assert near.references is not None
    assert len(near.references) == len(REFERENCES)
    assert plain is not None
    assert plain.references is None


async def test_only_the_named_experts_are_known(pool: Pool, tmp_path: Path) -> None:
    made = make_resources(pool, profile=tmp_path / "made", experts=("c", "a"))
    assert made.k == 2
    assert made.expertise is not None
    assert made.expertise.table.experts == ("a", "c")


async def test_an_expert_called_best_is_an_expert() -> None:
    engines = {"best": ScriptedEngine("best", {"*": "Answer: 1"})}
    async with Pool.from_engines(engines) as pool:
        made = make_resources(pool, aggregator="best")
    assert made.aggregator == "best"
    assert made.aggregators is None


async def test_a_profile_whose_skills_were_told_otherwise_is_refused(
    pool: Pool, tmp_path: Path
) -> None:
    made = dataclasses.replace(
        Profile.load(tmp_path / "made"), extractor="EmbeddingSkills 0123456789ab"
    )
    with pytest.raises(InputError, match="skills_by or keywords_by changed since"):
        make_resources(pool, profile=made)
