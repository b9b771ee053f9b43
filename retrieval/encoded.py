"""Vectors of many texts, computed once and kept in a file, so that what was interrupted goes on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from .embed import Encoder
from .errors import InputError

__all__ = ["EncodedTexts"]

STEP = 512
"""Texts between two savings of the file."""

Vectors = npt.NDArray[np.float32]


class EncodedTexts(Embeddings):
    """An encoder that knows its texts' vectors by heart; other texts it leaves to the real one.

    Make it with `encode`. It has the name and revision of the encoder whose vectors it holds.
    """

    def __init__(self, encoder: Encoder, texts: Sequence[str], vectors_ND: Vectors) -> None:
        self.name = encoder.name
        self.revision = encoder.revision
        self._encoder = encoder
        self._row = {text: row for row, text in enumerate(texts)}
        self._vectors_ND = vectors_ND

    @classmethod
    def compute(
        cls,
        encoder: Encoder,
        texts: Sequence[str],
        *,
        path: Path | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> EncodedTexts:
        """Encode texts, each different one once.

        Args:
            encoder: Whose vectors.
            texts: In any order.
            path: A safetensors file of vectors; what it holds of the same texts by the same revision
                is reused, and it grows while texts are encoded. Nothing is kept without safetensors.
            on_progress: Told how many of how many texts are done.
        """
        # In order of length, so that little is computed for padding.
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        key = _fingerprint(encoder, unique)
        vectors_ND = _load(path, key)[: len(unique)]
        while len(vectors_ND) < len(unique):
            batch = unique[len(vectors_ND) : len(vectors_ND) + STEP]
            found_ND = encoder.encode(batch)
            if len(found_ND) != len(batch) or not np.isfinite(found_ND).all():
                raise InputError(
                    f"{encoder.name} gave {len(found_ND)} vectors for {len(batch)} texts, or numbers "
                    "that are not finite; give another encoder"
                )
            grown = [vectors_ND, found_ND] if len(vectors_ND) else [found_ND]
            vectors_ND = np.concatenate(grown)
            _save(path, key, vectors_ND)
            if on_progress is not None:
                on_progress(len(vectors_ND), len(unique))
        return cls(encoder, unique, vectors_ND)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D] in float32, in the order of the texts."""
        if all(text in self._row for text in texts):
            return self._vectors_ND[[self._row[text] for text in texts]]
        return self._encoder.encode(texts)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts; see `encode`."""
        return self.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Embed one text; see `encode`."""
        return self.encode([text])[0].tolist()


def _fingerprint(encoder: Encoder, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{encoder.name}\0{encoder.revision}".encode())
    for text in texts:
        digest.update(b"\0" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def _load(path: Path | None, key: str) -> Vectors:
    nothing = np.zeros((0, 0), np.float32)
    if path is None or not path.is_file():
        return nothing
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return nothing
    try:
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("key") != key:
                return nothing
            vectors_ND: Vectors = file.get_tensor("vectors")
    except (SafetensorError, OSError):  # cut off by a kill: it is made again
        return nothing
    return vectors_ND if vectors_ND.ndim == 2 and np.isfinite(vectors_ND).all() else nothing


def _save(path: Path | None, key: str, vectors_ND: Vectors) -> None:
    if path is None:
        return
    try:
        from safetensors.numpy import save_file
    except ImportError:
        return
    part = path.with_suffix(".part")
    save_file({"vectors": vectors_ND}, part, metadata={"key": key})
    os.replace(part, path)
