"""Open keywords as a closed vocabulary: spellings merged, and other keywords mapped to what is known."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from ..retrieval import InputError, Question, encode_texts
from .outcomes import SkillWeights
from .skills import SkillExtractor, round_shares, weigh_nearest
from .spellings import Spelling, differ_in_meaning, show_word, spell

__all__ = ["MappedSkills", "SkillMap", "Vocabulary", "clean_vocabulary"]

BLOCK = 512
"""Names compared with all others at once, so that memory stays linear."""


@dataclass(frozen=True)
class Vocabulary:
    """Skills, each with the words that it stands for. `clean_vocabulary` makes one."""

    groups: Mapping[str, Mapping[str, int]]
    """Name of a skill to its original words with how often each came; the name is one of them."""

    @property
    def names(self) -> tuple[str, ...]:
        """The skills, in the order of the groups."""
        return tuple(self.groups)

    def original(self, name: str) -> dict[str, int]:
        """The words that were merged into a skill, with how often each came.

        Raises:
            InputError: there is no such skill.
        """
        if name not in self.groups:
            raise InputError(f'no skill "{name}" in the vocabulary of {len(self.groups)} skills')
        return dict(self.groups[name])

    def name_of(self, word: str) -> str | None:
        """The skill that a word, or another spelling of it, was merged into; None if it is unknown."""
        return self._by_word.get(show_word(word)) or self._by_key.get(spell(word))

    def describe(self) -> str:
        """What was merged, as plain text: a line for each skill that stands for several words."""
        words = sum(map(len, self.groups.values()))
        merged = {name: found for name, found in self.groups.items() if len(found) > 1}
        lines = [f"{words} words, {len(self.groups)} skills; {len(merged)} stand for several words"]
        for name, found in merged.items():
            lines.append(f"{name}: " + ", ".join(f"{word} ({n})" for word, n in found.items()))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as the plain JSON object that `from_json` reads."""
        return {"groups": {name: dict(found) for name, found in self.groups.items()}}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Vocabulary:
        """Read what `to_json` gave.

        Raises:
            InputError: it is no vocabulary, or a word belongs to two skills.
        """
        given: object = row.get("groups")
        if not isinstance(given, dict):
            raise InputError('a vocabulary is a JSON object with "groups": skill to its words')
        groups: dict[str, dict[str, int]] = {}
        seen: set[str] = set()
        for name, found in cast("dict[object, object]", given).items():
            counts = cast("dict[object, object]", found) if isinstance(found, dict) else {}
            words = {w: n for w, n in counts.items() if isinstance(w, str) and type(n) is int}
            if not isinstance(name, str) or name not in words or len(words) < len(counts):
                raise InputError(f"the skill {name!r} needs words with counts, itself among them")
            if min(words.values()) < 1 or seen & set(words):
                raise InputError(f"a word of the skill {name!r} counts below 1 or came before")
            seen |= set(words)
            groups[name] = words
        return cls(groups)

    @cached_property
    def _by_word(self) -> dict[str, str]:
        return {word: name for name, found in self.groups.items() for word in found}

    @cached_property
    def _by_key(self) -> dict[Spelling, str]:
        # Reversed: of several skills of one spelling, the first is meant.
        pairs = [(word, name) for name, found in self.groups.items() for word in found]
        return {spell(word): name for word, name in reversed(pairs)}


def clean_vocabulary(
    words: Iterable[str] | Mapping[str, int],
    encoder: Embeddings | None = None,
    *,
    similarity: float = 0.9,
) -> Vocabulary:
    """Merge the spellings of a skill (case, plural, hyphens, punctuation) and its near duplicates.

    A skill is called by its most frequent spelling, ties by the alphabet, and more frequent skills come
    first. A near duplicate joins the most similar skill that is more frequent; never one that it
    differs from in a number, a lone letter or a sign, or by a negation (`linear`, `nonlinear`). Nothing
    depends on the order of the words. Words without a letter, digit or sign are left out.

    Args:
        words: As they came, repetitions and all; or each with its count.
        encoder: Finds near duplicates; without one only spellings are merged.
        similarity: Least cosine of near duplicates.

    Raises:
        InputError: there are no words, or the encoder gave something else than vectors.
    """
    counts: Counter[str] = Counter()
    for word, times in words.items() if isinstance(words, Mapping) else Counter(words).items():
        if times > 0 and spell(word)[0]:
            counts[show_word(word)] += times
    if not counts:
        raise InputError("the vocabulary is empty; give words with at least one letter")
    spellings: dict[Spelling, list[str]] = {}
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        spellings.setdefault(spell(word), []).append(word)
    merged = list(spellings.values())
    if encoder is not None:
        merged = _merge_near([(found[0], found) for found in merged], encoder, similarity)
    return Vocabulary(
        {
            found[0]: {w: counts[w] for w in sorted(found, key=lambda w: (-counts[w], w))}
            for found in merged
        }
    )


