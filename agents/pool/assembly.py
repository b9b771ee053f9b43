"""From a group of experts to the engine that serves them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...retrieval import InputError
from ..engines import Engine
from .catalog import Catalog
from .merging import hash_adapter, merged
from .plan import Group
from .specs import (
    ChatModelExpert,
    GivenExpert,
    OpenAIExpert,
    ReplayExpert,
    ScriptedExpert,
    TransformersExpert,
    VllmExpert,
)
from .weights import ResolvedWeights, estimate_memory, resolve_weights

if TYPE_CHECKING:
    from ..engines.launcher import Launcher

__all__ = ["Prepared", "build_engine", "on_cuda", "prepare"]

DEFAULT_CONTEXT = 2048
DEFAULT_KV_CACHE_MIB = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A group whose weights were found, but not loaded."""

    group: Group
    identity: str
    """What its answers depend on besides the request: revisions, dtype, template, adapters."""
    memory_bytes: int
    """Estimated need on this machine; 0 when it runs elsewhere."""
    weights: ResolvedWeights | None = None


def prepare(group: Group, catalog: Catalog) -> Prepared:
    """Find a group's weights (converting packaged ones the first time) and what they will need.

    Raises:
        InputError: weights, adapters, recordings or scripts that are not there or not allowed.
    """
    spec = group.specs[0]
    match spec:
        case VllmExpert() | TransformersExpert():
            weights = resolve_weights(spec.weights, root=catalog.root)
            if spec.merge is not None:
                weights = merged(weights, catalog.locate(spec.merge))
            adapters = sorted((alias, hash_adapter(path)) for alias, path in group.adapters.items())
            template = _read_template(spec.chat_template, catalog)
            return Prepared(
                group=group,
                identity=_hash(
                    spec.engine,
                    weights.key,
                    weights.revision,
                    spec.dtype,
                    template,
                    adapters,
                    _context(group),
                ),
                memory_bytes=_need(group, weights),
                weights=weights,
            )
        case OpenAIExpert() | ChatModelExpert() | ReplayExpert() | GivenExpert():
            return Prepared(group=group, identity=group.key, memory_bytes=0)
        case ScriptedExpert():
            content = catalog.locate(spec.script).read_bytes()
            identity = _hash(group.key, hashlib.sha256(content).hexdigest())
            return Prepared(group=group, identity=identity, memory_bytes=0)


def build_engine(
    prepared: Prepared,
    catalog: Catalog,
    launcher: Launcher | None = None,
    given: Mapping[str, Engine] | None = None,
) -> Engine:
    """The engine of a prepared group, not started yet.

    Raises:
        InputError: a key that is not set, recordings that are not there, an engine that was not given.
    """
    group = prepared.group
    spec = group.specs[0]
    match spec:
        case VllmExpert():
            from ..engines.vllm import VllmEngine

            assert prepared.weights is not None
            return VllmEngine(
                group.name,
                prepared.weights.model,
                dtype=spec.dtype,
                context_length=_context(group),
                adapters=group.adapters,
                chat_template=_read_template(spec.chat_template, catalog),
                kv_cache_bytes=None if on_cuda() else _kv_cache_bytes(group),
                gpu_memory_utilization=spec.gpu_memory_utilization,
                launcher=launcher,
            )
        case TransformersExpert():
            from ..engines.transformers import TransformersEngine

            assert prepared.weights is not None
            return TransformersEngine(
                group.name,
                prepared.weights.model,
                dtype=spec.dtype,
                context_length=_context(group),
                chat_template=_read_template(spec.chat_template, catalog),
            )
        case OpenAIExpert():
            from ..engines.openai import OpenAIEngine

            return OpenAIEngine(
                group.name,
                spec.address,
                spec.model,
                api_key=_read_key(spec.api_key_env),
                timeout=spec.timeout,
                retries=spec.retries,
                concurrency=spec.concurrency,
            )
        case ChatModelExpert():
            from ..engines.chat_model import ChatModelEngine

            return ChatModelEngine.from_name(spec.model)
        case ReplayExpert():
            from ..engines.replay import ReplayEngine

            return ReplayEngine(group.name, catalog.locate(spec.table), spec.model)
        case ScriptedExpert():
            from ..engines.scripted import ScriptedEngine

            return ScriptedEngine.from_file(group.name, catalog.locate(spec.script))
        case GivenExpert():
            if given is None or spec.alias not in given:
                raise InputError(
                    f'the engine of "{spec.alias}" is to be given by the program: '
                    f'Pool(catalog, engines={{"{spec.alias}": engine}})'
                )
            return given[spec.alias]


def _local_specs(group: Group) -> Iterable[VllmExpert | TransformersExpert]:
    return (s for s in group.specs if isinstance(s, VllmExpert | TransformersExpert))


def _context(group: Group) -> int:
    return max(spec.context or DEFAULT_CONTEXT for spec in _local_specs(group))


def _kv_cache_bytes(group: Group) -> int:
    wanted = [spec.kv_cache_mib for spec in _local_specs(group) if isinstance(spec, VllmExpert)]
    return max(mib or DEFAULT_KV_CACHE_MIB for mib in wanted) << 20


def _need(group: Group, weights: ResolvedWeights) -> int:
    stated = [spec.memory_gib for spec in _local_specs(group) if spec.memory_gib is not None]
    if stated:
        return round(max(stated) * 2**30)
    spec = next(iter(_local_specs(group)))
    kv_cache = _kv_cache_bytes(group) if isinstance(spec, VllmExpert) else 0
    return estimate_memory(weights, dtype=spec.dtype, kv_cache_bytes=kv_cache)


def on_cuda() -> bool:
    """Whether vLLM will run on a GPU, told without importing torch."""
    return os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _read_template(name: str | None, catalog: Catalog) -> str | None:
    """The template's text; `plain` is the one we ship and stays a name."""
    if name is None or name == "plain":
        return name
    return catalog.locate(name).read_text(encoding="utf-8")


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise InputError(f"the environment variable {variable} (api_key_env) is not set")
    return os.environ[variable]


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
