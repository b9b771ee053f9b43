"""`expertmix moe build`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a tiny dense model of bytes and two prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(
        tmp_path / "dense"
    )
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    (tmp_path / "prompts.jsonl").write_text('{"text": "one two"}\n{"text": "three"}\n')
    return tmp_path


def moe_build(place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "expertmix.apps.cli", "moe", "build", *more]
    return subprocess.run(
        command,
        cwd=place,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SMALL = ("--layers", "1", "--experts", "4", "--top-k", "2", "--calibrate", "prompts.jsonl")


def test_it_makes_a_model_and_says_how_large(place: Path) -> None:
    done = moe_build(place, "--out", "moe", "--parent", "dense", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["parameters"] - told["active_parameters"] == 2 * 3 * 8 * 16
    assert told["accuracy"] is None
    assert "layer 1:" in done.stderr
    assert "Loading" not in done.stderr
    card = (place / "moe" / "README.md").read_text()
    assert "expertmix moe build --out moe --parent dense --layers 1" in card
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "moe")
    assert type(model).__name__ == "Qwen2MoeForCausalLM"


def test_what_a_person_can_correct_is_one_sentence(place: Path) -> None:
    done = moe_build(place, "--out", "dense", "--parent", "dense", *SMALL)
    assert (done.returncode, done.stderr) == (
        2,
        "error: dense is not empty; name a new folder, or empty it first.\n",
    )
    done = moe_build(place, "--out", "moe", "--parent", "package:no-such-package")
    assert done.returncode == 2
    assert "'no-such-package' is not installed here" in done.stderr
    assert not (place / "moe.partial").exists()
