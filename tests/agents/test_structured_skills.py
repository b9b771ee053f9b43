from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.engines import Failure, Reply, Request
from expertmix.agents.structured_skills import StructuredSkills, read_skills
from expertmix.retrieval import InputError, Question

SKILLS = {"algebra": "unknowns and equations", "law": "", "Cell Biology": "cells"}
QUESTIONS = [
    Question(id="first", text="Is $x a group?", options=("yes", "no"), kind="choice"),
    Question(id="second", text="Is it just?"),
]


class Annotator:
    """Says what it was told to say, and fails where that is nothing."""

    def __init__(self, *texts: str | None) -> None:
        self.asked: list[Request] = []
        self._texts = texts

    async def __call__(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += requests
        failure = Failure(kind="engine", message="died")
        return [
            Reply.failed(request, failure)
            if text is None
            else Reply(request_id=request.id, text=text)
            for request, text in zip(requests, self._texts, strict=True)
        ]


def write(*entries: tuple[str, object]) -> str:
    return json.dumps({"skills": [{"skill": s, "importance": value} for s, value in entries]})


async def test_one_call_a_question_gives_shares_by_importance() -> None:
    annotator = Annotator(write(("law", 1), ("algebra", 3)), write())
    extractor = StructuredSkills(annotator, SKILLS)
    found = await extractor.extract(QUESTIONS)
    assert found == {"first": {"algebra": 0.75, "law": 0.25}, "second": {}}
    assert list(found["first"]) == ["algebra", "law"]
    assert len(annotator.asked) == 2 * extractor.calls_per_question


async def test_the_request_shows_the_closed_list_and_is_held_to_it() -> None:
    annotator = Annotator(write(), write())
    await StructuredSkills(annotator, SKILLS, max_skills=2, max_tokens=99).extract(QUESTIONS)
    request = annotator.asked[0]
    content = request.messages[0]["content"]
    assert all(part in content for part in ("Is $x a group?", "yes\nno", "at most 2"))
    assert "- algebra: unknowns and equations\n- law\n- Cell Biology: cells" in content
    assert (request.question_id, request.sampling.max_tokens) == ("first", 99)
    schema = request.sampling.json_schema
    assert schema is not None
    assert json.loads(json.dumps(schema)) == {
        "type": "object",
        "properties": {
            "skills": {
                "type": "array",
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "skill": {"type": "string", "enum": ["algebra", "law", "Cell Biology"]},
                        "importance": {"type": "integer", "enum": [1, 2, 3]},
                    },
                    "required": ["skill", "importance"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["skills"],
        "additionalProperties": False,
    }


async def test_an_open_list_takes_any_keyword_and_names_none() -> None:
    annotator = Annotator(write(("Set  Theory.", 2), ("x" * 41, 3)), write(("set theory", 1)))
    extractor = StructuredSkills(annotator)
    found = await extractor.extract(QUESTIONS)
    assert found == {"first": {"set theory": 1.0}, "second": {"set theory": 1.0}}
    assert '"enum": ["' not in json.dumps(extractor.schema)
    assert "algebra" not in annotator.asked[0].messages[0]["content"]


async def test_an_engine_without_schemas_is_only_asked() -> None:
    annotator = Annotator("Sure! " + write(("law", 3)))
    extractor = StructuredSkills(annotator, SKILLS, constrain=False)
    assert await extractor.extract(QUESTIONS[:1]) == {"first": {"law": 1.0}}
    assert annotator.asked[0].sampling.json_schema is None


async def test_seeds_differ_by_question_and_not_by_batch() -> None:
    together, apart = Annotator("", ""), Annotator("")
    await StructuredSkills(together, seed=3).extract(QUESTIONS)
    await StructuredSkills(apart, seed=3).extract(QUESTIONS[1:])
    first, second = (request.sampling.seed for request in together.asked)
    assert first != second == apart.asked[0].sampling.seed


async def test_of_a_failed_request_nothing_can_be_told_and_all_failed_is_an_error() -> None:
    some = StructuredSkills(Annotator(None, write(("law", 2))), SKILLS)
    assert await some.extract(QUESTIONS) == {"first": {}, "second": {"law": 1.0}}
    with pytest.raises(InputError, match="every request for skills failed: died"):
        await StructuredSkills(Annotator(None, None), SKILLS).extract(QUESTIONS)


async def test_no_questions_are_asked_nothing_and_one_that_comes_twice_once() -> None:
    assert await StructuredSkills(Annotator(), SKILLS).extract([]) == {}
    twice = StructuredSkills(Annotator(write(("law", 1))), SKILLS)
    assert await twice.extract([QUESTIONS[0]] * 2) == {"first": {"law": 1.0}}
    with pytest.raises(InputError, match="stands for two"):
        await twice.extract([QUESTIONS[0], Question(id="first", text="else")])


def test_an_empty_vocabulary_and_room_for_no_skill_are_refused() -> None:
    with pytest.raises(InputError, match="vocabulary is empty"):
        StructuredSkills(Annotator(), {})
    with pytest.raises(InputError, match="max_skills is 0"):
        StructuredSkills(Annotator(), max_skills=0)


@pytest.mark.parametrize(
    ("reply", "shares"),
    [
        ("```json\n" + write(("law", 2)) + "\n```", {"law": 1.0}),
        ("Here {it} is [1]: " + write(("law", 2)) + " Hope it helps {}", {"law": 1.0}),
        ("<think>" + write(("algebra", 3)) + "</think>" + write(("law", 1)), {"law": 1.0}),
        (write(("algebra", 3)) + " no: " + write(("law", 1)), {"law": 1.0}),
        (write(("ALGEBRA", 1), ("cell  biology", 1)), {"algebra": 0.5, "Cell Biology": 0.5}),
        (write(("magic", 3), ("law", 1)), {"law": 1.0}),
        (write(("law", 1), ("algebra", 1), ("law", 3)), {"law": 0.75, "algebra": 0.25}),
        (write(("law", 1)).replace("}]}", "}, {"), {"law": 1.0}),  # cut off
        ('{"skills": ["law", "algebra"]}', {"law": 0.5, "algebra": 0.5}),
        ('["law"]', {"law": 1.0}),
        ('{"skills": {"law": 3, "algebra": 1}}', {"law": 0.75, "algebra": 0.25}),
        (write(("law", "3"), ("algebra", None)), {"law": 0.75, "algebra": 0.25}),
        (write(("law", 99), ("algebra", -5)), {"law": 0.75, "algebra": 0.25}),
        (write(("law", "high"), ("algebra", math.nan)), {"law": 0.5, "algebra": 0.5}),
        (write(("law", 10**400), ("algebra", math.inf)), {"law": 0.25, "algebra": 0.75}),
        (write(), {}),
        ("", {}),
        ("law", {}),
        ("{" * 3000 + "[" * 3000, {}),
        ('{"skills": 3}', {}),
        ('{"skills": [null, 3, {"skill": 4}, {"importance": 2}, []]}', {}),
    ],
)
def test_skills_are_read_out_of_whatever_a_model_writes(
    reply: str, shares: dict[str, float]
) -> None:
    assert read_skills(reply, SKILLS) == shares


def test_the_most_important_are_kept_in_the_order_named() -> None:
    reply = write(("a", 1), ("b", 3), ("c", 2), ("d", 3), ("e", 1))
    assert list(read_skills(reply, max_skills=3)) == ["b", "d", "c"]


def test_a_name_written_as_listed_wins_over_one_of_another_case() -> None:
    assert read_skills(write(("law", 1)), ["LAW", "law"]) == {"law": 1.0}
    assert read_skills(write(("law", 1)), ["LAW", "Law"]) == {"LAW": 1.0}


def test_a_keyword_of_an_open_list_fits_on_one_line() -> None:
    assert read_skills(write(("*set\ntheory*", 1), ("\x1b[31mred", 3), ("", 2))) == {
        "set theory": 1.0
    }


def test_of_a_long_reply_the_end_is_read() -> None:
    assert read_skills("so {I think} " * 10_000 + write(("law", 3)), SKILLS) == {"law": 1.0}


json_like = st.text(st.sampled_from('{}[]":, \\skil1e9N"importance'))


@given(st.text() | json_like, st.booleans())
def test_no_reply_breaks_the_reader(reply: str, closed: bool) -> None:
    check(read_skills(reply, SKILLS if closed else None), 5)


entries = st.lists(st.tuples(st.sampled_from([*SKILLS, "magic"]), st.integers(1, 3)), max_size=8)


@given(entries, st.integers(1, 5), st.text(), st.text())
def test_what_was_written_is_read_whatever_surrounds_it(
    said: list[tuple[str, int]], most: int, before: str, after: str
) -> None:
    clean = str.maketrans("", "", '{}[]<>"')  # prose that neither holds nor breaks JSON
    reply = before.translate(clean) + write(*said) + after.translate(clean)
    shares = read_skills(reply, SKILLS, max_skills=most)
    check(shares, most)
    assert set(shares) <= set(SKILLS)
    assert bool(shares) == any(skill in SKILLS for skill, _ in said)


def check(shares: dict[str, float], most: int) -> None:
    assert len(shares) <= most
    assert not shares or math.isclose(math.fsum(shares.values()), 1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert all(skill and 0 < share <= 1 for skill, share in shares.items())
