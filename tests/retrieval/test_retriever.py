from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from expertmix.retrieval import InputError, Question, ReferenceRetriever, ReferenceSet

pytest.importorskip("faiss", reason="needs faiss: pip install 'expertmix[embed]'")

REFERENCES = [
    Question(
        id="moon",
        text="what circles the earth",
        options=("the moon", "the sun"),
        gold="A",
        kind="choice",
        skills=("astronomy",),
    ),
    Question(id="sum", text="how much is two and two", gold="4 || four", kind="number"),
    Question(id="whale", text="who wrote about a whale", gold="Melville"),
]


class WordEncoder:
    """Texts that share words are similar: each word has a direction of its own."""

    name = "words"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors_ND = np.zeros((len(texts), 64), dtype=np.float32)
        for vector_D, text in zip(vectors_ND, texts, strict=True):
            for word in text.lower().split():
                vector_D[hashlib.sha256(word.encode()).digest()[0] % 64] += 1
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def retriever(k: int = 3, within: float | None = None) -> ReferenceRetriever:
    references = ReferenceSet.build(REFERENCES, WordEncoder())
    return ReferenceRetriever(references=references, k=k, within=within)


def test_documents_are_solved_references_the_most_similar_first() -> None:
    documents = retriever(2).invoke("what does circle the earth")
    assert documents[0].id == "moon"
    assert documents[0].page_content == (
        "what circles the earth\nA. the moon\nB. the sun\nAnswer: A. the moon"
    )
    similarity = documents[0].metadata.pop("similarity")
    assert 0.5 < similarity < 0.95
    assert documents[0].metadata == {
        "id": "moon",
        "gold": "A",
        "kind": "choice",
        "skills": ["astronomy"],
        "row": 0,
    }


def test_of_several_right_answers_the_first_is_shown() -> None:
    document = retriever(1).invoke("how much is two and one")[0]
    assert document.page_content == "how much is two and two\nAnswer: 4"


@pytest.mark.parametrize(
    "query", ["Who wrote about a WHALE?", "what circles the earth\nthe moon\nthe sun"]
)
def test_the_question_itself_is_never_found(query: str) -> None:
    found = {document.id for document in retriever().invoke(query)}
    assert len(found) == 2
    assert ("whale" if "WHALE" in query else "moon") not in found


def test_what_is_far_may_be_left_out() -> None:
    assert [d.id for d in retriever(3, 0.5).invoke("who wrote about a fish")] == ["whale"]


def first_id(documents: list[Document]) -> str | None:
    return documents[0].id


async def test_it_works_in_chains_and_asynchronously() -> None:
    found = retriever(1)
    chain = found | RunnableLambda(first_id)
    assert await chain.ainvoke("who wrote about a fish") == "whale"
    both: list[list[Document]] = await found.abatch(
        ["who wrote about a fish", "how much is two and one"]
    )
    assert [documents[0].id for documents in both] == ["whale", "sum"]


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        retriever(0)


async def test_another_number_may_be_wanted_for_one_call() -> None:
    found = retriever(3)
    assert len(found.invoke("who wrote about a fish", k=1)) == 1
    assert len(await found.ainvoke("who wrote about a fish", k=2)) == 2
    assert len(found.invoke("who wrote about a fish")) == 3
    with pytest.raises(InputError, match="0 neighbours were asked for"):
        found.invoke("who wrote about a fish", k=0)


if importlib.util.find_spec("langchain_tests") is not None:
    from langchain_tests.integration_tests import RetrieversIntegrationTests

    class TestAsLangChainWantsIt(RetrieversIntegrationTests):
        @property
        def retriever_constructor(self) -> type[ReferenceRetriever]:
            return ReferenceRetriever

        @property
        def retriever_constructor_params(self) -> dict[str, Any]:
            return {"references": ReferenceSet.build(REFERENCES, WordEncoder())}

        @property
        def retriever_query_example(self) -> str:
            return "who wrote about a fish"
