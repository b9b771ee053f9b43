"""What does this question need? A closed vocabulary of skills, told by embedding."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from ..retrieval import InputError, Question, embedding_text, encode_texts

__all__ = ["EmbeddingSkills", "SkillExtractor", "keep_distinct", "round_shares", "weigh_nearest"]

MILLION = 1_000_000  # shares have six digits

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


class SkillExtractor(Protocol):
    """Whatever can tell which skills a question needs."""

    @property
    def calls_per_question(self) -> int:
        """How often a model is asked to tell the skills of one question; 0 if none is."""
        ...

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        """Skills by question id, each with its share, the most needed first.

        Shares lie in (0, 1] and sum to at most 1; what is missing to 1 is unknown. A question about
        which nothing can be told has no skills.
        """
        ...


class EmbeddingSkills:
    """Skills of a closed vocabulary whose description resembles the question. Asks no model.

    A question gets the skill with the largest cosine similarity, and up to `top_m` in all that come
    within `margin` of it; nothing below `floor`. Equal similarities keep the vocabulary's order. Shares
    are the softmax of similarity / `temperature` over the skills it gets: see `weigh_nearest`.

    Args:
        encoder: Any LangChain embeddings.
        vocabulary: Skill to one-line description.
        top_m: Most skills of one question.
        floor: Least cosine similarity.
        margin: How far behind the best skill another one may lie.
        temperature: The smaller, the more the best skill gets.

    Raises:
        InputError: the vocabulary is empty, or a number cannot be used.
    """

    calls_per_question = 0

    def __init__(
        self,
        encoder: Embeddings,
        vocabulary: Mapping[str, str],
        *,
        top_m: int = 2,
        floor: float = 0.05,
        margin: float = 0.05,
        temperature: float = 0.1,
    ) -> None:
        if not vocabulary:
            raise InputError("the skill vocabulary is empty; name skills with a description each")
        _check(top_m, temperature)
        self._encoder = encoder
        self._vocabulary = dict(vocabulary)
        self._top_m = top_m
        self._floor = floor
        self._margin = margin
        self._temperature = temperature
        self._references: list[Question] = []
        self._skills_SD: Vectors | None = None

    def fit(self, questions: Sequence[Question]) -> None:
        """Sharpen the descriptions by labelled questions: a skill becomes the mean of both."""
        self._references = [q for q in questions if any(s in self._vocabulary for s in q.skills)]
        self._skills_SD = None

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        """Skills by question id. See the class.

        Raises:
            InputError: an id stands for two questions, or the encoder gave something else than vectors.
        """
        return await asyncio.to_thread(self._extract, questions) if questions else {}

    def _extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        distinct = keep_distinct(questions)
        skills_SD = self._embed_skills()
        questions_QD = encode_texts(self._encoder, [embedding_text(q) for q in distinct])
        shares = weigh_nearest(
            questions_QD @ skills_SD.T,
            list(self._vocabulary),
            top_m=self._top_m,
            temperature=self._temperature,
            floor=self._floor,
            margin=self._margin,
        )
        return {question.id: given for question, given in zip(distinct, shares, strict=True)}

    def _embed_skills(self) -> Vectors:
        if self._skills_SD is None:
            texts = [f"{skill}: {told}" for skill, told in self._vocabulary.items()]
            described_SD = encode_texts(self._encoder, texts)
            self._skills_SD = self._join_references(described_SD)
        return self._skills_SD

    def _join_references(self, described_SD: Vectors) -> Vectors:
        if not self._references:
            return described_SD
        seen_RD = encode_texts(self._encoder, [embedding_text(q) for q in self._references])
        rows: list[Vectors] = []
        for skill, described_D in zip(self._vocabulary, described_SD, strict=True):
            mine = [at for at, q in enumerate(self._references) if skill in q.skills]
            mean_D = seen_RD[mine].mean(0) if mine else described_D
            joined_D = mean_D / max(float(np.linalg.norm(mean_D)), 1e-12) + described_D
            rows.append(joined_D / max(float(np.linalg.norm(joined_D)), 1e-12))
        return np.stack(rows)


def weigh_nearest(
    similarities_NS: npt.NDArray[np.floating[Any]],
    names: Sequence[str],
    *,
    top_m: int,
    temperature: float,
    floor: float = -np.inf,
    margin: float = np.inf,
) -> list[dict[str, float]]:
    """Softmax of similarity / temperature over the skills nearest to each of N things.

    Args:
        similarities_NS: Cosines. They are rounded to six digits first, since the same product comes out
            a little different in another batch; equal ones keep the order of the names.
        names: The skills, S of them.
        top_m: Most skills of one thing.
        temperature: The smaller, the more the nearest skill gets.
        floor: Skills of a smaller cosine are left out.
        margin: Skills that lie further behind the nearest one are left out.

    Returns:
        Skill to share for each thing, the nearest skill first; shares have six digits and sum to 1.
        Nothing where no skill passes.

    Raises:
        InputError: `top_m` is below 1, or the temperature is not above 0.
    """
    _check(top_m, temperature)
    if not similarities_NS.size:
        return [{} for _ in similarities_NS]
    cosines_NS = np.round(similarities_NS, 6).astype(np.float64)
    order_NM = np.argsort(-cosines_NS, axis=1, kind="stable")[:, :top_m]
    cosines_NM = np.take_along_axis(cosines_NS, order_NM, axis=1)
    best_N1 = cosines_NM[:, :1]
    passes_NM = (cosines_NM >= floor) & (cosines_NM >= best_N1 - margin)
    shares_NM = np.where(passes_NM, np.exp((cosines_NM - best_N1) / temperature), 0.0)
    sums_N1 = shares_NM.sum(axis=1, keepdims=True)
    known_N1 = sums_N1 > 0
    millionths_NM = _share_out(np.where(known_N1, shares_NM / np.where(known_N1, sums_N1, 1), 0))
    places: list[list[int]] = order_NM.tolist()
    millionths: list[list[int]] = millionths_NM.tolist()
    return [
        {names[s]: parts / MILLION for s, parts in zip(near, row, strict=True) if parts}
        for near, row in zip(places, millionths, strict=True)
    ]


def round_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares with six digits that sum to what they summed to before, the largest first.

    Equal shares keep their order; what rounds to nothing is left out.
    """
    ordered = sorted(shares, key=shares.__getitem__, reverse=True)  # a stable sort
    millionths_1M = _share_out(np.array([[shares[name] for name in ordered]], dtype=np.float64))
    parts_M: list[int] = millionths_1M[0].tolist()
    return {name: parts / MILLION for name, parts in zip(ordered, parts_M, strict=True) if parts}


