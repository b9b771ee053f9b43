"""Skills that are told once, however many methods ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..agents import SkillExtractor
from ..retrieval import Question

__all__ = ["SkillMemory"]


class SkillMemory:
    """An extractor that remembers what another one said. One at a time asks; the others wait for it.

    Args:
        extractor: Asked about each question once. What it says must not depend on its batch.
    """

    def __init__(self, extractor: SkillExtractor) -> None:
        self._extractor = extractor
        self._told: dict[Question, dict[str, float]] = {}
        self._asking = asyncio.Lock()

    @property
    def calls_per_question(self) -> int:
        """As the extractor's."""
        return self._extractor.calls_per_question

    async def extract(self, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
        """Skills by question id; see `SkillExtractor`."""
        async with self._asking:
            rest = [question for question in questions if question not in self._told]
            if rest:
                found = await self._extractor.extract(rest)
                self._told |= {question: dict(found.get(question.id, {})) for question in rest}
        return {question.id: dict(self._told[question]) for question in questions}
