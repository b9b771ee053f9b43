"""From "who answers what" to what is loaded, in which order, at what cost: printed before it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .catalog import Catalog
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

__all__ = ["Group", "LoadPlan", "PlannedGroup", "group_experts", "make_plan"]


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

    @property
    def local(self) -> bool:
        """Whether its engine holds weights in this machine's memory."""
        return isinstance(self.specs[0], VllmExpert | TransformersExpert)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its experts, in the pool file's order."""
        return tuple(spec.alias for spec in self.specs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGroup:
    """One load, and what it will be used for."""

    group: Group
    calls: Mapping[str, int]
    """Calls per alias."""
    memory_bytes: int | None
    """Estimated need; None when the weights run elsewhere."""
    tokens: int | None
    """Predicted generated tokens; None without a profile to predict from."""
    seconds: float | None
    """Predicted seconds of generation, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Every load of a run, in order."""

    groups: tuple[PlannedGroup, ...]

    @property
    def loads(self) -> int:
        """How many models are loaded: one per distinct weights that run on this machine."""
        return sum(planned.group.local for planned in self.groups)

    @property
    def calls(self) -> int:
        """Requests to all experts."""
        return sum(sum(planned.calls.values()) for planned in self.groups)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "loads": self.loads,
            "calls": self.calls,
            "groups": [
                {
                    "weights": planned.group.name,
                    "engine": planned.group.specs[0].engine,
                    "calls": dict(planned.calls),
                    "memory_bytes": planned.memory_bytes,
                    "tokens": planned.tokens,
                    "seconds": planned.seconds,
                }
                for planned in self.groups
            ],
        }


def group_experts(catalog: Catalog, aliases: Iterable[str] | None = None) -> list[Group]:
    """Group experts by what has to be loaded, in the pool file's order.

    Raises:
        InputError: an alias that the pool does not have, or a missing adapter folder.
    """
    wanted = set(catalog if aliases is None else aliases)
    for alias in wanted:
        _ = catalog[alias]
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
        )
        for key, specs in members.items()
    ]


def make_plan(
    catalog: Catalog,
    calls: Mapping[str, int],
    *,
    memory: Mapping[str, int] | None = None,
    tokens_per_call: Mapping[str, float] | None = None,
    seconds_per_call: Mapping[str, float] | None = None,
    last: Collection[str] = (),
) -> LoadPlan:
    """Plan one load per distinct weights.

    Args:
        catalog: The pool's experts.
        calls: Requests per alias; aliases without any are left out.
        memory: Estimated bytes per group key.
        tokens_per_call: Mean generated tokens per alias, from a profile.
        seconds_per_call: Mean seconds per alias, from a profile.
        last: Aliases that are asked again after the others (the aggregator): their weights are
            loaded last, so that they are still there when their second turn comes.
    """
    used = {alias: number for alias, number in calls.items() if number}
    groups = group_experts(catalog, used)
    groups.sort(key=lambda group: not set(last).isdisjoint(group.aliases))
    return LoadPlan(
        groups=tuple(
            PlannedGroup(
                group=group,
                calls={alias: used[alias] for alias in group.aliases if alias in used},
                memory_bytes=(memory or {}).get(group.key),
                tokens=_predict(tokens_per_call, used, group),
                seconds=_predict(seconds_per_call, used, group),
            )
            for group in groups
        )
    )


def _predict(
    per_call: Mapping[str, float] | None, calls: Mapping[str, int], group: Group
) -> int | None:
    asked = [alias for alias in group.aliases if alias in calls]
    if per_call is None or not all(alias in per_call for alias in asked):
        return None
    return round(sum(per_call[alias] * calls[alias] for alias in asked))


def _identify(spec: ExpertSpec, catalog: Catalog) -> str:
    """What has to be the same for two experts to share one engine."""
    match spec:
        case VllmExpert() | TransformersExpert():
            # Not the context length: the group is given the longest that one of its experts wants.
            parts: dict[str, Any] = spec.model_dump(
                mode="json", include={"engine", "weights", "merge", "dtype", "chat_template"}
            )
            parts["root"] = str(catalog.root)
        case OpenAIExpert():
            parts = spec.model_dump(
                mode="json", include={"engine", "address", "model", "api_key_env"}
            )
        case ChatModelExpert():
            parts = spec.model_dump(mode="json", include={"engine", "model"})
        case ReplayExpert():
            parts = spec.model_dump(mode="json", include={"engine", "table", "model"})
        case ScriptedExpert():
            parts = spec.model_dump(mode="json", include={"engine", "script"})
        case GivenExpert():
            parts = spec.model_dump(mode="json", include={"engine", "alias"})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _name_weights(spec: ExpertSpec) -> str:
    match spec:
        case VllmExpert() | TransformersExpert():
            name = str(next(iter(spec.weights.model_dump().values())))
            return name if spec.merge is None else f"{name} + {spec.merge}"
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