class SkillMap:
    """Maps open keywords to known skills, so that a question can be compared with a profile.

    A keyword that is a skill, in whatever spelling, is that skill. Any other goes to the nearest
    skills, at most `top_m` and none below `floor`, in shares by softmax of cosine / `temperature`. The
    weight of a keyword without a near skill is lost: the sum falls below 1, and the rest of a
    question's estimate comes from the experts' global strength.

    Args:
        vocabulary: The known skills; a name given twice counts once.
        encoder: Any LangChain embeddings; they embed the skills once, when first needed.
        floor: Least cosine.
        top_m: Most skills of one keyword.
        temperature: The smaller, the more the nearest skill gets.
        reference: Do what the published code does: all to the nearest skill, with no floor.

    Raises:
        InputError: the vocabulary is empty, or a number cannot be used.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | Sequence[str],
        encoder: Embeddings,
        *,
        floor: float = 0.5,
        top_m: int = 3,
        temperature: float = 0.1,
        reference: bool = False,
    ) -> None:
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary({name: {name: 1} for name in vocabulary})
        if not vocabulary.groups:
            raise InputError(
                "the vocabulary is empty, so no keyword can be mapped; name its skills"
            )
        weigh_nearest(np.zeros((0, 0)), (), top_m=top_m, temperature=temperature)
        self.vocabulary = vocabulary
        self._encoder = encoder
        self._floor = -np.inf if reference else floor
        self._top_m = 1 if reference else top_m
        self._temperature = temperature
        self._reference = reference

    def map(self, keywords: SkillWeights) -> dict[str, float]:
        """The skills that one question's keywords stand for, with their shares of it."""
        return self.map_many([keywords])[0]

    def map_many(self, many: Sequence[SkillWeights]) -> list[dict[str, float]]:
        """The skills of many questions; each different keyword is embedded once.

        Shares have six digits, the largest first. Two keywords of one skill add up.

        Raises:
            InputError: the encoder gave something else than vectors.
        """
        related = self.relate(keyword for keywords in many for keyword in keywords)
        return [_add_up(keywords, related) for keywords in many]

    def relate(self, keywords: Iterable[str]) -> dict[str, dict[str, float]]:
        """Each different keyword with the skills it stands for and their shares; none if it is dropped."""
        distinct = list(dict.fromkeys(keywords))
        known = (
            {} if self._reference else {word: self.vocabulary.name_of(word) for word in distinct}
        )
        found = {word: {name: 1.0} for word, name in known.items() if name is not None}
        others = [word for word in distinct if word not in found]
        if others:
            shares = weigh_nearest(
                encode_texts(self._encoder, others) @ self._names_SD.T,
                self.vocabulary.names,
                top_m=self._top_m,
                temperature=self._temperature,
                floor=self._floor,
            )
            found |= dict(zip(others, shares, strict=True))
        return {word: found[word] for word in distinct}

    def map_reference(self, keywords: Sequence[str]) -> tuple[str, ...]:
        """Each keyword's nearest skill, however far; two keywords of one skill give it twice.

        This is what the published code does (symbolic-moe.md §1.5); equal cosines go to the earlier skill.
        """
        if not keywords:
            return ()
        alike_KS = np.round(encode_texts(self._encoder, list(keywords)) @ self._names_SD.T, 6)
        return tuple(self.vocabulary.names[at] for at in alike_KS.argmax(axis=1))

    @cached_property
    def _names_SD(self) -> npt.NDArray[np.float32]:
        return encode_texts(self._encoder, self.vocabulary.names)


class MappedSkills:
    """Another extractor's open keywords as the skills of a profile. What is dropped is counted.

    Args:
        extractor: Names keywords.
        skill_map: Maps them.
    """

    def __init__(self, extractor: SkillExtractor, skill_map: SkillMap) -> None:
        self._extractor = extractor
        self._map = skill_map
        self.named = 0
        """Keywords so far, each once per question; `dropped.total() / named` is the drift."""
        self.dropped: Counter[str] = Counter()
        """Keywords without a near skill, and in how many questions each came."""

    @property
    def calls_per_question(self) -> int:
        """As the extractor's."""
        return self._extractor.calls_per_question

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        """Skills by question id; what the extractor and the map raise."""
        told = await self._extractor.extract(questions)
        words = [word for keywords in told.values() for word in keywords]
        related = await asyncio.to_thread(self._map.relate, words)
        self.named += len(words)
        self.dropped.update(word for word in words if not related[word])
        return {qid: _add_up(keywords, related) for qid, keywords in told.items()}


def _add_up(keywords: SkillWeights, related: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for keyword, weight in keywords.items():
        for skill, share in related[keyword].items():
            sums[skill] = sums.get(skill, 0.0) + weight * share
    return round_shares(sums)


def _merge_near(
    spelled: Sequence[tuple[str, list[str]]], encoder: Embeddings, similarity: float
) -> list[list[str]]:
    """Let each name, the most frequent first, join the most similar one that already stands alone.

    So every member resembles the name of its skill: there are no chains from one to the next.
    """
    vectors_VD = encode_texts(encoder, [name for name, _ in spelled])
    members: dict[int, list[int]] = {}
    for start in range(0, len(spelled), BLOCK):
        alike_BV = np.round(vectors_VD[start : start + BLOCK] @ vectors_VD.T, 6)
        for row, alike_V in enumerate(alike_BV, start):
            near = np.flatnonzero(alike_V[:row] >= similarity)
            ranked = near[np.argsort(-alike_V[near], kind="stable")]
            joined = next(
                (at for at in ranked.tolist() if _fits(row, members.get(at), spelled)), row
            )
            members.setdefault(joined, []).append(row)
    return [[word for at in places for word in spelled[at][1]] for places in members.values()]


def _fits(row: int, group: list[int] | None, spelled: Sequence[tuple[str, list[str]]]) -> bool:
    return bool(group) and not any(
        differ_in_meaning(spelled[row][0], spelled[at][0]) for at in group or ()
    )
