"""The nodes of a Ray cluster, and the devices that they have."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...retrieval import InputError
from ..engines.reasons import root_reason
from .catalog import Catalog
from .devices import CPU, FREE_MEMORY_SHARE, MOST_LANES, Device

__all__ = ["Node", "find_nodes", "list_devices", "read_gpu_memory"]

_PROBE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of the cluster, as Ray counts it."""

    name: str
    """`node-1`, … by address: the same every time as long as the addresses stay."""
    id: str
    cpus: int
    gpus: int
    memory_bytes: int
    """Main memory that Ray lets tasks have."""


def find_nodes() -> tuple[Node, ...]:
    """The nodes that are alive, in the order of their addresses. Ray is connected."""
    import ray

    alive: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    ordered = sorted(alive, key=lambda node: (_rank(node["NodeManagerAddress"]), node["NodeID"]))
    return tuple(
        Node(
            name=f"node-{number}",
            id=node["NodeID"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            memory_bytes=int(node["Resources"].get("memory", 0)),
        )
        for number, node in enumerate(ordered, start=1)
    )


def _rank(address: str) -> tuple[int, str]:
    """An order in which 10.0.0.9 comes before 10.0.0.10."""
    try:
        return int(ipaddress.ip_address(address)), address
    except ValueError:
        return 0, address


def list_devices(catalog: Catalog, nodes: Sequence[Node]) -> dict[Device, Node]:
    """The devices that the pool file names, on every node that has them; or all GPUs, or all processors.

    Raises:
        InputError: no node has a device that the pool file names, or a GPU does not tell its memory.
    """
    named = [spec.name for spec in catalog.file.devices]
    usual = _name_devices(nodes)
    for name in named:
        if not any(name in _own(node) for node in nodes):
            there = ", ".join(f"{node.name}/{own}" for node in nodes for own in _own(node))
            raise InputError(f'no node has a device "{name}"; there is {there}')
    return {
        _describe(catalog, node, name): node
        for node in nodes
        for name in _own(node)
        if name in (named or usual)
    }


def _own(node: Node) -> list[str]:
    return ([CPU] if node.cpus else []) + [f"cuda:{index}" for index in range(node.gpus)]


def _name_devices(nodes: Sequence[Node]) -> set[str]:
    gpus = {name for node in nodes for name in _own(node) if name != CPU}
    return gpus or {CPU}


def _describe(catalog: Catalog, node: Node, name: str) -> Device:
    """One device; memory and lanes by the same rule as on one machine (`find_devices`)."""
    spec = next((spec for spec in catalog.file.devices if spec.name == name), None)
    stated = spec.memory_gib if spec is not None else catalog.file.memory_gib
    lanes = (spec.parallel if spec is not None else None) or catalog.file.parallel
    if stated is not None:
        memory = round(stated * 2**30)
    else:
        memory = node.memory_bytes if name == CPU else _probe_gpu(node)
    usual = _count_lanes(node) if name == CPU else 1
    return Device(name=f"{node.name}/{name}", memory_bytes=memory, lanes=lanes or usual)


def _count_lanes(node: Node) -> int:
    threads = os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]
    each = int(threads) if threads.isdigit() and int(threads) else 1
    return max(1, min(MOST_LANES, node.cpus // each))


def _probe_gpu(node: Node) -> int:
    """Bytes of a node's smallest GPU, since Ray decides which one an engine is given."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    make: Any = ray.remote
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task = make(num_cpus=0, scheduling_strategy=strategy)(read_gpu_memory)
    try:
        told: list[int] = ray.get(task.remote(), timeout=_PROBE_SECONDS)
    except RayError as error:
        reason = root_reason(getattr(error, "cause", None) or error)
        raise InputError(f"{node.name} does not tell its GPUs' memory: {reason}") from None
    return round(min(told) * FREE_MEMORY_SHARE)


def read_gpu_memory() -> list[int]:
    """Total bytes of every GPU of this machine, as the driver's own tool tells them.

    Raises:
        InputError: the tool does not tell.
    """
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return [int(line) << 20 for line in told.split("\n") if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise InputError(f"{error}; state memory_gib in the pool file") from None
