from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from langchain_core.embeddings import Embeddings

from expertmix.agents.engines import Failure, Reply, Request
from expertmix.agents.skills import (
    EmbeddingSkills,
    KeywordSkills,
    keep_repeated,
    map_to_vocabulary,
    parse_keywords,
)
from expertmix.retrieval import InputError, Question

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
    assert found == {"m": ("mathematics",), "both": ("legal", "biology"), "none": ()}


async def test_labels_that_a_person_gave_are_never_seen() -> None:
    extractor = EmbeddingSkills(WordCounts(), SKILLS, floor=0.3)
    found = await extractor.extract([ask("m", "algebra number", "legal")])
    assert found == {"m": ("mathematics",)}


async def test_labelled_questions_sharpen_a_skill() -> None:
    extractor = EmbeddingSkills(WordCounts(), {**SKILLS, "economics": "trade"}, floor=0.3)
    asked = [ask("e", "price price")]
    assert await extractor.extract(asked) == {"e": ()}
    extractor.fit([ask("r1", "price", "economics"), ask("r2", "algebra", "unknown skill")])
    assert await extractor.extract(asked) == {"e": ("economics",)}


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="vocabulary is empty"):
        EmbeddingSkills(WordCounts(), {})


@pytest.mark.parametrize(
    ("reply", "reference", "robust"),
    [
        ("Keywords: Algebra, number theory.", *[["algebra", "number theory"]] * 2),
        ("Algebra, Number Theory", *[["algebra", "number theory"]] * 2),
        ("keywords: a, b", ["keywords: a", "b"], ["a", "b"]),
        ("Keywords: x\n\nThis is", ["x\n\nthis is"], ["x"]),
        ("", [""], []),
        ("Keywords: quantum mechanics, Keywords: y, z", *[["y", "z"]] * 2),
        ("Keywords: a,,b", ["a", "", "b"], ["a", "b"]),
        ("Keywords: U.S. history, e.g. law", *[["us history", "eg law"]] * 2),
    ],
)
def test_keywords_are_parsed_as_published_or_better(
    reply: str, reference: list[str], robust: list[str]
) -> None:
    assert parse_keywords(reply, reference=True) == reference
    assert parse_keywords(reply) == robust


LONG = "the philosophy of law and justice"  # 33 characters
ANNOTATIONS = {
    "first": [
        "Keywords: algebra, geometry",
        "Keywords: Algebra, calculus.",
        "Keywords: algebra, algebra, topology",
        "Keywords: geometry",
        "Keywords: set theory",
    ],
    "second": [
        f"Keywords: {LONG}, law",
        "Keywords: law, ethics",
        "Keywords: Law",
        "",
        f"Keywords: ethics, {LONG}",
    ],
}
KEPT = {"first": ("algebra", "geometry"), "second": ("law", "ethics")}


class Annotator:
    """Gives the scripted annotations, remembers what it was asked, and fails where told to."""

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self.asked: list[Request] = []
        self._failing = failing

    async def __call__(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        if request.id in self._failing:
            return Reply.failed(request, Failure(kind="engine", message="died"))
        question_id, _, sample = request.id.partition("#")
        return Reply(request_id=request.id, text=ANNOTATIONS[question_id][int(sample)])


QUESTIONS = [
    Question(id="first", text="Is $x a group?", options=("yes", "no"), kind="choice"),
    Question(id="second", text="Is it just?"),
]


@pytest.mark.parametrize("reference", [False, True])
async def test_keywords_that_repeat_are_kept_as_published(reference: bool) -> None:
    annotator = Annotator()
    assert await KeywordSkills(annotator, reference=reference).extract(QUESTIONS) == KEPT


async def test_a_failed_sample_names_nothing() -> None:
    annotator = Annotator(frozenset({"first#3", "second#0", "second#1", "second#2", "second#4"}))
    found = await KeywordSkills(annotator).extract(QUESTIONS)
    assert found == {"first": ("algebra",), "second": ()}


async def test_each_sample_has_a_seed_that_neither_order_nor_batch_changes() -> None:
    together, apart = Annotator(), Annotator()
    await KeywordSkills(together, seed=3).extract(QUESTIONS)
    for question in reversed(QUESTIONS):
        await KeywordSkills(apart, seed=3).extract([question])
    seeds = {request.id: request.sampling.seed for request in together.asked}
    assert seeds == {request.id: request.sampling.seed for request in apart.asked}
    assert len(set(seeds.values())) == 10
    other = Annotator()
    await KeywordSkills(other, seed=4).extract(QUESTIONS)
    assert not set(seeds.values()) & {request.sampling.seed for request in other.asked}


async def test_the_prompt_shows_the_question_and_asks_for_one_line() -> None:
    annotator = Annotator()
    await KeywordSkills(annotator).extract(QUESTIONS[:1])
    (message,) = annotator.asked[0].messages
    assert message["role"] == "user"
    assert "Is $x a group?" in message["content"]
    assert "Keywords:" in message["content"]
    assert {request.question_id for request in annotator.asked} == {"first"}


def test_only_the_published_way_counts_a_keyword_twice_within_one_answer_or_keeps_nothing() -> None:
    lists = [["law", "law", ""], ["", "ethics"]]
    assert keep_repeated(lists, reference=True) == ["law", ""]
    assert keep_repeated(lists) == []


def test_open_keywords_are_mapped_to_known_skills_or_dropped() -> None:
    vocabulary = ["law", "algebra", "gene"]
    keywords = ["gene", "algebra number", "algebra", "haute couture"]
    assert map_to_vocabulary(keywords, vocabulary, WordCounts()) == ("gene", "algebra")
    published = map_to_vocabulary(keywords, vocabulary, WordCounts(), floor=None)
    assert published[:3] == ("gene", "algebra", "algebra")
    assert len(published) == 4
    assert map_to_vocabulary([], vocabulary, WordCounts()) == ()
