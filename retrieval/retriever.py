"""The references as a LangChain retriever: a question's text in, solved references out."""

from __future__ import annotations

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field

from .neighbours import Neighbour
from .questions import Question
from .references import CUT_OFF, ReferenceSet

__all__ = ["ReferenceRetriever"]

NO_ID = "\0asked"  # what is asked as text has no id that a reference could share


class ReferenceRetriever(BaseRetriever):
    """Solved references that resemble a question, never the question itself.

    ``retriever.invoke("Who wrote about a whale?")`` gives documents with the question, its lettered options and
    its answer, the most similar first; ``retriever.invoke(question, k=5)`` another number of them.
    ``metadata`` has ``id``, ``gold``, ``kind``, ``skills``, ``similarity`` and ``row``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    references: ReferenceSet
    k: int = Field(default=3, ge=1)
    """Documents wanted; fewer come back if too few references are left."""
    cut_off: float = CUT_OFF
    """What is more similar counts as the question itself."""
    within: float | None = None
    """Smallest similarity that still counts as near."""
    balanced: bool = False
    """Spread the gold letters evenly; see `ReferenceSet.neighbours_of_many`."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        found = self.references.neighbours(
            Question(id=NO_ID, text=query),
            self.k if k is None else k,
            cut_off=self.cut_off,
            within=self.within,
            balanced=self.balanced,
        ).found
        return [_document(neighbour) for neighbour in found]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        # LangChain's own leaves out what `ainvoke` was given besides the query.
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), k=k
        )


def _document(neighbour: Neighbour) -> Document:
    question = neighbour.question
    return Document(
        id=question.id,
        page_content=_solved(question),
        metadata={
            "id": question.id,
            "gold": question.gold,
            "kind": question.kind,
            "skills": list(question.skills),
            "similarity": neighbour.similarity,
            "row": neighbour.row,
        },
    )


def _solved(question: Question) -> str:
    """The question as people read it, with its answer in the last line."""
    letters = question.letters
    lines = [
        f"{letter}. {option}" for letter, option in zip(letters, question.options, strict=True)
    ]
    answer = question.gold or ""
    if question.options:
        answer = f"{answer}. {question.options[letters.index(answer)]}"
    else:
        answer = answer.split(" || ")[0]  # of several right answers the first is the usual one
    return "\n".join((question.text, *lines, f"Answer: {answer}"))
