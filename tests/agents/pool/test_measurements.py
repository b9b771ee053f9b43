"""What a load took and gave is remembered, and tells when weights are not what they should be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from expertmix.agents.engines import Load
from expertmix.agents.pool.measurements import Measurement, Measurements, compare_probes

LOAD = Load(seconds=14.0, startup_seconds=10.0, memory_bytes=5, probe=(-1.0, -2.0))


def test_a_measurement_outlives_the_process(tmp_path: Path) -> None:
    Measurements(tmp_path / "m").keep("key", Measurement.of_load(LOAD))
    found = Measurements(tmp_path / "m").find("key")
    assert found == Measurement(seconds=4.0, memory_bytes=5, probe=(-1.0, -2.0))


@pytest.mark.parametrize(
    "text", ["", "{}", '{"seconds": 1, "memory_bytes": 2, "probe": ["x"]}', "[1]"]
)
def test_a_damaged_measurement_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.json").write_text(text)
    assert Measurements(tmp_path).find("key") is None


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    measurements = Measurements(tmp_path / "file" / "below")
    measurements.keep("key", Measurement.of_load(LOAD))
    assert measurements.find("key") is not None


def test_probes_agree_within_what_the_type_allows() -> None:
    assert not compare_probes((-1.0, -2.0), (-1.0005, -2.0), dtype="float32")
    assert compare_probes((-1.0, -2.0), (-1.05, -2.0), dtype="float32")
    assert not compare_probes((-1.0, -2.0), (-1.05, -2.0), dtype="bfloat16")
    assert compare_probes((-1.0, -2.0), (-2.1, -2.0), dtype="bfloat16")


def test_probes_that_are_no_numbers_or_of_another_length_never_agree() -> None:
    assert "not numbers" in compare_probes((math.nan,), (), dtype=None)
    assert "length" in compare_probes((-1.0,), (-1.0, -2.0), dtype="float32")
    assert not compare_probes((-1.0,), (), dtype="float32")
