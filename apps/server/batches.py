"""Requests that arrive together become one batch, so that each expert gets one call for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from ...retrieval import Question
from .batch_pool import PanelEvent

__all__ = ["Collator", "Hear"]

Terms = TypeVar("Terms", bound=Hashable)
Answer = TypeVar("Answer")
Hear = Callable[[PanelEvent], None]
Run = Callable[
    [Terms, Sequence[Question], Callable[[str, PanelEvent], None]],
    Awaitable[Mapping[str, Answer]],
]


class Collator(Generic[Terms, Answer]):
    """Collects questions for a short time and has them answered together.

    Only questions under the same terms meet. The same question asked twice is answered once. A batch is
    cancelled when nobody waits for it any more; whoever leaves earlier leaves it to the others.

    Args:
        run: Answers a batch, by question id.
        window: Seconds from a batch's first question to its start.
        most: Questions of a batch; a full one starts at once.
    """

    def __init__(self, run: Run[Terms, Answer], *, window: float, most: int) -> None:
        self._run = run
        self._window = window
        self._most = most
        self._open: dict[Terms, _Batch[Answer]] = {}

    async def ask(self, terms: Terms, question: Question, hear: Hear) -> Answer:
        """The answer to a question, out of a batch.

        Args:
            terms: What a batch has in common.
            question: One with the id of another in the batch but another content goes into the next batch.
            hear: Called with what happens to the question meanwhile.

        Raises:
            Exception: whatever `run` raises.
        """
        batch = self._open.get(terms)
        if batch is None or not batch.takes(question):
            batch = self._open[terms] = _Batch()
            batch.task = asyncio.create_task(self._carry_out(terms, batch))
            batch.task.add_done_callback(_forgive)
        batch.join(question, hear)
        if len(batch.questions) >= self._most:
            self._close(terms, batch)
        assert batch.task is not None
        try:
            answers = await asyncio.shield(batch.task)
        finally:
            batch.leave(question, hear)
            if not batch.listeners:
                self._close(terms, batch)
                batch.task.cancel()
        return answers[question.id]

    async def _carry_out(self, terms: Terms, batch: _Batch[Answer]) -> Mapping[str, Answer]:
        try:
            async with asyncio.timeout(self._window):
                await batch.is_full.wait()
        except TimeoutError:
            self._close(terms, batch)
        return await self._run(terms, batch.wanted, batch.tell)

    def _close(self, terms: Terms, batch: _Batch[Answer]) -> None:
        batch.is_full.set()
        if self._open.get(terms) is batch:
            del self._open[terms]


class _Batch(Generic[Answer]):
    """Questions by id, and who waits for the answer to each."""

    def __init__(self) -> None:
        self.questions: dict[str, Question] = {}
        self.listeners: dict[str, list[Hear]] = {}
        self.is_full = asyncio.Event()
        self.task: asyncio.Task[Mapping[str, Answer]] | None = None

    @property
    def wanted(self) -> list[Question]:
        """Questions whose answer somebody waits for."""
        return [self.questions[qid] for qid in self.listeners]

    def takes(self, question: Question) -> bool:
        return self.questions.get(question.id, question) == question

    def join(self, question: Question, hear: Hear) -> None:
        self.questions[question.id] = question
        self.listeners.setdefault(question.id, []).append(hear)

    def leave(self, question: Question, hear: Hear) -> None:
        self.listeners[question.id].remove(hear)
        if not self.listeners[question.id]:
            del self.listeners[question.id]

    def tell(self, qid: str, event: PanelEvent) -> None:
        for hear in tuple(self.listeners.get(qid, ())):
            hear(event)


def _forgive(task: asyncio.Task[Mapping[str, Answer]]) -> None:
    """A batch that fails after everybody has left is nobody's concern."""
    if not task.cancelled():
        task.exception()
