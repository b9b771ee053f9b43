"""What does this question need? A closed vocabulary by embedding, or keywords from a model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from ..retrieval import InputError, Question, embedding_text, encode_texts
from .engines import Reply, Request, Sampling
from .prompt import fill_prompt
from .reason import derive_seed

__all__ = [
    "EmbeddingSkills",
    "KeywordSkills",
    "SkillExtractor",
    "keep_repeated",
    "map_to_vocabulary",
    "parse_keywords",
]

Vectors = npt.NDArray[np.float32]
Ask = Callable[[Sequence[Request]], Awaitable[list[Reply]]]


class SkillExtractor(Protocol):
    """Whatever can tell which skills a question needs."""

    async def extract(self, questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
        """Skills by question id, the most needed first; an empty tuple where none can be told."""
        ...


class EmbeddingSkills:
    """Skills of a closed vocabulary whose description resembles the question. Asks no model.

    A question gets the skill with the largest cosine similarity, and up to `top_m` in all that come
    within `margin` of it; nothing below `floor`. Equal similarities keep the vocabulary's order.

    Args:
        encoder: Any LangChain embeddings.
        vocabulary: Skill to one-line description.
        top_m: Most skills of one question.
        floor: Least cosine similarity.
        margin: How far behind the best skill another one may lie.

    Raises:
        InputError: the vocabulary is empty.
    """

    def __init__(
        self,
        encoder: Embeddings,
        vocabulary: Mapping[str, str],
        *,
        top_m: int = 2,
        floor: float = 0.05,
        margin: float = 0.05,
    ) -> None:
        if not vocabulary:
            raise InputError("the skill vocabulary is empty; name skills with a description each")
        self._encoder = encoder
        self._vocabulary = dict(vocabulary)
        self._top_m = top_m
        self._floor = floor
        self._margin = margin
        self._references: list[Question] = []
        self._skills_SD: Vectors | None = None

    def fit(self, questions: Sequence[Question]) -> None:
        """Sharpen the descriptions by labelled questions: a skill becomes the mean of both."""
        self._references = [q for q in questions if any(s in self._vocabulary for s in q.skills)]
        self._skills_SD = None

    async def extract(self, questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
        """Skills by question id. See the class."""
        return await asyncio.to_thread(self._extract, questions) if questions else {}

    def _extract(self, questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
        skills_SD = self._embed_skills()
        questions_QD = encode_texts(self._encoder, [embedding_text(q) for q in questions])
        # Rounded: the same product comes out a little different in another batch.
        similarities_QS = np.round(questions_QD @ skills_SD.T, 6)
        return {
            question.id: self._choose(row_S)
            for question, row_S in zip(questions, similarities_QS, strict=True)
        }

    def _choose(self, row_S: npt.NDArray[np.float32]) -> tuple[str, ...]:
        names = list(self._vocabulary)
        order = np.argsort(-row_S, kind="stable")[: self._top_m]
        least = max(self._floor, float(row_S[order[0]]) - self._margin)
        return tuple(names[at] for at in order if float(row_S[at]) >= least)

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


class KeywordSkills:
    """The paper's annotation: a model names keywords several times, and what repeats is kept.

    Source: symbolic-moe.md §1.3 (arXiv 2503.05641). The prompt is ours.

    Args:
        ask: Asks the annotating model, for instance `Pool.generate` with its alias bound.
        samples: Answers per question.
        temperature: Of the samples.
        keep_count: How often a keyword has to come to be kept.
        max_chars: Longer keywords are dropped.
        max_tokens: Upper bound on an answer.
        seed: Of the samples.
        reference: Read and keep keywords exactly as the published code does, with its mistakes.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        samples: int = 5,
        temperature: float = 0.7,
        keep_count: int = 2,
        max_chars: int = 20,
        max_tokens: int = 64,
        seed: int = 0,
        reference: bool = False,
    ) -> None:
        self._reference = reference
        self._ask = ask
        self.samples = samples
        self._temperature = temperature
        self._keep_count = keep_count
        self._max_chars = max_chars
        self._max_tokens = max_tokens
        self._seed = seed

    async def extract(self, questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
        """Skills by question id; a failed sample counts as one that names nothing.

        Raises:
            InputError: every sample failed, so that nothing can be told about any question.
        """
        requests = [self._request(q, s) for q in questions for s in range(self.samples)]
        replies = await self._ask(requests)
        named: dict[str, list[list[str]]] = {question.id: [] for question in questions}
        for request, reply in zip(requests, replies, strict=True):
            if reply.failure is None:
                keywords = parse_keywords(reply.text, reference=self._reference)
                named[request.question_id or ""].append(keywords)
        if replies and all(reply.failure is not None for reply in replies):
            why = next(reply.failure.message for reply in replies if reply.failure is not None)
            raise InputError(f"no skills can be told, every request for keywords failed: {why}")
        return {qid: self._keep(lists) for qid, lists in named.items()}

    def _keep(self, lists: list[list[str]]) -> tuple[str, ...]:
        return tuple(
            keep_repeated(
                lists,
                count=self._keep_count,
                max_chars=self._max_chars,
                reference=self._reference,
            )
        )

    def _request(self, question: Question, sample: int) -> Request:
        options = "\n".join(question.options)
        content = fill_prompt("keywords", question=f"{question.text}\n{options}".strip())
        return Request(
            id=f"{question.id}#{sample}",
            messages=({"role": "user", "content": content},),
            sampling=Sampling(
                temperature=self._temperature,
                max_tokens=self._max_tokens,
                seed=derive_seed(self._seed, "keywords", question.id, sample),
            ),
            question_id=question.id,
        )


def parse_keywords(text: str, *, reference: bool = False) -> list[str]:
    """Keywords of one answer: what follows the last `Keywords:`, split at commas, in lower case.

    Args:
        text: The model's answer.
        reference: Do exactly what the published code does: match case, keep newlines and empty
            keywords (symbolic-moe.md §5.3). Otherwise only the first line counts, in any case.
    """
    if reference:
        return [_tidy(part) for part in text.rpartition("Keywords:")[2].split(",")]
    at = text.lower().rfind("keywords:")
    rest = text[at + len("keywords:") :] if at >= 0 else text
    lines = rest.strip().splitlines()
    parts = (_tidy(part) for part in (lines[0] if lines else "").split(","))
    return list(dict.fromkeys(part for part in parts if part))


def keep_repeated(
    lists: Sequence[Sequence[str]],
    *,
    count: int = 2,
    max_chars: int = 20,
    reference: bool = False,
) -> list[str]:
    """Keywords that at least `count` answers name and that are not too long, in the order first seen.

    Args:
        lists: The keywords of each answer.
        count: How many answers have to name a keyword.
        max_chars: Longer keywords are dropped.
        reference: Do what the published code does: a keyword repeated inside one answer counts
            twice, and the empty keyword counts as one.
    """
    if not reference:
        lists = [[word for word in dict.fromkeys(words) if word.strip()] for words in lists]
    joined = [keyword for keywords in lists for keyword in keywords if len(keyword) <= max_chars]
    return [keyword for keyword, times in Counter(joined).items() if times >= count]


def map_to_vocabulary(
    keywords: Sequence[str],
    vocabulary: Sequence[str],
    encoder: Embeddings,
    *,
    floor: float | None = 0.5,
) -> tuple[str, ...]:
    """Open keywords as skills of a closed vocabulary: the same word, else the most similar skill.

    Args:
        keywords: As an extractor gave them.
        vocabulary: Known skills; equal similarities go to the earlier one.
        encoder: Any LangChain embeddings.
        floor: Keywords whose nearest skill has a smaller cosine are dropped. None does what the
            published code does: no floor, and two keywords of one skill count twice.
    """
    if not keywords or not vocabulary:
        return ()
    known = list(vocabulary)
    similarities_KS = encode_texts(encoder, list(keywords)) @ encode_texts(encoder, known).T
    mapped: list[str] = []
    for keyword, row_S in zip(keywords, similarities_KS, strict=True):
        nearest = int(np.argmax(row_S))
        if floor is not None and keyword in known:
            mapped.append(keyword)
        elif floor is None or float(row_S[nearest]) >= floor:
            mapped.append(known[nearest])
    return tuple(mapped if floor is None else dict.fromkeys(mapped))


def _tidy(keyword: str) -> str:
    return keyword.strip().lower().replace(".", "")
