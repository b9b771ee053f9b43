"""How full the devices are: memory, lanes, and the room that was promised during one decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from .devices import Device
from .residents import Resident

__all__ = ["Rooms"]


class Rooms:
    """Answers for the present residents whether something fits.

    Args:
        residents: By number; read anew at each call.
        max_resident: Models that a device may hold, however small; None for no limit.
        reach: Bytes that further engines could take on a device now, whoever takes the rest.
    """

    def __init__(
        self,
        residents: Mapping[int, Resident],
        max_resident: int | None,
        reach: Callable[[Device], int],
    ) -> None:
        self._residents = residents
        self._max_resident = max_resident
        self._reach = reach
        self._claimed: Counter[str] = Counter()
        self._claims: Counter[str] = Counter()
        self._left: dict[str, list[str]] = {}

    def begin(self) -> None:
        """Forget the promises of the last decision."""
        self._claimed.clear()
        self._claims.clear()

    def on(self, device: Device) -> list[Resident]:
        """Residents that take memory of a device."""
        return [r for r in self._residents.values() if r.device == device and r.state != "asleep"]

    def has_lane(self, device: Device, *, promised: bool = True) -> bool:
        """Whether one more engine may work there; lanes are promised with the memory."""
        busy = sum(resident.is_busy for resident in self.on(device))
        return busy + (self._claims[device.name] if promised else 0) < device.lanes

    def free(self, device: Device) -> int:
        """Bytes of the budget that nobody takes and nobody was promised."""
        taken = sum(resident.memory_bytes for resident in self.on(device))
        return device.memory_bytes - taken - self._claimed[device.name]

    def fits(self, device: Device, memory_bytes: int) -> bool:
        """Whether a further engine may be loaded there at once."""
        return self._fits_without(device, memory_bytes, ())

    def find_victims(
        self, device: Device, memory_bytes: int, idle: Sequence[Resident]
    ) -> list[Resident] | None:
        """The first of the idle that have to go; none if enough are going already; None if too few."""
        leaving = [r for r in self.on(device) if r.state == "leaving"]
        for number in range(len(idle) + 1):
            if self._fits_without(device, memory_bytes, [*leaving, *idle[:number]]):
                return list(idle[:number])
        return None

    def find_yielders(
        self, device: Device, memory_bytes: int, candidates: Sequence[Resident]
    ) -> list[Resident] | None:
        """The first of the candidates that have to finish: for memory, and for a lane.

        Nobody who need not; None if all of them together are not enough.
        """
        chosen = list(candidates)
        if not self._suffices(device, memory_bytes, chosen):
            return None
        for resident in reversed(candidates):
            rest = [other for other in chosen if other is not resident]
            if self._suffices(device, memory_bytes, rest):
                chosen = rest
        return chosen

    def _suffices(self, device: Device, memory_bytes: int, chosen: Sequence[Resident]) -> bool:
        leaving = [r for r in self.on(device) if r.state == "leaving"]
        busy = sum(r.is_busy for r in self.on(device) if r not in chosen)
        if busy + self._claims[device.name] >= device.lanes:
            return False
        return not memory_bytes or self._fits_without(device, memory_bytes, [*leaving, *chosen])

    def claim(self, device: Device, memory_bytes: int) -> None:
        """Keep room and a lane that is becoming free for whoever it was cleared for."""
        self._claimed[device.name] += memory_bytes
        self._claims[device.name] += 1

    def note_departed(self, resident: Resident) -> None:
        """Remember who had to go, to tell of whoever comes in its place."""
        self._left.setdefault(resident.device.name, []).append(resident.group.name)

    def name_departed(self, device: Device) -> str:
        """Who had to go on a device since this was last asked."""
        return ", ".join(self._left.pop(device.name, ()))

    def _fits_without(self, device: Device, memory_bytes: int, gone: Sequence[Resident]) -> bool:
        """As if some residents had left already."""
        present = [r for r in self.on(device) if r not in gone]
        if self._max_resident is not None and (
            len(present) + self._claims[device.name] >= self._max_resident
        ):
            return False
        taken = sum(resident.memory_bytes for resident in present)
        if taken + self._claimed[device.name] + memory_bytes > device.memory_bytes:
            return False
        # What others take of the machine's memory, beside our budget. Who loads has not taken it yet.
        coming = sum(r.memory_bytes for r in present if r.state == "loading")
        going = sum(r.memory_bytes for r in gone)
        return self._reach(device) + going - coming - self._claimed[device.name] >= memory_bytes
