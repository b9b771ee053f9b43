"""Which weights can replace each other: those that differ in nothing but their numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from expertmix.agents.pool.families import find_family, read_shapes
from expertmix.agents.pool.weights import ResolvedWeights
from expertmix.retrieval import InputError

CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "vocab_size": 8}
SETTINGS = {"dtype": "float32", "context": 512}


def model(folder: Path, *, width: int = 4, tokenizer: str = "{}", **config: Any) -> ResolvedWeights:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text(tokenizer)
    save_file({"w": np.random.default_rng().random((8, width))}, folder / "model.safetensors")
    return ResolvedWeights(model=folder, revision="0" * 40, bytes=1, key=folder.name)


def test_other_numbers_of_the_same_shape_are_of_one_family(tmp_path: Path) -> None:
    one = find_family(model(tmp_path / "a"), settings=SETTINGS)
    two = find_family(model(tmp_path / "b", _name_or_path="elsewhere"), settings=SETTINGS)
    assert one == two
    assert one is not None


@pytest.mark.parametrize(
    "how",
    [{"width": 5}, {"tokenizer": '{"a": 1}'}, {"rope_theta": 5}, {"tie_word_embeddings": True}],
)
def test_another_shape_tokenizer_or_config_is_another_family(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    one = find_family(model(tmp_path / "a"), settings=SETTINGS)
    assert one != find_family(model(tmp_path / "b", **how), settings=SETTINGS)


def test_another_setting_of_the_engine_is_another_family(tmp_path: Path) -> None:
    weights = model(tmp_path / "a")
    one = find_family(weights, settings=SETTINGS)
    assert one != find_family(weights, settings={**SETTINGS, "context": 1024})


def test_quantised_weights_have_no_family(tmp_path: Path) -> None:
    weights = replace(model(tmp_path / "a"), quantised=True)
    assert find_family(weights, settings=SETTINGS) is None


def test_shapes_come_from_the_headers_alone(tmp_path: Path) -> None:
    assert read_shapes(model(tmp_path / "a").model) == {"w": ["F64", [8, 4]]}


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"no"])
def test_a_file_that_was_cut_off_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    weights = model(tmp_path / "a")
    (weights.model / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cut off; fetch it again"):
        read_shapes(weights.model)
