"""What is wrong with a pool file, in one sentence with the place and what is possible there."""

from __future__ import annotations

import json
from typing import Any, cast

from pydantic import ValidationError

from .specs import ENGINES, WEIGHTS, PoolFile, SamplingSpec

__all__ = ["explain"]


def explain(error: ValidationError, content: dict[str, Any]) -> str:
    """The first problem of a pool file in one sentence."""
    # A misspelt key is both unknown and missing; the unknown one shows what was meant.
    first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    place = _name_place(first["loc"], content)
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key; known here: {', '.join(_known_keys(first['loc']))}"
        case "union_tag_invalid":
            tag = json.dumps((first.get("ctx") or {}).get("tag"))
            return f"{place}: unknown engine {tag}; engines are {', '.join(ENGINES)}"
        case "union_tag_not_found":
            return f'{place}: the key "engine" is missing'
        case "missing":
            return f"{place}: this key is missing"
        case _:
            message = first["msg"].removeprefix("Value error, ")
            return f"{place}: {message[:1].lower()}{message[1:]} (got {str(first['input'])[:80]!r})"


def _name_place(location: tuple[int | str, ...], content: dict[str, Any]) -> str:
    """`experts.0.vllm.weights` as `expert "smol", weights`."""
    # pydantic names the union members it went through: experts.0.vllm.weights.hub.revision
    parts = [
        part
        for at, part in enumerate(location)
        if not (at == 2 and part in ENGINES)
        and not (at > 2 and location[at - 1] == "weights" and part in WEIGHTS)
    ]
    if len(parts) >= 2 and parts[0] == "experts" and isinstance(parts[1], int):
        experts = cast("list[object]", content.get("experts"))
        entry = experts[parts[1]]
        keys = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        alias = keys.get("alias", f"number {parts[1] + 1}")
        parts = [f'expert "{alias}"', *parts[2:]]
    return ", ".join(map(str, parts)) or "top level"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    for at, part in reversed(list(enumerate(location[:-1]))):
        if part in WEIGHTS and location[at - 1] == "weights":
            return list(WEIGHTS[str(part)].model_fields)
        if part == "sampling":
            return list(SamplingSpec.model_fields)
        if part in ENGINES:
            return list(ENGINES[str(part)].model_fields)
    return list(PoolFile.model_fields)
