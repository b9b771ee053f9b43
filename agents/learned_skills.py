"""A vocabulary of skills learnt from question texts alone: clusters, named by their distinctive words."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from ..retrieval import InputError, Question, encode_texts
from .skills import keep_distinct, weigh_nearest

__all__ = ["LearnedSkills", "count_skills"]

TEMPERATURE = 0.2
"""Of the shares at 12 skills; finer vocabularies get a smaller one, by the square root. With the number
of skills and the five nearest chosen by cross-validation on the MMLU-Pro profile questions."""
TOP_M = 5
RESTARTS, ROUNDS = 3, 30
_WORD = re.compile(r"[a-z][a-z'-]{2,}")
_COMMON = frozenset(
    _WORD.findall(
        "the and for are was were with that this from which what when where who whom whose how why has have had "
        "not but can will would should could may might must into onto over under than then them they their there "
        "these those its his her him she you your our one two three four five six seven eight nine ten each any all "
        "some most more less many much such only also between about after before during while because been being "
        "does did doing following given find using used use shall let per same other another both either neither "
        "statement statements correct answer question true false"
    )
)

Vectors = npt.NDArray[np.float64]


def count_skills(questions: int) -> int:
    """How many skills so many questions can tell apart: 0.65 times the square root, at least one."""
    return max(1, round(0.65 * math.sqrt(questions)))


class LearnedSkills:
    """Skills of a question: the nearest cluster centres, by softmax shares. Asks no model.

    Make it with `learn`. Only the texts of questions are used, never their answers or given skills.

    Args:
        encoder: Any LangChain embeddings; the one that the centres were learnt with.
        centroids_SD: Unit vectors, around `mean_D`.
        names: One per centre.
        mean_D: Mean vector of the questions learnt from.
        temperature: Of the softmax over cosines.
        top_m: Skills of a question.

    Raises:
        InputError: names, centres and mean do not fit together, a name comes twice, or a number is not
            finite or cannot be used.
    """

    calls_per_question = 0

    def __init__(
        self,
        encoder: Embeddings,
        centroids_SD: npt.NDArray[np.floating],
        names: Sequence[str],
        mean_D: npt.NDArray[np.floating],
        *,
        temperature: float = TEMPERATURE,
        top_m: int = TOP_M,
    ) -> None:
        self._encoder = encoder
        self._centroids_SD = np.asarray(centroids_SD, np.float64)
        self._mean_D = np.asarray(mean_D, np.float64)
        self.names = tuple(names)
        if len(names) != len(centroids_SD) or not len(names):
            raise InputError(f"{len(names)} names for {len(centroids_SD)} centres of skills")
        if len(set(self.names)) < len(self.names):
            raise InputError("two learnt skills have the same name; names must differ")
        if self._centroids_SD.shape[1:] != self._mean_D.shape or self._mean_D.ndim != 1:
            raise InputError(
                f"centres of the shape {self._centroids_SD.shape} do not fit a mean of the shape "
                f"{self._mean_D.shape}"
            )
        if not (np.isfinite(self._centroids_SD).all() and np.isfinite(self._mean_D).all()):
            raise InputError("centres or mean of learnt skills are not finite; learn them again")
        weigh_nearest(np.zeros((0, 0)), (), top_m=top_m, temperature=temperature)
        self._temperature = temperature
        self._top_m = top_m

    @classmethod
    def learn(
        cls,
        encoder: Embeddings,
        questions: Sequence[Question],
        *,
        skills: int | None = None,
        seed: int = 0,
    ) -> LearnedSkills:
        """Cluster the questions' texts by spherical k-means; their order does not matter.

        Args:
            encoder: Any LangChain embeddings.
            questions: To learn from.
            skills: How many, if there are so many different texts; default: `count_skills`.
            seed: Of the starts.

        Raises:
            InputError: there are no questions, an id stands for two, no skills are wanted, or the
                encoder gives vectors that are not finite.
        """
        if not questions:
            raise InputError("there are no questions to learn skills from")
        if seed < 0 or (skills is not None and skills < 1):
            raise InputError(
                f"skills is {skills} and the seed {seed}; give at least 1 skill and a seed of 0 or more"
            )
        ordered = sorted(keep_distinct(questions), key=lambda question: question.id)
        texts = [question.text for question in ordered]
        vectors_ND = _encode(encoder, texts)
        mean_D = vectors_ND.mean(0)
        around_ND = _scale(vectors_ND - mean_D)
        wanted = min(skills or count_skills(len(ordered)), len(set(texts)))
        centroids_SD, nearest_N = _cluster(around_ND, wanted, seed)
        names = _name_clusters(texts, nearest_N, len(centroids_SD))
        temperature = TEMPERATURE * min(1.0, math.sqrt(12 / wanted))
        return cls(encoder, centroids_SD, names, mean_D, temperature=temperature)

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        """Skills by question id with shares that sum to 1, the nearest first.

        Raises:
            InputError: an id stands for two questions, or the encoder gives other vectors than when
                the skills were learnt.
        """
        distinct = keep_distinct(questions)
        if not distinct:
            return {}
        texts = [question.text for question in distinct]
        vectors_QD = await asyncio.to_thread(_encode, self._encoder, texts)
        rows = self.weigh(vectors_QD)
        return {question.id: row for question, row in zip(distinct, rows, strict=True)}

    def weigh(self, vectors_QD: npt.NDArray[np.floating]) -> list[dict[str, float]]:
        """As `extract`, for texts that are vectors already."""
        if vectors_QD.shape[1:] != self._mean_D.shape:
            raise InputError(
                f"the encoder gives vectors of {vectors_QD.shape[-1]} numbers, but the skills were "
                f"learnt with {len(self._mean_D)}; give the encoder they were learnt with"
            )
        cosines_QS = _scale(np.asarray(vectors_QD, np.float64) - self._mean_D) @ (
            self._centroids_SD.T
        )
        return weigh_nearest(
            cosines_QS, self.names, top_m=self._top_m, temperature=self._temperature
        )

    def centroid_similarity(self) -> Vectors:
        """Cosines between the skills, [S, S] in the order of `names`: which of them are neighbours."""
        return np.clip(self._centroids_SD @ self._centroids_SD.T, -1.0, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` makes the same extractor of them."""
        return {
            "names": list(self.names),
            "centroids": self._centroids_SD.tolist(),
            "mean": self._mean_D.tolist(),
            "temperature": self._temperature,
            "top_m": self._top_m,
        }

    @classmethod
    def from_json(cls, encoder: Embeddings, content: Mapping[str, Any]) -> LearnedSkills:
        """Read what `to_json` made.

        Raises:
            InputError: it is something else.
        """
        try:
            return cls(
                encoder,
                np.array(content["centroids"], np.float64),
                [str(name) for name in content["names"]],
                np.array(content["mean"], np.float64),
                temperature=float(content["temperature"]),
                top_m=int(content["top_m"]),
            )
        except (KeyError, TypeError, ValueError):
            raise InputError("these are no learnt skills; learn them again") from None


