"""Vectors by heart: computed once, kept in a file, and never another encoder's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from expertmix.retrieval import InputError
from expertmix.retrieval.encoded import STEP, EncodedTexts

Vectors = npt.NDArray[np.float32]


class Counting:
    """Vectors of a text's length, and a count of the texts that were encoded."""

    name = "counting"

    def __init__(self, revision: str = "1", *, stop_after: int | None = None) -> None:
        self.revision = revision
        self.count = 0
        self._stop_after = stop_after

    def encode(self, texts: Sequence[str]) -> Vectors:
        if self._stop_after is not None and self.count >= self._stop_after:
            raise KeyboardInterrupt
        self.count += len(texts)
        return np.array([[len(text), 1.0] for text in texts], np.float32)


def test_each_different_text_is_encoded_once_and_answers_in_any_order() -> None:
    encoder = Counting()
    encoded = EncodedTexts.compute(encoder, ["ccc", "a", "ccc", "bb"])
    assert encoder.count == 3
    assert encoded.encode(["bb", "ccc", "bb"]).tolist() == [[2, 1], [3, 1], [2, 1]]
    assert encoded.embed_documents(["a"]) == [encoded.embed_query("a")]
    assert encoder.count == 3
    assert encoded.encode(["a", "dddd"]).tolist() == [[1, 1], [4, 1]]
    assert (encoded.name, encoded.revision) == (encoder.name, encoder.revision)


def test_a_second_run_encodes_nothing_and_another_encoder_everything(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="vectors are kept as safetensors")
    path, texts = tmp_path / "vectors.safetensors", ["a", "bb"]
    first = EncodedTexts.compute(Counting(), texts, path=path)
    again = Counting()
    second = EncodedTexts.compute(again, list(reversed(texts)), path=path)
    assert again.count == 0
    assert np.array_equal(first.encode(texts), second.encode(texts))
    for encoder, asked in ((Counting("2"), texts), (Counting(), ["a", "cc"])):
        EncodedTexts.compute(encoder, asked, path=path)
        assert encoder.count == 2


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="vectors are kept as safetensors")
    path, texts = tmp_path / "vectors.safetensors", [f"text {n}" for n in range(STEP + 10)]
    with pytest.raises(KeyboardInterrupt):
        EncodedTexts.compute(Counting(stop_after=STEP), texts, path=path)
    encoder = Counting()
    told: list[tuple[int, int]] = []
    encoded = EncodedTexts.compute(
        encoder, texts, path=path, on_progress=lambda done, total: told.append((done, total))
    )
    assert encoder.count == 10
    assert told == [(STEP + 10, STEP + 10)]
    assert encoded.encode(texts)[:, 0].tolist() == [len(text) for text in texts]


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(b"cut")
    encoder = Counting()
    EncodedTexts.compute(encoder, ["a"], path=path)
    assert encoder.count == 1


def test_vectors_that_are_no_numbers_are_refused() -> None:
    class Broken(Counting):
        def encode(self, texts: Sequence[str]) -> Vectors:
            return np.full((len(texts), 2), np.nan, np.float32)

    with pytest.raises(InputError, match="not finite"):
        EncodedTexts.compute(Broken(), ["a"])
