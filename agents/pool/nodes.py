"""The nodes of a Ray cluster: reached, looked up, and read as devices."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...retrieval import InputError
from ..engines.reasons import root_reason
from .catalog import Catalog
from .devices import CPU, FREE_MEMORY_SHARE, MOST_LANES, Device

__all__ = ["Node", "connect", "find_nodes", "list_devices", "read_gpu_memory"]

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints the death of a worker on our standard output; who is concerned says it in a reply.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
# Despite its name it decides everywhere whether Ray listens on all interfaces or on this one's own.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_OBJECT_STORE_BYTES = 100 << 20  # replies are small, and weights never go through it
_PROBE_SECONDS = 60.0
_KNOCK_SECONDS = 5.0


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


def connect(address: str | None) -> bool:
    """Connect this process to Ray, unless it is connected already. Blocks for seconds.

    Args:
        address: Of a cluster, as `ray.init` takes it. None stands for the variable `RAY_ADDRESS`, and
            without that for a cluster on this machine alone, which only this machine can reach.

    Returns:
        Whether there is now a connection that was not there before.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise InputError(
            f"Ray's client protocol ({address}) cannot stream replies; run the program on a node of the "
            'cluster, with the address "auto"'
        )
    is_local = address == "local"
    if is_local and "ray" not in sys.modules:  # Ray sets it too, from 2.60 on, and leaves it set
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    with _environment({**_QUIET, **(_LOOPBACK if is_local else {})}):
        ray = _import_ray()
        if ray.is_initialized():
            return False
        options = _local_options(ray) if is_local else {}
        try:
            _knock(address)
            ray.init(address, log_to_driver=False, logging_level="error", **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise InputError(f'Ray cannot be used at "{address}": {root_reason(error)}') from None
    return True


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError('Ray is not installed here; run: pip install "expertmix[ray]"') from None
    return ray


def _knock(address: str) -> None:
    """Fail at once where Ray would try for minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _local_options(ray: Any) -> dict[str, Any]:
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise InputError(
            "Ray was imported before the pool could keep it from listening on all interfaces; set "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before `import ray`, or call `ray.init` yourself"
        )
    return {
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None]:
    """Settings that Ray has no argument for, while it is imported and starts; what is set stays."""
    added = [key for key in values if key not in os.environ]
    os.environ.update({key: values[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


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
