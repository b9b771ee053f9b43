from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from langchain_core.embeddings import Embeddings

from expertmix.retrieval import GivenVectors, InputError, Question, ReferenceSet

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


def by_vectors(references: Sequence[Question], vectors: npt.ArrayLike) -> ReferenceSet:
    return ReferenceSet.build(references, GivenVectors("hidden states", "1"), vectors_ND=vectors)


def circle(*degrees: float) -> npt.NDArray[np.float32]:
    """Unit vectors in the plane: the cosine of two is that of the angle between them."""
    return np.array([[np.cos(d), np.sin(d)] for d in np.radians(degrees)], np.float32)


def test_given_vectors_are_searched_with_given_vectors_under_the_same_guard() -> None:
    references = by_vectors(REFERENCES, circle(0, 30, 60, 90))
    asked = question("sum", "how much is two times three")
    found = references.neighbours_of_vectors([asked], circle(10), 4)[0]
    assert [(n.question.id, n.row) for n in found.found] == [("poem", 2), ("novel", 3)]
    assert found.dropped == {"same id": 1, "same text": 1}
    assert found.found[0].similarity == pytest.approx(np.cos(np.radians(50)), abs=1e-6)


def test_a_set_of_given_vectors_cannot_embed_texts_but_comes_back_the_same(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs safetensors: pip install 'expertmix[embed]'")
    by_vectors(REFERENCES, circle(0, 30, 60, 90)).save(tmp_path / "references")
    loaded = ReferenceSet.load(tmp_path / "references", GivenVectors("hidden states", "1"))
    asked = question("new", "x")
    found = loaded.neighbours_of_vectors([asked], circle(85), 2)[0].found
    assert [neighbour.question.id for neighbour in found] == ["poem", "product"]
    with pytest.raises(InputError, match="hidden states gives no vectors for 1 texts"):
        loaded.neighbours(asked, 1)
    with pytest.raises(InputError, match="build it again"):
        ReferenceSet.load(tmp_path / "references", GivenVectors("hidden states", "2"))


def test_a_ball_holds_what_is_near_and_at_most_k() -> None:
    references = by_vectors(REFERENCES, circle(20, 30, 60, 80))
    asked, at = [question("new", "x")], circle(0)

    def rows(k: int, within: float | None) -> list[int]:
        found = references.neighbours_of_vectors(asked, at, k, within=within)[0].found
        return [neighbour.row for neighbour in found]

    assert rows(4, 0.4) == [0, 1, 2]
    assert rows(2, 0.4) == [0, 1]
    assert rows(4, 0.949) == []
    assert rows(4, -1.0) == rows(4, None) == [0, 1, 2, 3]


def test_what_was_dropped_is_counted_only_inside_the_ball() -> None:
    references = by_vectors(REFERENCES, circle(5, 30, 60, 80))
    asked = [question("novel", "x")]
    found = references.neighbours_of_vectors(asked, circle(0), 4, within=0.4)[0]
    assert [neighbour.row for neighbour in found.found] == [1, 2]
    assert found.dropped == {"too similar": 1}


def test_balanced_letters_take_turns_and_still_come_by_similarity() -> None:
    golds = ["A", "A", "A", "B", "A", "C", "B"]
    options = [(f"this {at}", f"that {at}", f"those {at}") for at in range(len(golds))]
    references = [
        question(f"r{at}", f"claim {at}", *options[at], gold=gold) for at, gold in enumerate(golds)
    ] + [question("open", "no letter at all", gold="Melville")]
    vectors_ND = circle(20, 25, 30, 40, 50, 60, 70, 19)
    found = by_vectors(references, vectors_ND)

    def rows(k: int) -> list[int]:
        asked = [question("new", "x", "one", "two", "three")]
        chosen = found.neighbours_of_vectors(asked, circle(0), k, balanced=True)[0].found
        return [neighbour.row for neighbour in chosen]

    assert rows(1) == [0]
    assert rows(2) == [0, 3]
    assert rows(3) == [0, 3, 5]
    assert rows(4) == [0, 1, 3, 5]
    assert rows(5) == [0, 1, 3, 5, 6]
    assert rows(7) == [0, 1, 2, 3, 4, 5, 6]
    assert rows(9) == [0, 1, 2, 3, 4, 5, 6]


def test_only_some_references_may_be_searched() -> None:
    references = ReferenceSet.build(REFERENCES, WordEncoder())
    asked = question("new", "who wrote about a whale")
    for among in ([0, 3], np.array([True, False, False, True])):
        found = references.neighbours(asked, 4, among=among).found
        assert [neighbour.row for neighbour in found] == [3, 0]
    everything = references.neighbours(asked, 4, among=range(4))
    assert everything == references.neighbours(asked, 4)
    dropped = references.neighbours(question("sum", "two and two"), 4, among=[1, 2]).dropped
    assert dropped == {}


def test_random_neighbours_depend_on_seed_and_question_and_on_nothing_else() -> None:
    many = [question(f"r{at}", f"claim number{at} of many") for at in range(200)]
    references = ReferenceSet.build(many, WordEncoder())
    asked = [question(f"q{at}", f"question number{at}") for at in range(30)]
    drawn = references.random_neighbours(asked, 3, 7)
    assert drawn[::-1] == references.random_neighbours(asked[::-1], 3, 7)
    assert drawn[4:5] == references.random_neighbours(asked[4:5], 3, 7)
    assert drawn != references.random_neighbours(asked, 3, 8)
    rows = [[neighbour.row for neighbour in one.found] for one in drawn]
    assert all(len(set(three)) == 3 for three in rows)
    assert len({row for three in rows for row in three}) > 50
    for one in drawn:
        similarities = [neighbour.similarity for neighbour in one.found]
        assert similarities == sorted(similarities, reverse=True)
    some = references.random_neighbours(asked, 2, 7, among=[3, 5, 8])
    assert {neighbour.row for one in some for neighbour in one.found} == {3, 5, 8}


def test_random_neighbours_are_never_the_question_in_disguise() -> None:
    copies = [question(f"copy{at}", "the very same words") for at in range(60)]
    references = ReferenceSet.build([*copies, *REFERENCES], WordEncoder())
    found = references.random_neighbours([question("sum", "The very same words!")], 5, 0)[0]
    assert {neighbour.question.id for neighbour in found.found} == {"product", "poem", "novel"}
    assert found.dropped == {"same text": 60, "same id": 1}
    near = references.random_neighbours([question("new", "words very the same")], 9, 0)[0]
    assert near.dropped == {"too similar": 60}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "0 neighbours were asked for"),
        ({"within": 0.96}, "nothing is both within 0.96 and below the cut-off 0.95"),
        ({"within": float("nan")}, "nothing is both within nan"),
        ({"among": []}, "leaves no reference"),
        ({"among": np.zeros(4, bool)}, "leaves no reference"),
        ({"among": [1, 4]}, "names row 4; there are rows 0 to 3"),
        ({"among": [-1]}, "names row -1"),
        ({"among": np.ones(3, bool)}, "must be 4 truth values or a list of rows"),
        ({"among": [0.5]}, "must be 4 truth values or a list of rows"),
        ({"vectors_QD": circle(0, 1)}, "1 questions need a vector each, got an array of shape"),
        ({"vectors_QD": [[1.0, 0.0, 0.0]]}, "dimension 2"),
        ({"vectors_QD": [[float("nan"), 0.0]]}, "not finite"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: dict[str, Any], message: str) -> None:
    references = by_vectors(REFERENCES, circle(0, 30, 60, 90))
    wanted: dict[str, Any] = {"k": 1, "vectors_QD": circle(0), **options}
    with pytest.raises(InputError, match=message):
        references.neighbours_of_vectors([question("new", "x")], **wanted)


def test_vectors_that_fit_no_reference_are_refused() -> None:
    with pytest.raises(InputError, match="4 rows need as many vectors"):
        by_vectors(REFERENCES, circle(0, 30))
