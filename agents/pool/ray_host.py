"""Many machines: the nodes of a Ray cluster as devices, and engines in actors on them.

Nothing here decides what runs where: the residency loop does, as on one machine. Weights are looked up
where they run, so a node needs expertmix, and the weights in a package, on the hub or under the same path;
what it finds has to be what the pool found, by content.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...retrieval import InputError
from ..engines import Engine
from .assembly import Given, Prepared, build_engine, kv_cache_of, prepare
from .catalog import Catalog
from .cluster import connect
from .devices import FREE_MEMORY_SHARE, Device
from .groups import Group, group_experts
from .local_host import LocalHost
from .nodes import Node, find_nodes, list_devices
from .specs import GivenExpert, VllmExpert

if TYPE_CHECKING:
    from ..engines.launcher import Launcher
    from ..engines.outpost import Outpost

__all__ = ["RayHost", "build_on_node"]


class RayHost:
    """Builds engines in Ray actors, one actor to a device; see `Host`.

    An actor takes its device's lanes as CPUs, or one GPU, for as long as the host is open: other programs
    of the cluster see them as taken. What needs no memory of ours (addresses, recordings) stays in
    this process.

    Args:
        catalog: The pool's experts and settings.
        address: Of a cluster, as `ray.init` takes it: `auto`, or `host:port`. None takes `RAY_ADDRESS`, or
            starts Ray on this machine, out of reach for others. A connection that the program made
            itself is used as it is.
        given: Engines by alias for experts whose engine is `given` and takes no memory.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        address: str | None = None,
        given: Mapping[str, Given] | None = None,
    ) -> None:
        self._catalog = catalog
        self._address = address
        self._local = LocalHost(catalog, given)
        self._lock = threading.Lock()  # `devices` and `prepare` are called in threads
        self._nodes: Mapping[Device, Node] | None = None
        self._connected = False
        self._prepared: dict[str, Prepared] = {}
        self._outposts: dict[Device, Outpost] = {}

    @property
    def devices(self) -> Sequence[Device]:
        """Processors or GPUs of all nodes; connects to Ray the first time, which blocks for seconds.

        Raises:
            InputError: Ray is not installed or not there, or no node has a device that the pool file
                names.
        """
        return tuple(self._find_nodes())

    def _find_nodes(self) -> Mapping[Device, Node]:
        with self._lock:
            if self._nodes is None:
                self._connected = connect(self._address) or self._connected
                self._nodes = list_devices(self._catalog, find_nodes())
            return self._nodes

    def prepare(self, group: Group) -> Prepared:
        """Find a group's weights here, to know what they are and need.

        Raises:
            InputError: as `assembly.prepare`, or as `devices`.
        """
        if group.key not in self._prepared:
            prepared = self._local.prepare(group)
            if group.local:
                prepared = self._adapt(prepared)
            self._prepared[group.key] = prepared
        return self._prepared[group.key]

    def _adapt(self, prepared: Prepared) -> Prepared:
        """What holds for the nodes, not for this machine: memory, figures, and no swaps in place."""
        measured = prepared.measured_as
        return replace(
            prepared,
            memory_bytes=max(prepared.memory_bytes, self._whole_gpu(prepared.group)),
            measured_as=measured and hashlib.sha256(f"ray:{measured}".encode()).hexdigest(),
            family=None,  # a swap names a folder, and a folder's place is each node's own affair
        )

    def _whole_gpu(self, group: Group) -> int:
        """Bytes of a GPU that vLLM fills with its cache because nobody said how large that is to be."""
        gpus = [device.memory_bytes for device in self.devices if device.gpu is not None]
        spec = group.specs[0]
        if not (gpus and isinstance(spec, VllmExpert)) or _stated_cache(group) is not None:
            return 0
        return round(min(gpus) * (spec.gpu_memory_utilization or 1.0))

    def build(
        self, prepared: Prepared, device: Device | None, *, kv_cache_bytes: int | None = None
    ) -> Engine:
        """An engine on a device, not started; see `Host`.

        Raises:
            InputError: as `build_engine`, or a given engine that would have to travel.
        """
        if device is None or not prepared.group.local:
            return self._local.build(prepared, None)
        spec = prepared.group.specs[0]
        if isinstance(spec, GivenExpert):
            raise InputError(
                f'the engine of "{spec.alias}" is an object of this program and cannot go to '
                f"{device.name}; describe it in the pool file, or leave out its memory_gib"
            )
        from ..engines.remote import RayEngine

        cache = kv_cache_bytes or _stated_cache(prepared.group)
        settings = self._describe(prepared, device, cache)
        return RayEngine(
            prepared.group.name, settings, at=self._outpost(device), build=build_on_node
        )

    def _describe(
        self, prepared: Prepared, device: Device, kv_cache_bytes: int | None
    ) -> dict[str, Any]:
        """Everything that `build_on_node` needs, in plain values."""
        specs = [spec.model_dump(mode="json") for spec in prepared.group.specs]
        root = self._catalog.file.root
        return {
            "pool": {"root": root, "sleep": False, "experts": specs},
            "base": str(self._catalog.base),
            "place": device.name,
            "identity": prepared.identity,
            "revision": prepared.weights and prepared.weights.revision,
            "kv_cache_bytes": kv_cache_bytes,
        }

    def _outpost(self, device: Device) -> Outpost:
        """The device's actor; a new one where the last was lost."""
        from ..engines.outpost import Outpost, Place

        outpost = self._outposts.get(device)
        if outpost is None or outpost.failure is not None:
            node = self._find_nodes()[device]
            is_gpu = device.gpu is not None
            place = Place(
                node_id=node.id,
                name=device.name,
                cpus=min(1 if is_gpu else device.lanes, node.cpus),
                gpus=1 if is_gpu else 0,
            )
            self._outposts[device] = outpost = Outpost(place)
        return outpost

    def memory_in_reach(self, device: Device) -> int:
        """Bytes that further engines could take there, as its node last told; this waits for nothing.

        Nothing on a node that is gone. A GPU's memory is vLLM's business, as on one machine.
        """
        outpost = self._outposts.get(device)
        if outpost is not None and outpost.is_gone:
            return 0
        if device.gpu is not None or outpost is None or outpost.free_bytes is None:
            return sys.maxsize
        outpost.refresh()
        return round(outpost.free_bytes * FREE_MEMORY_SHARE)

    async def close(self) -> None:
        """End all actors, and Ray where the host has started it. The host can be used again."""
        outposts = list(self._outposts.values())
        self._outposts.clear()
        await asyncio.gather(*(outpost.close() for outpost in outposts), return_exceptions=True)
        await self._local.close()
        connected, self._connected, self._nodes = self._connected, False, None
        if connected:
            import ray

            await asyncio.to_thread(ray.shutdown)


