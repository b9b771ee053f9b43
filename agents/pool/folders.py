"""What a model folder holds, and whether it is safe to load.

Weights must be safetensors: the other formats run code when they are opened. A config must not name
code either: `auto_map` and its kin have led transformers to run code even with
`trust_remote_code=False` (CVE-2026-4372).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...retrieval import InputError

__all__ = ["FolderFacts", "check_configs", "inspect_folder", "model_files"]

UNSAFE_KEYS = frozenset({"auto_map", "_attn_implementation_internal", "trust_remote_code"})
PICKLED = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
MODEL_SUFFIXES = frozenset({".jinja", ".json", ".model", ".safetensors", ".txt"})
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """A model folder that was looked through."""

    folder: Path
    bytes: int
    architecture: str | None
    context_length: int | None
    dtype: str | None
    quantised: bool
    vocabulary: int
    """Number of different tokens; 0 if the config does not say."""
    tied_values: int
    """Numbers in the output layer where it shares the embedding's weights, else 0."""


def inspect_folder(folder: Path, *, within: Path | None = None) -> FolderFacts:
    """Refuse a folder that is incomplete or unsafe; otherwise tell what it holds.

    Args:
        folder: A model folder as transformers writes it.
        within: If given, files must lie there also after following links.

    Raises:
        InputError: no config, no safetensors, missing shards, unsafe keys, files outside `within`.
    """
    files = model_files(folder)
    if within is not None:
        _check_links(files, within.resolve())
    check_configs(folder)
    weights = [file for file in files if file.suffix == ".safetensors"]
    if not weights:
        raise InputError(_no_safetensors(folder))
    _check_shards(folder)
    config = _read(folder / "config.json")
    text: dict[str, Any] = config.get("text_config") or {}
    return FolderFacts(
        folder=folder,
        bytes=sum(file.stat().st_size for file in weights),
        architecture=_text(next(iter(config.get("architectures") or ()), config.get("model_type"))),
        context_length=_context_length(config) or _context_length(text),
        dtype=_dtype(config) or _dtype(text),
        quantised="quantization_config" in config or "quantization_config" in text,
        vocabulary=_number(config, text, "vocab_size"),
        tied_values=_tied_values(config, text),
    )


def model_files(folder: Path) -> list[Path]:
    """Return the files at the top of `folder` that make up the model, sorted by name."""
    return sorted(
        file for file in folder.iterdir() if file.suffix in MODEL_SUFFIXES and file.is_file()
    )


def check_configs(folder: Path) -> None:
    """Refuse configs that would make a loader run code that is not ours.

    Raises:
        InputError: no config.json, one that is not a JSON object, or a key that names code.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json.")
    for file in sorted(folder.glob("*config*.json")):
        for key in _keys(_read(file)):
            raise InputError(
                f"{file} sets {key!r}, which can make a loader run code that comes with the "
                "weights; use weights without it (expertmix never runs such code)."
            )


def _keys(value: object) -> Iterator[str]:
    """Every unsafe key at any depth; an attention implementation that names a repository is one."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            is_kernel = "implementation" in key and isinstance(inner, str) and "/" in inner
            if key in UNSAFE_KEYS or is_kernel:
                yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _keys(inner)


def _read(file: Path) -> dict[str, Any]:
    try:
        value: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file} is not a JSON object.")
    return cast("dict[str, Any]", value)


def _check_links(files: list[Path], within: Path) -> None:
    for file in files:
        if not file.resolve().is_relative_to(within):
            raise InputError(
                f"{file} is a link that leaves the root {within}; put the file itself there."
            )


def _check_shards(folder: Path) -> None:
    if not (folder / INDEX).is_file():
        return
    names: set[object] = set(dict(_read(folder / INDEX).get("weight_map") or {}).values())
    missing = sorted(str(name) for name in names if not (folder / str(name)).is_file())
    if missing:
        raise InputError(
            f"The weights in {folder} are incomplete: {missing[0]} is missing "
            f"({len(missing)} of {len(names)} files); fetch them again."
        )


def _no_safetensors(folder: Path) -> str:
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if pickled:
        return (
            f"{folder} holds its weights only as {pickled[0]}, a format that can run code when it is "
            "opened; convert them to safetensors."
        )
    return f"{folder} holds no .safetensors weights."


def _context_length(config: dict[str, Any]) -> int | None:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(length := config.get(key), int):
            return length
    return None


def _tied_values(config: dict[str, Any], text: dict[str, Any]) -> int:
    # Absent means the architecture's own default; shared is the one that needs more memory.
    if config.get("tie_word_embeddings", text.get("tie_word_embeddings", True)) is False:
        return 0
    return _number(config, text, "vocab_size") * _number(config, text, "hidden_size")


def _number(config: dict[str, Any], text: dict[str, Any], key: str) -> int:
    value = config.get(key, text.get(key))
    return value if isinstance(value, int) else 0


def _dtype(config: dict[str, Any]) -> str | None:
    return _text(config.get("dtype") or config.get("torch_dtype"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
