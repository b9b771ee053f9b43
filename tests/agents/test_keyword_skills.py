from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.engines import Failure, Reply, Request
from expertmix.agents.keyword_skills import KeywordSkills, keep_repeated, parse_keywords
from expertmix.retrieval import InputError, Question


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


@pytest.mark.parametrize(
    ("reply", "keywords"),
    [
        ("**Keywords:** *Algebra*, `set theory`", ["algebra", "set theory"]),
        ('Keywords:\n\n"law", "ethics"\nI chose these because', ["law", "ethics"]),
        ("<think>Keywords: wrong, idea</think>Keywords: right", ["right"]),
        ("<think>Keywords: cut, off", []),
        ("Keywords: law, law, Law", ["law"]),
    ],
)
def test_what_models_write_around_keywords_is_removed(reply: str, keywords: list[str]) -> None:
    assert parse_keywords(reply) == keywords


@given(st.text() | st.from_regex(r"(Keywords:|a|,|\n|\*|\.| )*", fullmatch=True))
def test_whatever_a_model_writes_gives_different_keywords_on_one_line(reply: str) -> None:
    keywords = parse_keywords(reply)
    assert len(set(keywords)) == len(keywords)
    for keyword in keywords:
        assert keyword == keyword.strip() != ""
        assert "," not in keyword
        assert "." not in keyword
        assert len(keyword.splitlines()) == 1
    assert len(parse_keywords(reply, reference=True)) >= 1  # as published: at least the empty one


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
KEPT = {"first": {"algebra": 0.5, "geometry": 0.5}, "second": {"law": 0.5, "ethics": 0.5}}


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
async def test_keywords_that_repeat_are_kept_as_published_and_share_evenly(
    reference: bool,
) -> None:
    found = await KeywordSkills(Annotator(), reference=reference).extract(QUESTIONS)
    assert found == KEPT
    assert [list(shares) for shares in found.values()] == [
        ["algebra", "geometry"],
        ["law", "ethics"],
    ]


async def test_a_failed_sample_names_nothing() -> None:
    annotator = Annotator(frozenset({"first#3", "second#0", "second#1", "second#2", "second#4"}))
    found = await KeywordSkills(annotator).extract(QUESTIONS)
    assert found == {"first": {"algebra": 1.0}, "second": {}}


async def test_where_every_request_failed_nothing_can_be_told() -> None:
    failing = frozenset(f"{question}#{sample}" for question in ANNOTATIONS for sample in range(5))
    with pytest.raises(InputError, match="every request for keywords failed: died"):
        await KeywordSkills(Annotator(failing)).extract(QUESTIONS)


async def test_no_questions_are_asked_nothing() -> None:
    annotator = Annotator()
    assert await KeywordSkills(annotator).extract([]) == {}
    assert not annotator.asked


async def test_a_question_that_comes_twice_is_asked_once() -> None:
    annotator = Annotator()
    await KeywordSkills(annotator).extract([QUESTIONS[0], QUESTIONS[0]])
    assert len({request.id for request in annotator.asked}) == len(annotator.asked) == 5
    with pytest.raises(InputError, match="stands for two different questions"):
        await KeywordSkills(annotator).extract([QUESTIONS[0], Question(id="first", text="else")])


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


async def test_every_number_can_be_set_and_the_defaults_are_the_papers() -> None:
    annotator = Annotator()
    await KeywordSkills(annotator).extract(QUESTIONS[:1])
    sampling = annotator.asked[0].sampling
    assert (len(annotator.asked), sampling.temperature, sampling.top_p) == (5, 0.7, 1.0)

    annotator = Annotator()
    extractor = KeywordSkills(
        annotator,
        samples=3,
        temperature=0.2,
        top_p=0.9,
        keep_count=1,
        max_chars=7,
        max_tokens=4096,
    )
    found = await extractor.extract(QUESTIONS[:1])
    sampling = annotator.asked[0].sampling
    assert extractor.calls_per_question == len(annotator.asked) == 3
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.2, 0.9, 4096)
    assert found == {"first": {"algebra": 1.0}}  # the others have more than 7 characters


@pytest.mark.parametrize("settings", [{"samples": 0}, {"samples": 1}, {"keep_count": 0}])
def test_numbers_under_which_nothing_is_kept_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match="keep nothing"):
        KeywordSkills(Annotator(), **settings)  # pyright: ignore[reportArgumentType]


def test_only_the_published_way_counts_a_keyword_twice_within_one_answer_or_keeps_nothing() -> None:
    lists = [["law", "law", ""], ["", "ethics"]]
    assert keep_repeated(lists, reference=True) == ["law", ""]
    assert keep_repeated(lists) == []


@pytest.mark.parametrize("reference", [False, True])
def test_length_and_count_are_the_only_limits(reference: bool) -> None:
    fits, long = "x" * 20, "x" * 21
    assert keep_repeated([[fits, long]] * 2, reference=reference) == [fits]
    many = [f"keyword {at}" for at in range(30)]
    assert keep_repeated([many, many[::-1]], reference=reference) == many  # as first seen, no cap
