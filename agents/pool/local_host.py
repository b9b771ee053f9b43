"""This machine: its devices, its weights, and the process that forks engines."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil

from ..engines import Engine
from .assembly import Given, Prepared, build_engine, prepare
from .catalog import Catalog
from .devices import CPU, FREE_MEMORY_SHARE, Device, find_devices
from .endpoints import Endpoints
from .groups import Group

if TYPE_CHECKING:
    from ..engines.launcher import Launcher

__all__ = ["LocalHost", "read_ahead"]


class LocalHost:
    """Builds engines in this process and in its children; see `Host`.

    Args:
        catalog: The pool's experts and settings.
        given: Engines by alias, or how to make them, for experts whose engine is `given`.
        devices: Instead of those that the pool file or the machine names.
    """

    def __init__(
        self,
        catalog: Catalog,
        given: Mapping[str, Given] | None = None,
        *,
        devices: Sequence[Device] = (),
    ) -> None:
        self._catalog = catalog
        self._given = given
        self._devices = tuple(devices)
        self._lock = threading.Lock()  # plans are made in one thread while the loop runs in another
        self._prepared: dict[str, Prepared] = {}
        self._launcher: Launcher | None = None
        self._endpoints = Endpoints(catalog)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Where models that take memory can be loaded; looked up once.

        Raises:
            InputError: a device that the pool file names is not there.
        """
        with self._lock:
            if not self._devices:
                self._devices = find_devices(self._catalog)
            return self._devices

    def prepare(self, group: Group) -> Prepared:
        """Find a group's weights, once.

        Raises:
            InputError: as `assembly.prepare`.
        """
        with self._lock:
            return self._prepare(group)

    def _prepare(self, group: Group) -> Prepared:
        if group.key not in self._prepared:
            prepared = prepare(group, self._catalog)
            engine = (self._given or {}).get(group.aliases[0])
            if engine is not None:  # all that we can know of a given engine is what it is called
                kind = engine if callable(engine) else type(engine)
                called = f"{getattr(kind, '__qualname__', '')}:{getattr(engine, 'name', '')}"
                prepared = replace(prepared, identity=f"{prepared.identity}:{called}")
            self._prepared[group.key] = prepared
        return self._prepared[group.key]

    def build(
        self, prepared: Prepared, device: Device | None, *, kv_cache_bytes: int | None = None
    ) -> Engine:
        """An engine on a device, not started; see `Host`.

        Raises:
            InputError: as `build_engine`.
        """
        return build_engine(
            prepared,
            self._catalog,
            self._launch_with(),
            self._given,
            gpu=None if device is None else device.gpu,
            kv_cache_bytes=kv_cache_bytes,
            endpoints=self._endpoints,
        )

    def memory_in_reach(self, device: Device) -> int:
        """Bytes that further engines could take there now, whoever takes the rest.

        A GPU's memory is vLLM's business: it looks at what is free when it starts and says what is wrong.
        """
        if device.name != CPU:
            return sys.maxsize
        return round(psutil.virtual_memory().available * FREE_MEMORY_SHARE)

    async def close(self) -> None:
        """End the process that forks engines. The host can be used again."""
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            await launcher.close()

    def _launch_with(self) -> Launcher:
        """One launcher for all engines, so that vLLM is imported once (when one starts)."""
        if self._launcher is None:
            from ..engines.launcher import Launcher

            self._launcher = Launcher()
        return self._launcher


def read_ahead(prepared: Prepared) -> None:
    """Have the kernel read a model's files into memory that is free anyway, without waiting for it.

    Nothing happens where the system has no such call, or where memory is too short for it to help.
    """
    if prepared.weights is None or not hasattr(os, "posix_fadvise"):
        return
    if psutil.virtual_memory().available < 2 * prepared.weights.bytes + prepared.memory_bytes:
        return
    for file in sorted(prepared.weights.model.glob("*.safetensors")):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
