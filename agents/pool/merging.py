"""A LoRA adapter merged into its base weights: distinct weights that run at full speed."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from ...retrieval import InputError
from .conversion import cache_folder, make_entry, run_child
from .weights import ResolvedWeights

__all__ = ["hash_adapter", "merged"]

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def merged(
    weights: ResolvedWeights, adapter: Path, *, cache: Path | None = None
) -> ResolvedWeights:
    """Weights with an adapter added to them, made once and kept in the cache.

    Args:
        weights: The base that the adapter was trained on.
        adapter: PEFT folder.
        cache: As for `resolve_weights`.

    Raises:
        InputError: the folder holds no adapter, it does not fit the base, or the cache cannot be
            written.
    """
    digest = hash_adapter(adapter)
    entry = (cache_folder() if cache is None else cache) / "weights"
    revision = hashlib.sha256(f"{weights.key}:{digest}".encode()).hexdigest()[:40]

    def fill(draft: Path) -> None:
        if (reason := run_child("merge", weights.model, adapter, draft)) is not None:
            raise InputError(f"The adapter in {adapter} cannot be merged: {reason}")

    folder = make_entry(entry / f"{revision}-merged", fill)
    return dataclasses.replace(
        weights, model=folder, revision=revision, key=f"{weights.key}+{digest}"
    )


def hash_adapter(adapter: Path) -> str:
    """A sha256 over an adapter's configuration and weights.

    Raises:
        InputError: the folder holds no PEFT adapter in safetensors.
    """
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        if not (adapter / name).is_file():
            raise InputError(
                f"The adapter folder {adapter} has no {name}; a PEFT adapter saved as safetensors has"
                f" {' and '.join(ADAPTER_FILES)}."
            )
        digest.update((adapter / name).read_bytes())
    return digest.hexdigest()
