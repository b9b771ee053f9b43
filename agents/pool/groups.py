"""Experts that one engine serves: the same weights, whatever their personas and adapters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .catalog import Catalog
from .endpoints import EndpointSettings, find_endpoints, normalise_address
from .specs import (
    ChatModelExpert,
    ExpertSpec,
    GivenExpert,
    OpenAIExpert,
    ReplayExpert,
    ScriptedExpert,
    TransformersExpert,
    VllmExpert,
)

__all__ = ["Group", "group_experts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Experts that one engine serves: the same weights, whatever their personas and adapters."""

    key: str
    """The same for the same weights and engine settings, in every process."""
    name: str
    """What a person calls the weights."""
    specs: tuple[ExpertSpec, ...]
    adapters: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Adapter name (an expert's alias) to folder."""
    one_at_a_time: bool = False
    """Whether its address loads one model at a time."""

    @property
    def local(self) -> bool:
        """Whether its engine takes memory, so that models may have to take turns."""
        spec = self.specs[0]
        if isinstance(spec, GivenExpert | ScriptedExpert):
            return spec.memory_gib is not None
        return isinstance(spec, VllmExpert | TransformersExpert)

    @property
    def takes_turns(self) -> bool:
        """Whether it can be asked only while it is loaded: here, or at an address with room for one."""
        return self.local or self.one_at_a_time

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its experts, in the pool file's order."""
        return tuple(spec.alias for spec in self.specs)


def group_experts(catalog: Catalog, aliases: Iterable[str] | None = None) -> list[Group]:
    """Group experts by what has to be loaded, in the pool file's order.

    Raises:
        InputError: an alias that the pool does not have, or a missing adapter folder.
    """
    wanted = set(catalog if aliases is None else aliases)
    for alias in wanted:
        _ = catalog[alias]
    endpoints = find_endpoints(catalog)
    members: dict[str, list[ExpertSpec]] = {}
    for alias, spec in catalog.items():
        if alias in wanted:
            members.setdefault(_identify(spec, catalog), []).append(spec)
    return [
        Group(
            key=key,
            name=_name_weights(specs[0]),
            specs=tuple(specs),
            adapters=_locate_adapters(specs, catalog),
            one_at_a_time=_takes_turns_elsewhere(specs[0], endpoints),
        )
        for key, specs in members.items()
    ]


def _identify(spec: ExpertSpec, catalog: Catalog) -> str:
    """What has to be the same for two experts to share one engine."""
    match spec:
        case VllmExpert() | TransformersExpert():
            # Not the context length: the group is given the longest that one of its experts wants.
            parts: dict[str, Any] = spec.model_dump(
                mode="json",
                include={
                    "engine",
                    "weights",
                    "merge",
                    "split",
                    "remix",
                    "dtype",
                    "chat_template",
                },
            )
            parts["root"] = str(catalog.root)
        case OpenAIExpert():
            parts = spec.model_dump(mode="json", include={"engine", "model", "api_key_env"})
            parts["address"] = normalise_address(spec.address)
        case ChatModelExpert():
            parts = spec.model_dump(mode="json", include={"engine", "model"})
        case ReplayExpert():
            parts = spec.model_dump(mode="json", include={"engine", "table", "model"})
        case ScriptedExpert():
            parts = spec.model_dump(mode="json", include={"engine", "script"})
        case GivenExpert():
            parts = spec.model_dump(mode="json", include={"engine", "alias"})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _takes_turns_elsewhere(spec: ExpertSpec, endpoints: Mapping[str, EndpointSettings]) -> bool:
    if not isinstance(spec, OpenAIExpert):
        return False
    return endpoints[normalise_address(spec.address)].one_model_at_a_time


def _name_weights(spec: ExpertSpec) -> str:
    match spec:
        case VllmExpert() | TransformersExpert():
            name = str(next(iter(spec.weights.model_dump().values())))
            name = name if spec.merge is None else f"{name} + {spec.merge}"
            return name if spec.split is None else f"{name} in {spec.split.experts} experts"
        case OpenAIExpert() | ChatModelExpert() | ReplayExpert():
            return spec.model
        case ScriptedExpert():
            return spec.script
        case GivenExpert():
            return spec.alias


def _locate_adapters(specs: Iterable[ExpertSpec], catalog: Catalog) -> dict[str, Path]:
    return {
        spec.alias: catalog.locate(spec.adapter)
        for spec in specs
        if isinstance(spec, VllmExpert) and spec.adapter is not None
    }
