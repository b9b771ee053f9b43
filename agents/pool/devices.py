"""Where models can be loaded: processors and GPUs with their memory, told without importing torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from ...retrieval import InputError
from .catalog import Catalog

__all__ = ["CPU", "FREE_MEMORY_SHARE", "Device", "find_devices", "on_cuda", "read_gpus"]

CPU = "cpu"
FREE_MEMORY_SHARE = 0.9  # the rest is for the operating system and for estimates that fall short
MOST_LANES = 8
"""Engines that work at the same time on a processor's cores unless somebody wants more: they share one
memory, and from some number on reading weights out of it is all they wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A piece of hardware with memory of its own."""

    name: str
    """`cpu`, `cuda:0`, …; under Ray also the node: `node-1/cuda:0`."""
    memory_bytes: int
    """What all engines on it may take together."""
    lanes: int = 1
    """Engines that may load or generate on it at the same time."""

    @property
    def gpu(self) -> int | None:
        """The index of a CUDA device; None for anything else."""
        _, separator, index = self.name.rpartition("cuda:")
        return int(index) if separator else None


def find_devices(catalog: Catalog) -> tuple[Device, ...]:
    """The devices that the pool file names, or those of this machine.

    Without a `memory_gib` anywhere, a processor's memory is what is free now, less a reserve.

    Raises:
        InputError: the pool file names a GPU that is not there.
    """
    file = catalog.file
    found = [CPU] if not on_cuda() else [f"cuda:{index}" for index in range(len(_gpu_memory()))]
    named = {spec.name: spec for spec in file.devices}
    for name in named:
        if name != CPU and name not in found:
            raise InputError(f'there is no device "{name}" here; there is {", ".join(found)}')
    devices: list[Device] = []
    for name in named or found:
        spec = named.get(name)
        stated = spec.memory_gib if spec is not None else file.memory_gib
        lanes = (spec.parallel if spec is not None else None) or file.parallel
        devices.append(
            Device(
                name=name,
                memory_bytes=_free_memory(name) if stated is None else round(stated * 2**30),
                lanes=lanes or _usual_lanes(name),
            )
        )
    return tuple(devices)


def on_cuda() -> bool:
    """Whether vLLM will run on a GPU, told without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return os.path.exists("/dev/nvidiactl") and not hidden


def _usual_lanes(name: str) -> int:
    """One engine at a time on a GPU, which one engine can fill; one a core on a processor.

    A single engine gains nothing from a second thread where cores are shared (specs/vllm.md §3), so
    further cores are best used by further engines.
    """
    if name != CPU:
        return 1
    threads = os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    each = int(threads) if threads.isdigit() and int(threads) else 1
    return max(1, min(MOST_LANES, (cores or 1) // each))


def _free_memory(name: str) -> int:
    if name == CPU:
        return round(psutil.virtual_memory().available * FREE_MEMORY_SHARE)
    return round(_gpu_memory()[int(name.rpartition(":")[2])] * FREE_MEMORY_SHARE)


def _gpu_memory() -> Sequence[int]:
    """Total bytes of each visible GPU, as the driver's own tool tells them."""
    query = ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return read_gpus(told, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise InputError(
            f"nvidia-smi does not tell the GPUs' memory ({error}); name devices in the pool file"
        ) from None


def read_gpus(told: str, visible: str | None) -> list[int]:
    """Bytes of each GPU that CUDA_VISIBLE_DEVICES shows, in its order: by index, or by the start of a uuid.

    Args:
        told: Lines of uuid and MiB.
        visible: The variable; None shows all. As in CUDA, the first name that fits nothing ends the list.

    Raises:
        ValueError: lines of another form.
    """
    rows = [line.split(",") for line in told.split("\n") if line.strip()]
    gpus = [(uuid.strip(), int(size) << 20) for uuid, size in rows]
    if visible is None:
        return [size for _, size in gpus]
    found: list[int] = []
    for name in (part.strip() for part in visible.split(",")):
        fitting = [size for uuid, size in gpus if name and uuid.startswith(name)]
        if name.isdigit() and int(name) < len(gpus):
            fitting = [gpus[int(name)][1]]
        if len(fitting) != 1:
            break
        found += fitting
    return found
