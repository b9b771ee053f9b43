"""Which pool file is meant, and whether what it names is there."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..agents import Catalog
from ..agents.engines import EngineError
from ..agents.pool import Group, group_experts
from ..agents.pool.assembly import build_engine, prepare
from ..agents.pool.devices import on_cuda
from ..agents.pool.local_host import LocalHost
from ..retrieval import InputError

__all__ = ["PoolCheck", "check_pool", "find_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCheck:
    """One group of experts: whether it could be loaded, and what it needs."""

    weights: str
    engine: str
    experts: tuple[str, ...]
    memory_bytes: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """The check as plain JSON values."""
        return asdict(self)


def find_pool(pool: Path | None) -> Path:
    """The pool file given, else `pool.yaml` here, else the built-in one for laptops."""
    if pool is not None:
        return pool
    if Path("pool.yaml").is_file():
        return Path("pool.yaml")
    return Path(str(resources.files("expertmix.agents.pool") / "laptop.yaml"))


def check_pool(catalog: Catalog) -> list[PoolCheck]:
    """Find every expert's weights and ask every address, without loading a model."""
    return [_check_group(group, catalog) for group in group_experts(catalog)]


def _check_group(group: Group, catalog: Catalog) -> PoolCheck:
    memory, problem = 0, ""
    try:
        prepared = prepare(group, catalog)
        memory = prepared.memory_bytes
        if group.local:
            problem = "" if on_cuda() else _lacks_memory(catalog, memory)
        else:
            asyncio.run(_reach(prepared, catalog))
    except InputError as error:
        problem = str(error)
    except EngineError as error:
        problem = error.failure.message
    return PoolCheck(
        weights=group.name,
        engine=group.specs[0].engine,
        experts=group.aliases,
        memory_bytes=memory,
        problem=problem,
    )


async def _reach(prepared: Any, catalog: Catalog) -> None:
    engine = build_engine(prepared, catalog)
    try:
        await engine.start()
    finally:
        await engine.close()


def _lacks_memory(catalog: Catalog, memory: int) -> str:
    host = LocalHost(catalog)
    limit = max(min(d.memory_bytes, host.memory_in_reach(d)) for d in host.devices)
    if memory <= limit:
        return ""
    return f"needs about {memory / 2**30:.1f} GiB, {limit / 2**30:.1f} GiB may be used"
