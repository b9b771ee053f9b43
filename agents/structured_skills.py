"""Skills by one structured answer per question: names of a closed list, or keywords, with an importance."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from ..retrieval import InputError, Question
from .answers import strip_thinking
from .engines import Request, Sampling
from .keyword_skills import Ask
from .prompt import fill_prompt
from .reason import derive_seed
from .skills import keep_distinct

__all__ = ["StructuredSkills", "read_skills"]

LEAST, MOST = 1, 3
"""Importance."""
READ_CHARS = 4000
"""Of a longer reply, only this much of its end is read: broken JSON costs its length squared."""


class StructuredSkills:
    """What one call names, held to a JSON schema: a skill's share is its importance over their sum.

    Args:
        ask: Asks the annotating model, for instance `Pool.generate` with its alias bound.
        vocabulary: Closed list, skill to one-line description (which may be empty); what is not on it is
            dropped. None: the model names keywords, which a `SkillMap` maps to the skills of a profile.
        max_skills: Most skills of one question.
        max_chars: Longer keywords of an open list are dropped.
        temperature: Of the answer.
        max_tokens: Upper bound on the answer.
        seed: Of the answer.
        constrain: Hold the engine to the schema. Without it the prompt alone asks for JSON: for engines
            that know no schemas, such as `transformers`.

    Raises:
        InputError: the vocabulary is empty, or `max_skills` is below 1.
    """

    calls_per_question = 1

    def __init__(
        self,
        ask: Ask,
        vocabulary: Mapping[str, str] | None = None,
        *,
        max_skills: int = 5,
        max_chars: int = 40,
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        constrain: bool = True,
    ) -> None:
        if vocabulary is not None and not vocabulary:
            raise InputError(
                "the skill vocabulary is empty; name skills, or give None for keywords"
            )
        if max_skills < 1:
            raise InputError(
                f"max_skills is {max_skills}; a question needs room for at least 1 skill"
            )
        self._ask = ask
        self._vocabulary = None if vocabulary is None else dict(vocabulary)
        self._max_skills = max_skills
        self._max_chars = max_chars
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._seed = seed
        self._constrain = constrain

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of an answer."""
        skill: dict[str, Any] = {"type": "string"}
        if self._vocabulary is not None:
            skill["enum"] = list(self._vocabulary)
        importance = {"type": "integer", "enum": list(range(LEAST, MOST + 1))}
        entry = _object({"skill": skill, "importance": importance})
        return _object({"skills": {"type": "array", "items": entry, "maxItems": self._max_skills}})

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        """Skills by question id; nothing can be told of a question whose request failed.

        Raises:
            InputError: every request failed, or an id stands for two questions.
        """
        distinct = keep_distinct(questions)
        requests = [self._request(question) for question in distinct]
        replies = await self._ask(requests) if requests else []
        if replies and all(reply.failure is not None for reply in replies):
            why = next(reply.failure.message for reply in replies if reply.failure is not None)
            raise InputError(f"no skills can be told, every request for skills failed: {why}")
        return {
            question.id: {} if reply.failure is not None else self._read(reply.text)
            for question, reply in zip(distinct, replies, strict=True)
        }

    def _read(self, text: str) -> dict[str, float]:
        return read_skills(
            text, self._vocabulary, max_skills=self._max_skills, max_chars=self._max_chars
        )

    def _request(self, question: Question) -> Request:
        options = "\n".join(question.options)
        asked = f"{question.text}\n{options}".strip()
        if self._vocabulary is None:
            content = fill_prompt("skills-open", question=asked, most=str(self._max_skills))
        else:
            skills = "\n".join(
                f"- {name}: {told}" if told else f"- {name}"
                for name, told in self._vocabulary.items()
            )
            content = fill_prompt(
                "skills-closed", question=asked, skills=skills, most=str(self._max_skills)
            )
        return Request(
            id=f"{question.id}#0",
            messages=({"role": "user", "content": content},),
            sampling=Sampling(
                temperature=self._temperature,
                max_tokens=self._max_tokens,
                seed=derive_seed(self._seed, "skills", question.id),
                json_schema=self.schema if self._constrain else None,
            ),
            question_id=question.id,
        )


def read_skills(
    text: str,
    vocabulary: Mapping[str, str] | Sequence[str] | None = None,
    *,
    max_skills: int = 5,
    max_chars: int = 40,
) -> dict[str, float]:
    """Skills and their shares out of a model's reply, whatever surrounds the JSON.

    The last object with `skills` counts, else the last list that names a skill, else single entries, such as
    a cut answer leaves. A skill named twice keeps its larger importance; one without a readable
    importance has the least; others are moved into 1 to 3.

    Args:
        text: The reply.
        vocabulary: Closed list: case and blanks may differ, anything else is dropped. None: keywords, in
            lower case.
        max_skills: The most important are kept; equal ones in the order named.
        max_chars: Longer keywords are dropped.

    Returns:
        Skill to share, the most important first, summing to 1; empty if no skill can be read.
    """
    known = None if vocabulary is None else _known(vocabulary)

    def name(said: object) -> str | None:
        words = " ".join(said.split()) if isinstance(said, str) else ""
        if known is not None:
            return known.get(words) or known.get(words.casefold())
        keyword = words.lower().replace(".", "").strip(" *_`\"'")
        return keyword if 0 < len(keyword) <= max_chars and keyword.isprintable() else None

    found: dict[str, int] = {}
    for skill, importance in _entries(list(_values(strip_thinking(text)[-READ_CHARS:])), name):
        found[skill] = max(importance, found.get(skill, 0))
    best = sorted(found, key=lambda skill: -found[skill])[:max_skills]
    total = sum(found[skill] for skill in best)
    return {skill: found[skill] / total for skill in best}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """All of it required and nothing else allowed, as the strict mode of hosted models wants it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _known(vocabulary: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    names = list(vocabulary)
    alike = {" ".join(name.split()).casefold(): name for name in reversed(names)}
    return alike | {" ".join(name.split()): name for name in reversed(names)}


def _values(text: str) -> Iterator[object]:
    """Every JSON object or list in a text, from left to right; of broken ones, the parts that are whole."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at] not in "{[":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            return  # hundreds of brackets are no answer
        except ValueError:
            at += 1
        else:
            yield value


def _entries(
    values: Sequence[object], name: Callable[[object], str | None]
) -> list[tuple[str, int]]:
    lists = [value for value in values if isinstance(value, list)]
    objects = [cast("dict[str, object]", value) for value in values if isinstance(value, dict)]
    answers = [value["skills"] for value in objects if "skills" in value]
    if answers:
        return _read_list(answers[-1], name)
    for given in reversed(lists):
        if entries := _read_list(given, name):
            return entries
    return _read_list(objects, name)


def _read_list(given: object, name: Callable[[object], str | None]) -> list[tuple[str, int]]:
    if isinstance(given, dict):  # {"algebra": 3, "law": 1}
        pairs = list(cast("dict[object, object]", given).items())
    elif isinstance(given, list):
        pairs = [_read_entry(entry) for entry in cast("list[object]", given)]
    else:
        pairs = []
    named = ((name(skill), importance) for skill, importance in pairs)
    return [(skill, _read_importance(value)) for skill, value in named if skill is not None]


def _read_entry(entry: object) -> tuple[object, object]:
    if isinstance(entry, dict):
        row = cast("dict[object, object]", entry)
        return row.get("skill", row.get("name")), row.get("importance")
    return entry, None


def _read_importance(value: object) -> int:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return LEAST
    return LEAST if math.isnan(number) else round(min(max(number, LEAST), MOST))
