"""Dense weights made into a mixture of experts: once, in the cache, by `expertmix moe build`'s method."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ...retrieval import InputError
from .conversion import cache_folder, make_entry, run_child
from .weights import ResolvedWeights

if TYPE_CHECKING:
    from .specs import SplitSpec

__all__ = ["split_up"]


METHOD = 1
"""Of splitting: what an older one made is not taken for what this one makes."""


def split_up(
    weights: ResolvedWeights, split: SplitSpec, *, cache: Path | None = None
) -> ResolvedWeights:
    """The same weights with their upper feed-forward layers as experts behind routers.

    Args:
        weights: Of a small dense model.
        split: How many layers and experts.
        cache: As for `resolve_weights`.

    Raises:
        InputError: the model cannot be split so, or the cache cannot be written.
    """
    told = f"{split.layers}-{split.experts}-{split.top_k}-v{METHOD}"
    entry = (cache_folder() if cache is None else cache) / "weights"
    revision = hashlib.sha256(f"{weights.key}:split:{told}".encode()).hexdigest()[:40]

    def fill(draft: Path) -> None:
        numbers = (str(split.layers), str(split.experts), str(split.top_k))
        if (reason := run_child("split", weights.model, draft, *numbers)) is not None:
            raise InputError(f"The weights in {weights.model} cannot be split: {reason}")

    folder = make_entry(entry / f"{revision}-split", fill)
    return dataclasses.replace(
        weights,
        model=folder,
        revision=revision,
        key=f"{weights.key}+split:{told}",
        architecture="Qwen2MoeForCausalLM",
    )