def _cluster(around_ND: Vectors, wanted: int, seed: int) -> tuple[Vectors, npt.NDArray[np.intp]]:
    """The best of several starts: centres [S, D] and the nearest centre of each row."""
    best, found = -math.inf, around_ND[:1]
    for start in range(RESTARTS):
        chance = np.random.default_rng([seed, start])
        centroids_SD = _spread(around_ND, wanted, chance)
        for _ in range(ROUNDS):
            nearest_N = (around_ND @ centroids_SD.T).argmax(1)
            sums_SD = np.zeros_like(centroids_SD)
            np.add.at(sums_SD, nearest_N, around_ND)
            empty_S1 = (np.abs(sums_SD).sum(1) == 0)[:, None]
            moved_SD = _scale(np.where(empty_S1, centroids_SD, sums_SD))
            if np.array_equal(moved_SD, centroids_SD):
                break
            centroids_SD = moved_SD
        value = float((around_ND @ centroids_SD.T).max(1).sum())
        if value > best + 1e-9:
            best, found = value, centroids_SD
    return found, (around_ND @ found.T).argmax(1)


def _spread(around_ND: Vectors, wanted: int, chance: np.random.Generator) -> Vectors:
    """Starting centres far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    rows = [int(chance.integers(len(around_ND)))]
    while len(rows) < wanted:
        far_N = np.maximum(1 - (around_ND @ around_ND[rows].T).max(1), 1e-9)
        rows.append(int(chance.choice(len(around_ND), p=far_N / far_N.sum())))
    return around_ND[rows].copy()


def _name_clusters(
    texts: Sequence[str], nearest_N: npt.NDArray[np.intp], clusters: int
) -> list[str]:
    """The two or three words of each cluster that most set it apart (smoothed log-odds), all different."""
    words = [set(_WORD.findall(text.lower())) - _COMMON for text in texts]
    everywhere = Counter(word for found in words for word in found)
    names: list[str] = []
    for cluster in range(clusters):
        inside = [found for found, at in zip(words, nearest_N, strict=True) if at == cluster]
        here = Counter(word for found in inside for word in found)
        size, rest = len(inside), len(texts) - len(inside)

        def score(
            word: str, here: Counter[str] = here, size: int = size, rest: int = rest
        ) -> float:
            there = everywhere[word] - here[word]
            odds = math.log((here[word] + 0.5) / (size + 1)) - math.log((there + 0.5) / (rest + 1))
            return odds * here[word]

        ranked = sorted(here, key=lambda word: (-score(word), word))
        name = " · ".join(ranked[:3]) or f"skill {cluster + 1}"
        names.append(name if name not in names else f"{name} ({cluster + 1})")
    return names


def _encode(encoder: Embeddings, texts: Sequence[str]) -> Vectors:
    vectors_ND = np.asarray(encode_texts(encoder, list(texts)), np.float64)
    if not np.isfinite(vectors_ND).all():
        raise InputError("the encoder gave vectors that are not finite numbers; use another one")
    return vectors_ND


def _scale(vectors_ND: Vectors) -> Vectors:
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return cast("Vectors", vectors_ND / np.maximum(length_N1, 1e-12))
