"""What makes a mixture out of its parent: who is an expert, the routers, low-rank updates.

A part is small, while the mixture is as large as the parent: to give a trained mixture away, give its
part away. The same part and parent give the same mixture, bit for bit.

Shapes: D width of the residual stream, S shared neurons, E experts of M neurons, R rank, O outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ....retrieval import InputError
from .parent import Parent
from .split import Partition, Sizes

__all__ = ["Part", "Update", "read_part", "write_part"]

FORMAT = 1
FACTS = "part.json"
TENSORS = "part.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A low-rank change of one of the parent's matrices: `up_OR @ down_RD` is added."""

    down_RD: torch.Tensor
    up_OR: torch.Tensor

    def added_to(self, weight_OD: torch.Tensor) -> torch.Tensor:
        """The changed matrix in its own type; the sum is taken in float64, so that every machine agrees."""
        change_OD = self.up_OR.double() @ self.down_RD.double()
        return (weight_OD.double() + change_OD).to(weight_OD.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All that a mixture has and its parent has not."""

    parent: str
    """The parent's digest."""
    top_k: int
    partitions: Mapping[int, Partition]
    """By the layer's number, as is the next."""
    routers_ED: Mapping[int, torch.Tensor]
    updates: Mapping[str, Update] = field(default_factory=dict[str, Update])
    """By the name of the parent's matrix, such as `model.layers.7.mlp.up_proj.weight`."""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How it was made: plain JSON values."""

    @property
    def experts(self) -> int:
        """Routed experts of a layer."""
        return len(next(iter(self.routers_ED.values())))

    @property
    def sizes(self) -> Sizes:
        """Neurons of the experts."""
        any_layer = next(iter(self.partitions.values()))
        return Sizes(shared=len(any_layer.shared_S), expert=any_layer.routed_EM.shape[1])

    def check(self, parent: Parent, where: str) -> None:
        """Refuse a parent that this part was not made for.

        Raises:
            InputError: says what does not fit.
        """
        if parent.digest != self.parent:
            raise InputError(
                f"{where} was made for the parent {self.parent}, but {parent.name!r} is "
                f"{parent.digest}; give the parent that it belongs to."
            )
        wanted = list(range(parent.layers - len(self.routers_ED), parent.layers))
        shape = (self.experts, parent.config.hidden_size)
        if (
            sorted(self.routers_ED) != wanted
            or sorted(self.partitions) != wanted
            or any(tuple(router.shape) != shape for router in self.routers_ED.values())
            or any(
                partition.routed_EM.shape != (self.experts, self.sizes.expert)
                or not partition.covers(parent.neurons)
                for partition in self.partitions.values()
            )
            or not 1 <= self.top_k <= self.experts
        ):
            raise InputError(f"{where} is damaged: its layers or experts do not fit the parent.")


def write_part(part: Part, folder: Path) -> int:
    """Write two files into `folder`, which is made; return their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for number, partition in part.partitions.items():
        tensors[f"{number}.shared"] = partition.shared_S.to(torch.int32)
        tensors[f"{number}.routed"] = partition.routed_EM.to(torch.int32)
        tensors[f"{number}.router"] = part.routers_ED[number]
    for name, update in part.updates.items():
        tensors[f"{name}.down"] = update.down_RD
        tensors[f"{name}.up"] = update.up_OR
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    facts = {
        "format": FORMAT,
        "parent": part.parent,
        "top_k": part.top_k,
        "layers": sorted(part.partitions),
        "made": dict(part.facts),
    }
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")
    return sum((folder / name).stat().st_size for name in (FACTS, TENSORS))


def read_part(folder: Path) -> Part:
    """Read what `write_part` wrote.

    Raises:
        InputError: no such part, another format, or damaged files.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"There is no readable part in {folder} ({error}); it needs {FACTS} and {TENSORS}, "
            "as --save-part writes them."
        ) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{folder / FACTS} is not of format {FORMAT}; make the part again.")
    try:
        if not facts["layers"]:
            raise ValueError("it has no layers")
        return Part(
            parent=facts["parent"],
            top_k=int(facts["top_k"]),
            partitions={
                number: Partition(
                    shared_S=tensors.pop(f"{number}.shared").long(),
                    routed_EM=tensors.pop(f"{number}.routed").long(),
                )
                for number in facts["layers"]
            },
            routers_ED={number: tensors.pop(f"{number}.router") for number in facts["layers"]},
            updates={
                name.removesuffix(".up"): Update(
                    down_RD=tensors[f"{name.removesuffix('.up')}.down"], up_OR=tensor
                )
                for name, tensor in sorted(tensors.items())
                if name.endswith(".up")
            },
            facts=facts.get("made", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"The part in {folder} is damaged ({error}); make it again.") from error