def keep_distinct(questions: Iterable[Question]) -> list[Question]:
    """Each question once, in the order given.

    Raises:
        InputError: two questions that ask something else have the same id.
    """
    seen: dict[str, Question] = {}
    for question in questions:
        earlier = seen.setdefault(question.id, question)
        if (earlier.text, earlier.options) != (question.text, question.options):
            raise InputError(
                f'the id "{question.id}" stands for two different questions; ids must differ'
            )
    return list(seen.values())


def _share_out(shares_NM: Floats) -> Places:
    """Whole millionths by largest remainder: a row keeps its sum, and its order."""
    exact_NM = shares_NM * MILLION
    parts_NM = np.floor(exact_NM)
    left_N1 = np.rint(exact_NM.sum(axis=1, keepdims=True)) - parts_NM.sum(axis=1, keepdims=True)
    by_rest_NM = np.argsort(parts_NM - exact_NM, axis=1, kind="stable")
    rank_NM = np.argsort(by_rest_NM, axis=1, kind="stable")
    return (parts_NM + (rank_NM < left_N1)).astype(np.intp)


def _check(top_m: int, temperature: float) -> None:
    if top_m < 1:
        raise InputError(f"top_m is {top_m}; a question needs room for at least 1 skill")
    if not temperature > 0:
        raise InputError(f"the temperature is {temperature}; give a number above 0")
