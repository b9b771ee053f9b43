from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from expertmix.apps.checkup import Finding, find_machine
from expertmix.apps.checkup.machine import GIB, memory_limit


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    """Findings under their names."""
    return {finding.name: finding for finding in findings}


def command(folder: Path, name: str, script: str) -> None:
    """Put an executable into a folder."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = by_name(find_machine(cache=tmp_path / "not" / "yet"))
    assert list(found) == ["python", "cores", "memory", "disk", "graphics"]
    assert found["python"].status == "ok"
    assert str(tmp_path) in found["disk"].detail


def test_the_tighter_of_memory_and_control_group_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{GIB}\n", encoding="ascii")
    found = by_name(find_machine(cache=tmp_path, cgroups=tmp_path))
    assert "1.0 by a control group" in found["memory"].detail
    assert found["memory"].remedy


@pytest.mark.parametrize("text", ["max", str(2**63 - 4096), "", "nonsense"])
def test_a_control_group_without_a_real_limit_is_no_limit(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.max").write_text(text, encoding="ascii")
    assert memory_limit(tmp_path) is None


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    limit = psutil.virtual_memory().total // 2
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(limit), encoding="ascii")
    assert memory_limit(tmp_path) == limit


def test_a_full_disk_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=GIB)

    def usage(path: Path) -> object:
        return full

    monkeypatch.setattr(shutil, "disk_usage", usage)
    disk = by_name(find_machine(cache=tmp_path))["disk"]
    assert disk.status == "broken"
    assert "EXPERTMIX_CACHE" in disk.remedy


def test_graphics_cards_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "nvidia-smi", 'echo "NVIDIA H200, 143771 MiB, 143000 MiB"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    detail = by_name(find_machine(cache=tmp_path))["graphics"].detail
    assert detail == "NVIDIA H200 · 143771 MiB · 143000 MiB free"


def test_a_driver_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "nvidia-smi", 'echo "Driver/library version mismatch"; exit 18')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    graphics = by_name(find_machine(cache=tmp_path))["graphics"]
    assert graphics.status == "broken"
    assert "mismatch" in graphics.detail
