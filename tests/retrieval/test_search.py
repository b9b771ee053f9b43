"""The search as arrays finds what one question after the other, compared with every reference, finds."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.retrieval import GivenVectors, Neighbours, Question, ReferenceSet
from expertmix.retrieval.leakage import COMMON_OPTIONS, REASONS, normal_text

pytest.importorskip("faiss", reason="needs faiss: pip install 'expertmix[embed]'")

Vectors = npt.NDArray[np.float32]
Found = tuple[list[tuple[int, float]], dict[str, int]]


def option_set(question: Question) -> frozenset[str]:
    return frozenset(map(normal_text, question.options))


def reason_to_drop(
    asked: Question,
    reference: Question,
    similarity: float,
    common: Counter[frozenset[str]],
    cut: float,
) -> str | None:
    if reference.id == asked.id:
        return "same id"
    if normal_text(reference.text) == normal_text(asked.text):
        return "same text"
    options = option_set(asked)
    if options and common[options] < COMMON_OPTIONS and option_set(reference) == options:
        return "same options"
    return "too similar" if similarity > cut else None


def one_by_one(
    references: Sequence[Question],
    units_ND: Vectors,
    asked: Question,
    vector_D: Vectors,
    k: int,
    *,
    cut_off: float,
    within: float | None,
    among: Sequence[int] | None,
) -> Found:
    """The first version of this search: every reference in order of similarity, until `k` are found."""
    common = Counter(map(option_set, references))
    vector_D = vector_D / np.maximum(np.linalg.norm(vector_D[np.newaxis], axis=1), 1e-12)
    similarities_N = (units_ND * vector_D).sum(axis=1)
    rows = [
        row
        for row in np.argsort(-similarities_N, kind="stable").tolist()
        if among is None or row in among
    ]
    found: list[tuple[int, float]] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        similarity = max(-1.0, min(1.0, float(similarities_N[row])))
        if len(found) == k or (within is not None and similarity < within):
            break
        reason = reason_to_drop(asked, references[row], similarity, common, cut_off)
        if reason:
            dropped[reason] += 1
        else:
            found.append((row, similarity))
    return found, dict(dropped)


def plain(neighbours: Neighbours) -> Found:
    return [(n.row, n.similarity) for n in neighbours.found], dict(neighbours.dropped)


OPTIONS = [(), ("yes", "no"), ("No!", "yes"), ("red", "blue"), ("blue", "RED"), ("one", "two")]


def some_questions(n: int, kind: str, rng: np.random.Generator) -> list[Question]:
    """Questions of few words, so that many look alike."""
    ids = rng.permutation(2 * n)[:n] if kind == "r" else rng.integers(0, 2 * n, n)
    made: list[Question] = []
    for at in ids.tolist():
        words = rng.choice(["How", "much", "is", "it?", "it"], rng.integers(1, 4)).tolist()
        options = OPTIONS[int(rng.integers(len(OPTIONS)))]
        gold = "AB"[int(rng.integers(2))] if options else "x"
        made.append(
            Question(
                id=f"{at}",
                text=" ".join(words),
                options=options,
                gold=gold,
                kind="choice" if options else "text",
            )
        )
    return made


def some_vectors(n: int, rng: np.random.Generator) -> Vectors:
    """Vectors of which many are equal, and some nearly."""
    few = rng.normal(size=(8, 5))
    near = few[rng.integers(0, 8, n)] + rng.choice([0.0, 0.0, 0.2, 1.0], (n, 1)) * rng.normal(
        size=(n, 5)
    )
    return near.astype(np.float32)


@settings(deadline=20_000, max_examples=150)
@given(
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.sampled_from([0.5, 0.95, 1.0]),
    st.sampled_from([None, -0.5, 0.3, 0.5]),
    st.sampled_from([None, 0.2, 0.8]),
)
def test_the_arrays_find_what_the_loop_found(
    n: int, seed: int, k: int, cut_off: float, within: float | None, share: float | None
) -> None:
    rng = np.random.default_rng(seed)
    references, asked = some_questions(n, "r", rng), some_questions(20, "q", rng)
    vectors_ND, vectors_QD = some_vectors(n, rng), some_vectors(20, rng)
    vectors_QD[:5] = vectors_ND[rng.integers(0, n, 5)]
    among = None
    if share is not None:
        among = sorted({0, *np.flatnonzero(rng.random(n) < share).tolist()})
    whole = ReferenceSet.build(references, GivenVectors("x", "1"), vectors_ND=vectors_ND)
    got = whole.neighbours_of_vectors(
        asked, vectors_QD, k, cut_off=cut_off, within=within, among=among
    )
    for question, vector_D, neighbours in zip(asked, vectors_QD, got, strict=True):
        expected = one_by_one(
            references,
            whole.index.vectors_ND,
            question,
            vector_D,
            k,
            cut_off=cut_off,
            within=within,
            among=among,
        )
        assert plain(neighbours) == expected
        alone = whole.neighbours_of_vectors(
            [question], vector_D, k, cut_off=cut_off, within=within, among=among
        )
        assert alone == [neighbours]


@settings(deadline=20_000, max_examples=80)
@given(st.integers(1, 80), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_balanced_letters_are_dealt_in_turn(n: int, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    references, asked = some_questions(n, "r", rng), some_questions(6, "q", rng)
    vectors_ND, vectors_QD = some_vectors(n, rng), some_vectors(6, rng)
    whole = ReferenceSet.build(references, GivenVectors("x", "1"), vectors_ND=vectors_ND)
    plain_found = whole.neighbours_of_vectors(asked, vectors_QD, n)
    got = whole.neighbours_of_vectors(asked, vectors_QD, k, balanced=True)
    for every, neighbours in zip(plain_found, got, strict=True):
        pool = [one for one in every.found if one.question.kind == "choice"][: 8 * k]
        hands: dict[str, list[int]] = {}
        for place, one in enumerate(pool):
            hands.setdefault(str(one.question.gold), []).append(place)
        turns = sorted((turn, place) for hand in hands.values() for turn, place in enumerate(hand))
        expected = sorted(place for _, place in turns[:k])
        assert neighbours.found == tuple(pool[place] for place in expected)
        counts = Counter(one.question.gold for one in neighbours.found)
        for letter, hand in hands.items():
            assert counts[letter] == len(hand) or max(counts.values()) - counts[letter] <= 1


def test_past_the_flat_size_the_guard_holds_and_nobody_depends_on_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("expertmix.retrieval.index.FLAT_ROWS", 300)
    rng = np.random.default_rng(3)
    n = 1500
    references = [
        Question(id=f"r{at}", text=f"claim {at % 700}", gold="ABCD"[at % 4], options=(f"{at}", "x",
                 "y", "z"), kind="choice")
        for at in range(n)
    ]  # fmt: skip
    vectors_ND = rng.normal(size=(n, 24)).astype(np.float32)
    vectors_ND[:200] = vectors_ND[0]  # one point, two hundred times
    asked = [
        Question(id=f"r{at}", text=f"Claim {(at + 1) % 700}!", gold=None) for at in range(0, n, 10)
    ]
    vectors_QD = vectors_ND[::10] + 0.3 * rng.normal(size=(len(asked), 24)).astype(np.float32)
    whole = ReferenceSet.build(references, GivenVectors("x", "1"), vectors_ND=vectors_ND)
    mask = rng.random(n) < 0.5
    for among in (None, mask):
        for balanced in (False, True):
            got = whole.neighbours_of_vectors(
                asked, vectors_QD, 3, balanced=balanced, among=among, cut_off=0.9
            )
            for question, vector_D, neighbours in zip(asked, vectors_QD, got, strict=True):
                assert len(neighbours.found) == 3
                assert set(neighbours.dropped) <= set(REASONS)
                for one in neighbours.found:
                    assert one.question.id != question.id
                    assert normal_text(one.question.text) != normal_text(question.text)
                    assert one.similarity <= 0.9
                    assert among is None or among[one.row]
                alone = whole.neighbours_of_vectors(
                    [question], vector_D, 3, balanced=balanced, among=among, cut_off=0.9
                )
                assert alone == [neighbours]
    everything = whole.neighbours_of_vectors(asked[:2], vectors_QD[:2], n)
    for question, vector_D, neighbours in zip(asked, vectors_QD, everything, strict=False):
        expected = one_by_one(
            references,
            whole.index.vectors_ND,
            question,
            vector_D,
            n,
            cut_off=0.95,
            within=None,
            among=None,
        )
        assert plain(neighbours) == expected


@given(st.text(st.characters(max_codepoint=127)), st.text())
def test_ascii_is_normalised_as_every_other_text(ascii_text: str, text: str) -> None:
    def slowly(text: str) -> str:
        text = unicodedata.normalize("NFKC", text).casefold()
        return " ".join(re.sub(r"[^\w+\-*/=<>^%]+", " ", text).split())

    assert normal_text(ascii_text) == slowly(ascii_text)
    assert normal_text(text) == slowly(text)
