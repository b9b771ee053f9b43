"""Which weights can replace each other in place: those that differ in nothing but their numbers.

vLLM swaps numbers into an engine that is built already; it keeps the tokenizer, the template and every
shape. So all of that has to be the same, and is compared here, from the files' headers, before anybody tries.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...retrieval import InputError
from .weights import ResolvedWeights

__all__ = ["find_family", "read_shapes"]

INCIDENTAL = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})
"""Keys of a config that say where it comes from. The type of the numbers is compared as loaded."""

KEPT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_LONGEST_HEADER = 100 << 20  # bytes, safetensors' own limit


def find_family(weights: ResolvedWeights, *, settings: Mapping[str, Any]) -> str | None:
    """A hash that is equal for weights that can replace each other; None where that is not known to work.

    Args:
        weights: Whose files lie here.
        settings: What else the engine is built with: type, context length, cache, template, …
    """
    if weights.quantised:
        return None
    config = json.loads((weights.model / "config.json").read_text(encoding="utf-8"))
    told = {key: value for key, value in config.items() if key not in INCIDENTAL}
    kept = {
        name: hashlib.sha256((weights.model / name).read_bytes()).hexdigest()
        for name in KEPT_FILES
        if (weights.model / name).is_file()
    }
    parts = [told, kept, read_shapes(weights.model), dict(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_shapes(folder: Path) -> dict[str, Any]:
    """Name → [type, shape] of every tensor in a folder's safetensors files, from their headers alone.

    Raises:
        InputError: a file is none, or was cut off.
    """
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            header = _read_header(file)
            for name, tensor in header.items():
                if name != "__metadata__":
                    found[name] = [tensor["dtype"], tensor["shape"]]
        except (struct.error, ValueError, LookupError, TypeError):
            raise InputError(
                f"{file} is no safetensors file, or was cut off; fetch it again"
            ) from None
    return found


def _read_header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError("a header of that length is none")
        return cast("dict[str, Any]", json.loads(stream.read(length)))
