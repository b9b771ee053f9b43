"""A mixture of experts as the files that transformers and vLLM load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ....retrieval import InputError
from .parent import Parent
from .part import Part
from .split import Experts, FeedForward, split

__all__ = ["copy_companions", "write_model"]

COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
SHARD_BYTES = 1 << 30
NETWORK = re.compile(r"model\.layers\.(\d+)\.mlp\.(?:gate|up|down)_proj\.weight")
PROJECTION = re.compile(r"(model\.layers\.\d+\.self_attn\.[qkv]_proj)\.weight")


def write_model(folder: Path, parent: Parent, part: Part, config: Mapping[str, Any]) -> int:
    """Write `config.json` and the safetensors, of which at most one shard is in memory.

    Args:
        folder: Where to; it exists.
        parent: Whose tensors are taken over, changed as the part says.
        part: Which layers become mixtures.
        config: What `config.json` says.

    Returns:
        How many numbers the tensors hold.
    """
    names: list[list[str]] = []
    count = size = 0
    for shard in _shards(_tensors(parent, part)):
        save_file(shard, folder / _draft_name(len(names)), metadata={"format": "pt"})
        names.append(list(shard))
        count += sum(tensor.numel() for tensor in shard.values())
        size += sum(tensor.numel() * tensor.element_size() for tensor in shard.values())
    _write_json(folder / "config.json", config)
    for number in range(len(names)):  # safetensors makes files that nobody else may read
        shutil.copymode(folder / "config.json", folder / _draft_name(number))
    _name_shards(folder, names, size)
    return count


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation settings."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _tensors(parent: Parent, part: Part) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of the mixture: the parent's in the order of its files, then the experts'."""
    where = parent.tensor_files()
    missing = set(part.updates) - set(where)
    if missing:
        raise InputError(f"The parent has no tensor {min(missing)!r}, which the part changes.")
    for file in sorted(set(where.values())):
        with safe_open(file, framework="pt") as stored:
            for name in sorted(stored.keys()):
                network = NETWORK.fullmatch(name)
                if network and int(network[1]) in part.partitions:
                    continue
                tensor = _changed(name, stored.get_tensor(name), part)
                yield name, tensor
                projection = PROJECTION.fullmatch(name)
                if projection and f"{projection[1]}.bias" not in where:
                    yield f"{projection[1]}.bias", torch.zeros(len(tensor), dtype=tensor.dtype)
    for number in sorted(part.partitions):
        dense = _feed_forward(where, number, part)
        experts = split(dense, part.partitions[number])
        router_ED = part.routers_ED[number].to(dense.gate_ID.dtype)
        yield from _expert_tensors(number, experts, router_ED)


def _changed(name: str, weight: torch.Tensor, part: Part) -> torch.Tensor:
    update = part.updates.get(name)
    return weight if update is None else update.added_to(weight)


def _feed_forward(where: Mapping[str, Path], number: int, part: Part) -> FeedForward:
    def read(kind: str) -> torch.Tensor:
        name = f"model.layers.{number}.mlp.{kind}_proj.weight"
        if name not in where:
            raise InputError(f"The parent has no tensor {name!r}; its files are not whole.")
        with safe_open(where[name], framework="pt") as stored:
            return _changed(name, stored.get_tensor(name), part)

    return FeedForward(gate_ID=read("gate"), up_ID=read("up"), down_DI=read("down"))


def _expert_tensors(
    number: int, experts: Experts, router_ED: torch.Tensor
) -> Iterable[tuple[str, torch.Tensor]]:
    """The tensors of a Qwen2-MoE layer under the names that both loaders know."""
    head = f"model.layers.{number}.mlp"
    tensors = {
        f"{head}.gate.weight": router_ED,
        f"{head}.shared_expert_gate.weight": torch.zeros_like(router_ED[:1]),
        f"{head}.shared_expert.gate_proj.weight": experts.shared_gate_SD,
        f"{head}.shared_expert.up_proj.weight": experts.shared_up_SD,
        f"{head}.shared_expert.down_proj.weight": experts.shared_down_DS,
    }
    for expert in range(len(router_ED)):
        tensors |= {
            f"{head}.experts.{expert}.gate_proj.weight": experts.gate_EMD[expert],
            f"{head}.experts.{expert}.up_proj.weight": experts.up_EMD[expert],
            f"{head}.experts.{expert}.down_proj.weight": experts.down_EDM[expert],
        }
    # Rows of a stack share its memory, which safetensors refuses.
    return (
        (name, tensor.clone(memory_format=torch.contiguous_format))
        for name, tensor in tensors.items()
    )


def _shards(
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        more = tensor.numel() * tensor.element_size()
        if shard and size + more > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += more
    if shard:
        yield shard


def _draft_name(number: int) -> str:
    return f"shard-{number}.draft"


def _name_shards(folder: Path, names: list[list[str]], size: int) -> None:
    """Give the shards the names that loaders look for, and write their index if there are several."""
    if len(names) == 1:
        (folder / _draft_name(0)).rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(names):
        file = f"model-{number + 1:05}-of-{len(names):05}.safetensors"
        (folder / _draft_name(number)).rename(folder / file)
        where |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(dict(value), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