def build_on_node(settings: Mapping[str, Any], launcher: Launcher) -> Engine:
    """In an actor: find the weights once more, on this machine, and build the engine.

    Raises:
        InputError: they are not here, or are not the same as where the pool is.
    """
    catalog = Catalog.from_dict(settings["pool"], base=settings["base"])
    [group] = group_experts(catalog)
    try:
        prepared = prepare(group, catalog)
        _check_same(prepared, settings)
    except (InputError, OSError) as error:
        raise InputError(f"on {settings['place']}: {error}") from None
    return build_engine(prepared, catalog, launcher, kv_cache_bytes=settings["kv_cache_bytes"])


def _check_same(prepared: Prepared, settings: Mapping[str, Any]) -> None:
    if prepared.identity == settings["identity"]:
        return
    here = prepared.weights and prepared.weights.revision
    if here != settings["revision"]:
        raise InputError(
            f"{prepared.group.name} is revision {here}, but {settings['revision']} where the pool is; "
            "give both the same weights"
        )
    raise InputError(
        f"{prepared.group.name} has another script, adapter, chat template or version of expertmix than "
        "where the pool is; give both the same"
    )


def _stated_cache(group: Group) -> int | None:
    """What the pool file says about keys and values, whatever this machine has for a processor."""
    if any(getattr(spec, "kv_cache_mib", None) is None for spec in group.specs):
        return None
    return kv_cache_of(group)
