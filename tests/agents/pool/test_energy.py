"""Joules out of a made-up sysfs tree and a made-up NVML: what is counted, and what is not said."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expertmix.agents.pool.energy import EnergyMeter

RANGE = 262_143_328_850


def add_zone(powercap: Path, zone: str, name: str, energy: int, span: int = RANGE) -> Path:
    folder = powercap / zone
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder


def set_energy(folder: Path, energy: int) -> None:
    """In one step, as the kernel shows it: a reader never sees half of it."""
    part = folder / "energy_uj.part"
    part.write_text(f"{energy}\n")
    part.replace(folder / "energy_uj")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Nvml:
    """NVIDIA's module as far as we use it: millijoules by GPU, or the error to raise."""

    class NVMLError(Exception):
        """As pynvml has it."""

    def __init__(self, *gpus: int | str, broken: str = "") -> None:
        self.gpus: list[int | str] = list(gpus)
        self.broken = broken
        self.reads = 0

    def has_been_read_again(self) -> Callable[[], bool]:
        """Whether a whole round of readings began and ended since this call."""
        before = self.reads
        return lambda: self.reads >= before + 2

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError(self.broken)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Any:
        if number >= len(self.gpus):
            raise self.NVMLError("Invalid Argument")
        return SimpleNamespace(number=number)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        self.reads += 1
        counted = self.gpus[handle.number]
        if isinstance(counted, str):
            raise self.NVMLError(counted)
        return counted


def test_packages_and_their_memory_add_up_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    first = add_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = add_zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    memory = add_zone(tmp_path, "intel-rapl:0:2", "dram", 0)
    parts = [
        add_zone(tmp_path, "intel-rapl:0:0", "core", 0),  # in the package
        add_zone(tmp_path, "intel-rapl:0:1", "uncore", 0),
        add_zone(tmp_path, "intel-rapl:2", "psys", 0),  # has the packages in it
        add_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),  # the first once more
    ]
    meter = EnergyMeter(powercap=tmp_path, nvml=False)
    assert meter.available == ("package-0", "dram-0", "package-1")
    assert meter.why_not is None

    with meter:
        set_energy(first, 4_000_000)
        set_energy(second, 5_500_000)
        set_energy(memory, 250_000)
        for part in parts:
            set_energy(part, 99_000_000)

    assert meter.energy.joules == pytest.approx({"package-0": 3, "dram-0": 0.25, "package-1": 0.5})
    assert meter.energy.total == pytest.approx(3.75)
    assert meter.energy.seconds > 0


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 2_000_000)
    with EnergyMeter(powercap=tmp_path, nvml=False) as meter:
        set_energy(zone, 3_000_000)
    assert meter.energy.total == pytest.approx(5)


def test_a_counter_that_wraps_twice_is_read_in_between(tmp_path: Path) -> None:
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, span=10_000_000)
    nvml = Nvml(0)  # is read in the same rounds, and says how often
    with EnergyMeter(powercap=tmp_path, nvml=nvml, interval=0.005) as meter:
        for energy in (4_000_000, 9_000_000, 4_000_000):  # 5 joules each, wrapping at 10
            set_energy(zone, energy)
            wait_for(nvml.has_been_read_again())
    assert meter.energy.joules["package-0"] == pytest.approx(15)


def test_a_file_that_cannot_be_read_is_a_reason_and_no_zero(tmp_path: Path) -> None:
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").mkdir()  # permission bits would not stop root
    with EnergyMeter(powercap=tmp_path, nvml=False) as meter:
        pass
    assert meter.available == ()
    assert meter.why_not is not None
    assert meter.why_not.startswith("no energy is measured: package-0 cannot be read")
    assert "root" in meter.why_not
    assert meter.energy.total is None
    assert meter.energy.joules == {}


def test_what_cannot_be_read_to_the_end_is_left_out_and_named(tmp_path: Path) -> None:
    kept = add_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    lost = add_zone(tmp_path, "intel-rapl:1", "package-1", 0)
    with EnergyMeter(powercap=tmp_path, nvml=False) as meter:
        set_energy(kept, 2_000_000)
        set_energy(lost, 7_000_000)
        (lost / "energy_uj").write_text("gone\n")
    assert meter.energy.joules == pytest.approx({"package-0": 2})
    assert "could not be read" in meter.energy.lost["package-1"]
    assert meter.energy.total == pytest.approx(2)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    meter = EnergyMeter(powercap=tmp_path / "nowhere", nvml=Nvml(broken="Driver Not Loaded"))
    assert meter.available == ()
    assert meter.why_not == (
        "no energy is measured: NVML says: Driver Not Loaded; "
        f"{tmp_path / 'nowhere'} shows no processor's counters"
    )


def test_gpus_count_in_millijoules(tmp_path: Path) -> None:
    nvml = Nvml(1_000, 50_000)
    with EnergyMeter(powercap=tmp_path, nvml=nvml) as meter:
        nvml.gpus = [251_000, 50_500]
    assert meter.energy.joules == pytest.approx({"gpu/0": 250, "gpu/1": 0.5})
    assert meter.energy.total == pytest.approx(250.5)


def test_only_the_gpus_that_were_named_count(tmp_path: Path) -> None:
    nvml = Nvml(0, 0, 0)
    with EnergyMeter(powercap=tmp_path, nvml=nvml, gpus=[2, 7]) as meter:
        nvml.gpus = [1_000, 2_000, 4_000]
    assert meter.energy.joules == pytest.approx({"gpu/2": 4})
    assert any("gpu/7" in gap for gap in meter.gaps)


def test_an_old_gpu_is_a_gap_beside_one_that_counts(tmp_path: Path) -> None:
    nvml = Nvml("Not Supported", 0)
    meter = EnergyMeter(powercap=tmp_path, nvml=nvml)
    assert meter.available == ("gpu/1",)
    assert meter.why_not is None
    assert meter.gaps[0] == "gpu/0 does not count its energy (Not Supported)"


def test_a_gpu_whose_counter_went_back_is_not_guessed(tmp_path: Path) -> None:
    nvml = Nvml(9_000)
    with EnergyMeter(powercap=tmp_path, nvml=nvml) as meter:
        nvml.gpus = [10]
    assert meter.energy.total is None
    assert "began anew" in meter.energy.lost["gpu/0"]


def test_a_gpu_that_falls_off_the_bus_is_lost(tmp_path: Path) -> None:
    nvml = Nvml(9_000, 0)
    with EnergyMeter(powercap=tmp_path, nvml=nvml) as meter:
        nvml.gpus = ["GPU is lost", 500]
    assert meter.energy.joules == pytest.approx({"gpu/1": 0.5})
    assert "GPU is lost" in meter.energy.lost["gpu/0"]


def test_a_meter_can_be_used_again_and_starts_from_nothing(tmp_path: Path) -> None:
    nvml = Nvml(0)
    meter = EnergyMeter(powercap=tmp_path, nvml=nvml)
    for _ in range(2):
        with meter:
            nvml.gpus = [int(nvml.gpus[0]) + 3_000]
        assert meter.energy.total == pytest.approx(3)


def test_starting_twice_and_stopping_what_does_not_run_are_mistakes(tmp_path: Path) -> None:
    meter = EnergyMeter(powercap=tmp_path, nvml=False)
    with pytest.raises(RuntimeError, match="not running"):
        meter.stop()
    with meter, pytest.raises(RuntimeError, match="is running"):
        meter.start()


def test_this_machine_is_measured_or_says_why_not() -> None:
    with EnergyMeter() as meter:
        pass
    assert (meter.why_not is None) == bool(meter.available)
    if not meter.available:
        assert meter.energy.total is None
