"""Devices come from the pool file, or from the machine."""

from __future__ import annotations

from typing import Any

import pytest

from expertmix.agents import Catalog
from expertmix.agents.pool.devices import Device, find_devices, on_cuda, read_gpus
from expertmix.retrieval import InputError

pytestmark = pytest.mark.skipif(on_cuda(), reason="speaks of a machine without a GPU")


def catalog(**file: Any) -> Catalog:
    return Catalog.from_dict({"experts": [{"alias": "a", "engine": "given"}], **file})


def six_cores(_: int) -> set[int]:
    return set(range(6))


def test_a_processor_works_with_an_engine_on_each_of_its_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.sched_getaffinity", six_cores)
    [cpu] = find_devices(catalog())
    assert (cpu.name, cpu.lanes, cpu.gpu) == ("cpu", 6, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert find_devices(catalog())[0].lanes == 1


def test_the_pool_file_has_the_last_word() -> None:
    stated = {"name": "cpu", "memory_gib": 3, "parallel": 2}
    assert find_devices(catalog(devices=[stated])) == (
        Device(name="cpu", memory_bytes=3 << 30, lanes=2),
    )
    assert find_devices(catalog(memory_gib=1, parallel=5))[0] == Device(
        name="cpu", memory_bytes=1 << 30, lanes=5
    )


def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(InputError, match='no device "cuda:0" here; there is cpu'):
        find_devices(catalog(devices=[{"name": "cuda:0"}]))


def test_a_gpu_is_told_by_its_index_on_any_node() -> None:
    assert Device(name="node-2/cuda:3", memory_bytes=1).gpu == 3


TOLD = "GPU-aa11, 81559\nGPU-bb22, 81559\nGPU-cc33, 24576\n"


@pytest.mark.parametrize(
    ("visible", "gigabytes"),
    [
        (None, [81559, 81559, 24576]),
        ("2,0", [24576, 81559]),
        ("GPU-cc33", [24576]),
        ("GPU-cc", [24576]),
        ("1,7,0", [81559]),
        ("GPU-zz", []),
        ("-1", []),
        ("", []),
    ],
)
def test_gpus_are_shown_as_cuda_shows_them(visible: str | None, gigabytes: list[int]) -> None:
    assert read_gpus(TOLD, visible) == [size << 20 for size in gigabytes]
