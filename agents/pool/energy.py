"""Joules between two moments, where the machine measures them; nothing is ever estimated.

Two kinds of counter are read. NVIDIA GPUs since Volta count their own energy (NVML's
`nvmlDeviceGetTotalEnergyConsumption`, millijoules since the driver was loaded; needs `nvidia-ml-py`). Intel and
AMD processors count theirs (RAPL, microjoules in `/sys/class/powercap`; since CVE-2020-8694 for root only on
most machines): per package, and for memory where there is a counter of its own.

What is counted is the device's, whoever used it: other processes and other people's work are in it, and the rest
of the machine (disks, fans, power supply) is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["Energy", "EnergyMeter"]

POWERCAP = Path("/sys/class/powercap")
SAMPLE_SECONDS = 60.0
"""Between readings while it is measured: RAPL counters begin anew after 2^32 of their units, which at full
load takes some minutes, and what wraps around twice between two readings is lost without a trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What was measured between two moments."""

    seconds: float
    joules: Mapping[str, float] = field(default_factory=dict[str, float])
    """By counter, `gpu/0`, `package-0` or `dram-0`, those alone that were read throughout."""
    lost: Mapping[str, str] = field(default_factory=dict[str, str])
    """Counters that could not be read to the end, with the reason: nothing is said about their joules."""

    @property
    def total(self) -> float | None:
        """Joules of everything that was measured; None, and not 0, where nothing was."""
        return sum(self.joules.values()) if self.joules else None


class EnergyMeter:
    """Measures joules from `start` to `stop`, or in a `with` block; can be used again.

    Example:
        >>> with EnergyMeter() as meter:
        ...     pass
        >>> meter.energy.total is None or meter.energy.total >= 0
        True

    Args:
        powercap: Where the kernel shows RAPL.
        nvml: NVIDIA's `pynvml` module; None imports it, False looks at no GPU.
        gpus: NVML's numbers of the GPUs to count; all of them by default.
        interval: Seconds between readings meanwhile.
    """

    def __init__(
        self,
        *,
        powercap: Path = POWERCAP,
        nvml: Any = None,
        gpus: Sequence[int] | None = None,
        interval: float = SAMPLE_SECONDS,
    ) -> None:
        self.energy = Energy(seconds=0.0)
        """What the last measurement gave."""
        self._interval = interval
        found, self._reasons = _find_rapl(powercap)
        if nvml is not False:
            of_gpus, reason = _find_gpus(nvml, gpus)
            found, self._reasons = [*of_gpus, *found], [*reason, *self._reasons]
        self._counters = found
        self._tallies: list[_Tally] = []
        self._began = 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def available(self) -> tuple[str, ...]:
        """Counters that can be read; empty if there is none."""
        return tuple(counter.name for counter in self._counters)

    @property
    def gaps(self) -> tuple[str, ...]:
        """Counters that are not there or cannot be read, with the reason."""
        return tuple(self._reasons)

    @property
    def why_not(self) -> str | None:
        """Why nothing can be measured, in one sentence; None where something can."""
        return None if self._counters else f"no energy is measured: {'; '.join(self._reasons)}"

    def start(self) -> None:
        """Begin to count.

        Raises:
            RuntimeError: it counts already.
        """
        if self._thread is not None:
            raise RuntimeError("the meter is running: stop it before it is started again")
        self._end.clear()
        self._began = time.monotonic()
        self._tallies = [_Tally(counter) for counter in self._counters]
        self._thread = threading.Thread(target=self._watch, name="expertmix-energy", daemon=True)
        self._thread.start()

    def stop(self) -> Energy:
        """End, and say what was counted.

        Raises:
            RuntimeError: it was not started.
        """
        if self._thread is None:
            raise RuntimeError("the meter is not running: start it first")
        self._end.set()
        self._thread.join()
        self._thread = None
        seconds = time.monotonic() - self._began
        for tally in self._tallies:
            tally.read()
        self.energy = Energy(
            seconds=seconds,
            joules={t.counter.name: t.joules for t in self._tallies if t.trouble is None},
            lost={t.counter.name: t.trouble for t in self._tallies if t.trouble is not None},
        )
        return self.energy

    def __enter__(self) -> EnergyMeter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._end.wait(self._interval):
            for tally in self._tallies:
                tally.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counter:
    """Counts energy upwards, from nobody knows when."""

    name: str
    read: Callable[[], int]
    """How far it is, in its units; raises `OSError` or `ValueError` where that cannot be read."""
    joules_per_unit: float
    span: int | None
    """Units after which it begins anew; None if it never does."""


class _Tally:
    """What one counter has counted since this was made."""

    def __init__(self, counter: _Counter) -> None:
        self.counter = counter
        self.trouble: str | None = None
        self._units = 0
        self._last: int | None = None
        self.read()

    @property
    def joules(self) -> float:
        return self._units * self.counter.joules_per_unit

    def read(self) -> None:
        """Add what came since the last reading; after a failed one nothing is known any more."""
        if self.trouble is not None:
            return
        try:
            now = self.counter.read()
        except (OSError, ValueError) as error:
            self.trouble = f"it could not be read ({error})"
            return
        if self._last is not None:
            step = now - self._last
            if step < 0:
                if self.counter.span is None:
                    self.trouble = "it began anew (was its driver loaded again?)"
                    return
                step += self.counter.span
            self._units += step
        self._last = now


def _find_rapl(powercap: Path) -> tuple[list[_Counter], list[str]]:
    """Counters of packages and of their memory, and what is in the way of others."""
    counters: list[_Counter] = []
    unreadable: list[str] = []
    for zone, name in _zones(powercap):
        try:
            span = int((zone / "max_energy_range_uj").read_text())
            counter = _Counter(name=name, read=_read_file(zone), joules_per_unit=1e-6, span=span)
            counter.read()
        except (OSError, ValueError) as error:
            unreadable.append(
                f"{name} cannot be read ({error}), which root only may on most machines"
            )
        else:
            counters.append(counter)
    if not counters and not unreadable:
        unreadable.append(f"{powercap} shows no processor's counters")
    return counters, unreadable


def _zones(powercap: Path) -> Iterator[tuple[Path, str]]:
    """Folders of RAPL zones that add up, with a name for each.

    Cores and graphics are part of a package, `psys` has packages in it, and `intel-rapl-mmio` counts a package
    a second time.
    """
    for package in sorted(powercap.glob("intel-rapl:*")):  # AMD's are called so, too
        name = _read_name(package)
        if package.name.count(":") != 1 or not name.startswith("package"):
            continue
        yield package, name
        for part in sorted(powercap.glob(f"{package.name}:*")):
            if _read_name(part) == "dram":
                yield part, name.replace("package", "dram")


def _read_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _read_file(zone: Path) -> Callable[[], int]:
    return lambda: int((zone / "energy_uj").read_text())


def _find_gpus(nvml: Any, gpus: Sequence[int] | None) -> tuple[list[_Counter], list[str]]:
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return [], ["for NVIDIA GPUs nvidia-ml-py is not installed"]
    counters: list[_Counter] = []
    try:
        nvml.nvmlInit()
        numbers = range(nvml.nvmlDeviceGetCount()) if gpus is None else gpus
    except nvml.NVMLError as error:
        return [], [f"NVML says: {error}"]
    reasons = [] if numbers else ["NVML sees no GPU"]
    for number in numbers:
        name = f"gpu/{number}"
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            read = _read_gpu(nvml, handle)
            read()
        except (nvml.NVMLError, OSError) as error:
            reasons.append(f"{name} does not count its energy ({error})")
        else:  # 64 bits of millijoules: at 1 kW that is half a billion years
            counters.append(_Counter(name=name, read=read, joules_per_unit=1e-3, span=None))
    return counters, reasons


def _read_gpu(nvml: Any, handle: Any) -> Callable[[], int]:
    def read() -> int:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError as error:
            raise OSError(str(error)) from None

    return read
