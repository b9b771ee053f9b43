"""What the residency loop needs from the machine, or the cluster, that engines run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..engines import Engine
from .assembly import Prepared
from .devices import Device
from .groups import Group

__all__ = ["Host"]


class Host(Protocol):
    """Finds weights and builds engines on devices; `LocalHost` on this machine, `RayHost` on many."""

    @property
    def devices(self) -> Sequence[Device]:
        """Where models that take memory can be loaded; looked up once.

        Raises:
            InputError: a device that the pool file names is not there.
        """
        ...

    def prepare(self, group: Group) -> Prepared:
        """Find a group's weights, once. May block for long: it is called in a thread.

        Raises:
            InputError: as `assembly.prepare`.
        """
        ...

    def build(
        self, prepared: Prepared, device: Device | None, *, kv_cache_bytes: int | None = None
    ) -> Engine:
        """An engine on a device, not started; None as device for what takes no memory here.

        Args:
            prepared: Of this host.
            device: One of `devices`.
            kv_cache_bytes: Less than the usual memory for keys and values, for a second attempt.

        Raises:
            InputError: a key that is not set, recordings that are not there, an engine not given.
        """
        ...

    def memory_in_reach(self, device: Device) -> int:
        """Bytes that further engines could take there now, whoever takes the rest.

        Beside `Device.memory_bytes`, which is the budget of all our engines together.
        """
        ...

    async def close(self) -> None:
        """End what the host itself has started. The engines were closed before."""
        ...
