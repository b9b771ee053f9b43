from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from langchain_core.embeddings import Embeddings

from expertmix.retrieval import InputError, Question, ReferenceSet

pytest.importorskip("faiss", reason="needs faiss: pip install 'expertmix[embed]'")


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


def question(id: str, text: str, *options: str, gold: str | None = "A") -> Question:
    kind = "choice" if options else "text"
    return Question(id=id, text=text, options=options, gold=gold, kind=kind)


REFERENCES = [
    question("sum", "how much is two and two", "three", "four"),
    question("product", "how much is two times three", "five", "six"),
    question("poem", "who wrote the long poem about a whale", "nobody", "somebody"),
    question("novel", "who wrote the novel about a whale", gold="Melville"),
]


def ids(references: ReferenceSet, asked: Question, k: int = 4) -> list[str]:
    return [neighbour.question.id for neighbour in references.neighbours(asked, k).found]


def test_the_most_similar_references_come_first() -> None:
    references = ReferenceSet.build(REFERENCES, WordEncoder())
    found = references.neighbours(question("new", "who wrote about a whale"), 2).found
    assert {neighbour.question.id for neighbour in found} == {"poem", "novel"}
    assert found[0].similarity >= found[1].similarity


def test_each_disguise_of_the_question_is_dropped_and_counted() -> None:
    references = ReferenceSet.build(REFERENCES, WordEncoder())
    disguises = {
        "same id": question("sum", "something else entirely"),
        "same text": question("new", "How much is TWO, and two?"),
        "same options": question("new", "add them", "four", "three"),
        "too similar": question("new", "two and two how much is", "three", "or four"),
    }
    for reason, asked in disguises.items():
        found = references.neighbours(asked, 4, cut_off=0.9)
        assert "sum" not in [neighbour.question.id for neighbour in found.found], reason
        assert found.dropped == {reason: 1}
        assert len(found.found) == 3


def test_options_that_many_references_share_do_not_count_as_a_leak() -> None:
    many = [question(f"r{at}", f"is claim number{at} true", "yes", "no") for at in range(6)]
    references = ReferenceSet.build(many, WordEncoder())
    assert len(ids(references, question("new", "is this one true", "no", "yes"), 6)) == 6


def test_the_guard_looks_further_until_enough_are_found() -> None:
    copies = [question(f"copy{at}", "the very same words") for at in range(60)]
    references = ReferenceSet.build([*copies, *REFERENCES], WordEncoder())
    found = references.neighbours(question("new", "the very same words"), 3)
    assert len(found.found) == 3
    assert found.dropped == {"same text": 60}


def test_fewer_come_back_where_fewer_are_left() -> None:
    references = ReferenceSet.build(REFERENCES, WordEncoder())
    assert len(ids(references, REFERENCES[0], 10)) == 3
    assert references.neighbours_of_many([], 3) == []


def test_a_saved_set_comes_back_the_same_and_only_with_its_encoder(tmp_path: Path) -> None:
    references = ReferenceSet.build(REFERENCES, WordEncoder())
    references.save(tmp_path / "references")
    loaded = ReferenceSet.load(tmp_path / "references", WordEncoder())
    asked = question("new", "who wrote about a whale")
    assert loaded.questions == references.questions
    assert loaded.neighbours(asked, 3) == references.neighbours(asked, 3)
    other = WordEncoder()
    other.revision = "2"
    with pytest.raises(InputError, match="build it again"):
        ReferenceSet.load(tmp_path / "references", other)


def test_any_langchain_embeddings_will_do() -> None:
    class Wrapped(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return (3 * WordEncoder().encode(texts)).tolist()

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    asked = question("new", "who wrote about a whale")
    by_words = ReferenceSet.build(REFERENCES, WordEncoder())
    assert ids(ReferenceSet.build(REFERENCES, Wrapped()), asked) == ids(by_words, asked)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], "no references"),
        ([question("a", "x", gold=None)], "no gold"),
        ([question("a", "x"), question("a", "y")], 'two references have the id "a"'),
    ],
)
def test_unlabelled_or_repeated_references_are_refused(
    references: list[Question], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ReferenceSet.build(references, WordEncoder())
