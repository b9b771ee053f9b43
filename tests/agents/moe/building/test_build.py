from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers
from safetensors.torch import load_file, save_file

from expertmix.agents.moe.building.build import Build, build_moe
from expertmix.agents.moe.building.part import read_part
from expertmix.retrieval import InputError

MakeParent = Callable[..., Path]
IDS = torch.tensor([[5, 17, 90, 33, 8, 120, 66, 41]])


def small(parent: Path, prompts: Path, **changes: Any) -> Build:
    settings: dict[str, Any] = {"layers": 2, "experts": 8, "top_k": 4, "calibrate": prompts}
    return Build(parent=str(parent), **(settings | changes))


def load(folder: Path, dtype: Any = torch.float64, **changes: Any) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **changes)
    if dtype == torch.float64 and hasattr(model.config, "num_experts"):
        model.set_experts_implementation("eager")  # grouped products have no float64
    return model.eval()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}),
        ("Qwen2", {}),
    ],
)
def test_all_experts_with_equal_weights_are_the_dense_parent(
    family: str, changes: dict[str, Any], make_parent: MakeParent, prompts: Path, tmp_path: Path
) -> None:
    parent = make_parent(family, **changes)
    built = build_moe(small(parent, prompts), tmp_path / "moe")
    model = load(built.out, num_experts_per_tok=8)
    for layer in model.model.layers[2:]:
        torch.nn.init.zeros_(layer.mlp.gate.weight)
        assert layer.mlp.gate.top_k == 8
    assert [type(x.mlp).__name__ for x in model.model.layers[1:3]] == [
        "Qwen2MoeMLP",
        "Qwen2MoeSparseMoeBlock",
    ]
    with torch.no_grad():
        found, expected = model(IDS).logits, load(parent)(IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_the_folder_holds_what_both_loaders_know_and_nothing_of_our_own(
    make_parent: MakeParent, prompts: Path, tmp_path: Path
) -> None:
    parent = make_parent("Llama", dtype=torch.bfloat16)
    built = build_moe(small(parent, prompts), tmp_path / "new" / "moe", command="made by hand")
    config = json.loads((built.out / "config.json").read_text())
    own = set(transformers.Qwen2MoeConfig.__annotations__)
    assert set(config) - own == {"architectures", "dtype", "model_type", "transformers_version"}
    assert config["dtype"] == "bfloat16"
    assert config["mlp_only_layers"] == [0, 1]
    tensors = load_file(built.out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "model.layers.2.mlp.experts.7.down_proj.weight" in tensors
    assert "model.layers.2.mlp.up_proj.weight" not in tensors
    assert not tensors["model.layers.0.self_attn.q_proj.bias"].any()
    assert built.total == sum(tensor.numel() for tensor in tensors.values())
    assert built.active == built.total - 2 * 4 * 3 * 8 * 32
    files = {path.name for path in built.out.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= files
    assert load(built.out, torch.bfloat16).config.architectures == ["Qwen2MoeForCausalLM"]
    card = (built.out / "README.md").read_text()
    assert "made by hand" in card
    assert "not measured" in card
    assert "not stated" in card
    assert f"{built.total:,}" in card
    assert not (tmp_path / "new" / "moe.partial").exists()


def test_routers_choose_better_than_chance(
    make_parent: MakeParent, prompts: Path, tmp_path: Path
) -> None:
    parent = make_parent("Llama")
    model = load(build_moe(small(parent, prompts), tmp_path / "moe").out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(parent)
    ids = torch.tensor([tokenizer(f"The {n} trees stood in a row.")["input_ids"] for n in range(6)])
    with torch.no_grad():
        expected = load(parent)(ids).logits.log_softmax(-1)

        def divergence() -> float:
            found = model(ids).logits.log_softmax(-1)
            return float((expected.exp() * (expected - found)).sum(-1).mean())

        fitted = divergence()
        generator = torch.Generator().manual_seed(0)
        others: list[float] = []
        for _ in range(8):
            for layer in model.model.layers[2:]:
                router = layer.mlp.gate.weight
                drawn = torch.randn(router.shape, generator=generator, dtype=router.dtype)
                router.copy_(0.02 * drawn)
            others.append(divergence())
    assert fitted < 0.8 * min(others)


def test_a_repeat_gives_the_same_and_so_does_the_part(
    make_parent: MakeParent, prompts: Path, tmp_path: Path
) -> None:
    parent = make_parent("Qwen2", dtype=torch.bfloat16)
    first = build_moe(small(parent, prompts, save_part=tmp_path / "part"), tmp_path / "a").out
    second = build_moe(small(parent, prompts), tmp_path / "b").out
    third = build_moe(Build(parent=str(parent), part=tmp_path / "part"), tmp_path / "c").out
    for name in ("model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).read_bytes() == (third / name).read_bytes()


def test_large_models_are_written_in_shards(
    make_parent: MakeParent, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = make_parent("Llama")
    whole = build_moe(small(parent, prompts), tmp_path / "whole").out
    monkeypatch.setattr("expertmix.agents.moe.building.files.SHARD_BYTES", 40_000)
    sharded = build_moe(small(parent, prompts), tmp_path / "sharded").out
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    with torch.no_grad():
        assert torch.equal(load(whole)(IDS).logits, load(sharded)(IDS).logits)
    # A parent in shards is read as well.
    shards = parent.with_name("shards")
    load(parent, torch.float32).save_pretrained(shards, max_shard_size="40KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (shards / name).write_bytes((parent / name).read_bytes())
    again = load(build_moe(small(shards, prompts, top_k=8), tmp_path / "again").out)
    for layer in again.model.layers[2:]:
        torch.nn.init.zeros_(layer.mlp.gate.weight)
    with torch.no_grad():
        found, expected = again(IDS).logits, load(parent)(IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Qwen2Moe", {"num_experts": 4, "num_experts_per_tok": 2}, "mixture of experts already"),
        ("Gemma", {"head_dim": 8}, "is a GemmaForCausalLM, .* LlamaForCausalLM and Qwen2For"),
        ("Llama", {"head_dim": 16}, "attention heads of 16 numbers"),
        ("Llama", {"attention_bias": True}, "a bias on its attention's output"),
        ("Llama", {"mlp_bias": True}, "biases in its feed-forward networks"),
        ("Llama", {"hidden_act": "gelu"}, "the activation 'gelu' instead of 'silu'"),
        ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "sliding-window"),
    ],
)
def test_a_parent_that_cannot_be_expressed_is_refused(
    family: str,
    changes: dict[str, Any],
    message: str,
    make_parent: MakeParent,
    prompts: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=message):
        build_moe(small(make_parent(family, **changes), prompts), tmp_path / "moe")
    assert not (tmp_path / "moe.partial").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 5}, "has 4 layers; 5 of them"),
        ({"layers": 0}, "has 4 layers; 0 of them"),
        ({"top_k": 9}, "9 of 8 experts cannot be on"),
        ({"top_k": 0}, "0 of 8 experts cannot be on"),
        ({"experts": 1, "top_k": 1}, "at least two experts"),
        ({"shared": 5}, "A shared expert of 5 neurons"),
        ({"experts": 100, "top_k": 1}, "fewer than 8"),
        ({"calibrate": Path("nowhere.jsonl")}, "nowhere.jsonl"),
        ({"part": Path("nowhere")}, "no readable part in nowhere"),
        ({"measure": Path("nowhere.jsonl")}, "nowhere.jsonl"),
        ({"train": (Path("nowhere.parquet"),)}, "nowhere.parquet"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, make_parent: MakeParent, prompts: Path, tmp_path: Path
) -> None:
    parent = make_parent("Llama")
    with pytest.raises(InputError, match=message):
        build_moe(small(parent, prompts, **changes), tmp_path / "moe")
    assert not (tmp_path / "moe.partial").exists()
    with pytest.raises(InputError, match="There is no folder"):
        build_moe(Build(parent="no/such/folder"), tmp_path / "moe")


def test_other_peoples_files_are_left_alone(
    make_parent: MakeParent, prompts: Path, tmp_path: Path
) -> None:
    parent = make_parent("Llama")
    out = tmp_path / "moe"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty"):
        build_moe(small(parent, prompts), out)
    (out / "thesis.txt").unlink()
    work = tmp_path / "moe.partial"
    work.mkdir()
    with pytest.raises(InputError, match="work of another build"):
        build_moe(small(parent, prompts), out)
    work.rmdir()
    assert build_moe(small(parent, prompts), out).out == out


def test_a_part_of_another_parent_or_with_damage_is_refused(
    make_parent: MakeParent, prompts: Path, tmp_path: Path
) -> None:
    parent, stranger = make_parent("Llama"), make_parent("Llama", seed=1)
    part = tmp_path / "part"
    build_moe(small(parent, prompts, save_part=part), tmp_path / "moe")

    def attempt(match: str, parent: Path = parent, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            build_moe(Build(parent=str(parent), part=part, **changes), tmp_path / "other")

    attempt("was made for the parent", stranger)
    attempt("has experts 8, not 4; leave the option out", experts=4)
    attempt("shared expert of 32 neurons", shared=40)
    tensors = load_file(part / "part.safetensors")
    save_file(tensors | {"2.shared": tensors["2.shared"] + 1}, part / "part.safetensors")
    attempt("is damaged")
    save_file({"2.shared": tensors["2.shared"]}, part / "part.safetensors")
    attempt("is damaged")
    (part / "part.safetensors").write_bytes(b"nonsense")
    attempt("no readable part")
    (part / "part.json").write_text('{"format": 2}')
    save_file(tensors, part / "part.safetensors")
    attempt("is not of format 1")
    with pytest.raises(InputError, match="no readable part"):
        read_part(tmp_path / "nowhere")
