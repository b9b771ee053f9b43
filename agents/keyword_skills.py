"""Skills as the paper annotates them: a model names keywords several times, and what repeats is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from ..retrieval import InputError, Question
from .answers import strip_thinking
from .engines import Reply, Request, Sampling
from .prompt import fill_prompt
from .reason import derive_seed
from .skills import keep_distinct

__all__ = ["Ask", "KeywordSkills", "keep_repeated", "parse_keywords"]

Ask = Callable[[Sequence[Request]], Awaitable[list[Reply]]]
"""Asks the annotating model: requests to replies in their order, as `Pool.generate` with its alias bound."""

DECORATION = " \t*_`\"'"


class KeywordSkills:
    """The paper's annotation: keywords that at least `keep_count` of `samples` answers name.

    The n keywords that are kept share a question evenly, 1/n each, in the order first seen. Keywords are
    open: a `SkillMap` maps them to the skills of a profile.

    Source: symbolic-moe.md §1.3 (arXiv 2503.05641). The prompt is ours, and so is `max_tokens` (the
    published code allows 4096).

    Args:
        ask: Asks the annotating model, for instance `Pool.generate` with its alias bound.
        samples: Answers per question.
        temperature: Of the samples.
        top_p: Of the samples.
        keep_count: How often a keyword has to come to be kept.
        max_chars: Longer keywords are dropped.
        max_tokens: Upper bound on an answer.
        seed: Of the samples.
        reference: Read and keep keywords exactly as the published code does, with its mistakes.

    Raises:
        InputError: there are no samples, or fewer than have to name a keyword.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        samples: int = 5,
        temperature: float = 0.7,
        top_p: float = 1.0,
        keep_count: int = 2,
        max_chars: int = 20,
        max_tokens: int = 64,
        seed: int = 0,
        reference: bool = False,
    ) -> None:
        # In the published way one answer may name a keyword twice, so that one sample can be enough.
        if samples < 1 or keep_count < 1 or (keep_count > samples and not reference):
            raise InputError(
                f"{samples} samples of which {keep_count} must name a keyword keep nothing; "
                "ask for at least 1 sample, and keep_count between 1 and samples"
            )
        self._reference = reference
        self._ask = ask
        self.calls_per_question = self.samples = samples
        self._temperature = temperature
        self._top_p = top_p
        self._keep_count = keep_count
        self._max_chars = max_chars
        self._max_tokens = max_tokens
        self._seed = seed

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        """Skills by question id; a failed sample counts as one that names nothing.

        Raises:
            InputError: every sample failed, so that nothing can be told about any question; or an id
                stands for two questions.
        """
        distinct = keep_distinct(questions)
        requests = [self._request(q, s) for q in distinct for s in range(self.samples)]
        replies = await self._ask(requests) if requests else []
        named: dict[str, list[list[str]]] = {question.id: [] for question in distinct}
        for request, reply in zip(requests, replies, strict=True):
            if reply.failure is None:
                keywords = parse_keywords(reply.text, reference=self._reference)
                named[request.question_id or ""].append(keywords)
        if replies and all(reply.failure is not None for reply in replies):
            why = next(reply.failure.message for reply in replies if reply.failure is not None)
            raise InputError(f"no skills can be told, every request for keywords failed: {why}")
        return {qid: self._keep(lists) for qid, lists in named.items()}

    def _keep(self, lists: list[list[str]]) -> dict[str, float]:
        kept = keep_repeated(
            lists,
            count=self._keep_count,
            max_chars=self._max_chars,
            reference=self._reference,
        )
        return dict.fromkeys(kept, 1 / max(1, len(kept)))

    def _request(self, question: Question, sample: int) -> Request:
        options = "\n".join(question.options)
        content = fill_prompt("keywords", question=f"{question.text}\n{options}".strip())
        return Request(
            id=f"{question.id}#{sample}",
            messages=({"role": "user", "content": content},),
            sampling=Sampling(
                temperature=self._temperature,
                top_p=self._top_p,
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
            keywords (symbolic-moe.md §5.3). Otherwise only the first line counts, in any case, without
            what the model thought before and without quotes and asterisks around a keyword.
    """
    if reference:
        return [_tidy(part) for part in text.rpartition("Keywords:")[2].split(",")]
    said = strip_thinking(text).lower()
    lines = said.rpartition("keywords:")[2].strip(DECORATION + "\r\n").splitlines()
    parts = (_tidy(part).strip(DECORATION) for part in (lines[0] if lines else "").split(","))
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


def _tidy(keyword: str) -> str:
    return keyword.strip().lower().replace(".", "")
