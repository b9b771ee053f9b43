"""What a group of experts wants of the devices, and the sentence that says why it cannot have it."""

from __future__ import annotations

from ..engines import Failure
from .assembly import Prepared, kv_cache_of
from .devices import Device
from .endpoints import normalise_address
from .groups import Group
from .host import Host
from .residents import Need
from .specs import OpenAIExpert, VllmExpert
from .workshop import Workshop

__all__ = ["count_held", "find_need", "tell_lack"]

GIB = 2**30


def find_need(group: Group, host: Host, workshop: Workshop) -> Need:
    """Memory, family and devices of a group. May block: its weights are found first.

    Raises:
        InputError: weights or devices that are not there.
    """
    prepared = host.prepare(group)
    spec = group.specs[0]
    if isinstance(spec, OpenAIExpert):  # it takes a turn, but no memory of ours
        return Need(
            memory_bytes=1, devices=(Device(name=normalise_address(spec.address), memory_bytes=1),)
        )
    measured = workshop.find_measurement(prepared)
    devices = tuple(host.devices)
    return Need(
        memory_bytes=_memory(prepared, devices, 0 if measured is None else measured.memory_bytes),
        is_stated=_is_stated(group),
        family=prepared.family,
        is_probed=prepared.measured_as is None or bool(measured and measured.probe),
        devices=devices,
        load_seconds=0.0 if measured is None else measured.seconds,
    )


def count_held(need: Need, device: Device, measured: int) -> int:
    """Bytes that a loaded engine takes of its device's budget.

    An engine reports its process's main memory, which says nothing about a GPU's.
    """
    if need.is_stated or device.gpu is not None:
        return need.memory_bytes
    return max(need.memory_bytes, min(measured, device.memory_bytes))


def tell_lack(group: Group, need: Need, host: Host | None = None) -> Failure | None:
    """Why a group fits no device, or, given a host, not beside what others take there now."""
    largest = max(need.devices, key=lambda device: device.memory_bytes)
    usable = largest.memory_bytes
    if host is not None:
        usable = min(usable, host.memory_in_reach(largest))
    elif need.memory_bytes <= usable:
        return None
    message = (
        f"{group.name} needs about {need.memory_bytes / GIB:.1f} GiB of memory, "
        f"{usable / GIB:.1f} GiB may be used on {largest.name}; choose a smaller model or dtype, "
        "or raise memory_gib"
    )
    return Failure(kind="load", message=message, retryable=host is not None)


def _memory(prepared: Prepared, devices: tuple[Device, ...], measured: int) -> int:
    """Bytes on a device; a vLLM that was not told how large its cache may be takes a GPU as a whole."""
    spec = prepared.group.specs[0]
    gpus = [device for device in devices if device.gpu is not None]
    if isinstance(spec, VllmExpert) and gpus and kv_cache_of(prepared.group) is None:
        share = spec.gpu_memory_utilization or 1.0
        whole = round(min(device.memory_bytes for device in gpus) * share)
        return max(whole, prepared.memory_bytes)
    if gpus or _is_stated(prepared.group):
        return prepared.memory_bytes
    # What runs here already must not be refused for a budget between estimate and measurement.
    largest = max((device.memory_bytes for device in devices), default=0)
    return max(prepared.memory_bytes, min(measured, largest))


def _is_stated(group: Group) -> bool:
    return any(getattr(spec, "memory_gib", None) is not None for spec in group.specs)
