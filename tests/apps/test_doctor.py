from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from expertmix.apps.checkup import Finding
from expertmix.apps.doctor import diagnose, removable, repair, repair_command
from expertmix.retrieval import InputError

BROKEN = [
    Finding(name="torchvision", status="broken", detail="does not load"),
    Finding(name="torchaudio", status="ok", detail="loads"),
    Finding(name="vllm", status="broken", detail="no device"),
]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with two packages in it; its pip is this one's."""
    home = tmp_path_factory.mktemp("patient") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    [packages] = home.glob("lib/python*/site-packages")
    # After the environment's own packages, so that only those can be removed.
    (packages / "pip.pth").write_text("\n".join([*site.getsitepackages(), ""]), encoding="utf-8")
    for name in ("torchvision", "torchaudio"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").touch()
        information = packages / f"{name}-0.28.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.28.0\n", encoding="utf-8"
        )
        (information / "INSTALLER").write_text("pip\n", encoding="utf-8")
        inside = [
            f"{name}/__init__.py",
            *(f"{information.name}/{f}" for f in ("METADATA", "INSTALLER")),
        ]
        record = "".join(f"{file},,\n" for file in [*inside, f"{information.name}/RECORD"])
        (information / "RECORD").write_text(record, encoding="utf-8")
    return home / "bin" / "python"


def test_only_what_is_broken_and_ours_to_remove_is_removable() -> None:
    assert removable(BROKEN) == ("torchvision",)


def test_repair_removes_what_was_named_and_leaves_the_rest(patient: Path) -> None:
    said = repair(["torchvision"], python=str(patient))
    assert "Successfully uninstalled torchvision-0.28.0" in said
    left = subprocess.run(
        [patient, "-c", "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])",
         "torchvision", "torchaudio"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert left.stdout.strip() == "['torchaudio']"


def test_repair_of_nothing_runs_nothing(tmp_path: Path) -> None:
    assert repair([], python=str(tmp_path / "no python here")) == ""


def test_repair_refuses_to_remove_anything_else() -> None:
    with pytest.raises(InputError, match=r"nothing else; got torch\."):
        repair(["torch", "torchvision"])


def test_repair_says_what_pip_said_when_it_fails(patient: Path) -> None:
    bare = patient.parent.parent / "lib"
    [pth] = bare.glob("python*/site-packages/pip.pth")
    kept = pth.read_text(encoding="utf-8")
    pth.write_text("", encoding="utf-8")
    try:
        with pytest.raises(InputError, match="No module named pip"):
            repair(["torchaudio"], python=str(patient))
    finally:
        pth.write_text(kept, encoding="utf-8")


def test_the_command_belongs_to_this_interpreter() -> None:
    assert repair_command(["torchcodec"])[:3] == [sys.executable, "-m", "pip"]


def test_a_diagnosis_covers_everything_without_importing_it_here(tmp_path: Path) -> None:
    for name in ("torch", "transformers", "vllm"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} today')", "utf-8")
    heavy = {"torch", "transformers", "vllm"} - set(sys.modules)
    path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environ = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    findings = diagnose(timeout=60, environ=environ)
    assert not heavy & set(sys.modules)
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    assert {"python", "memory", "disk", "extra cpu", "torch", "vllm", "openmp"} <= set(names)
    assert [f.detail for f in findings if f.name == "vllm"] == ["no vllm today"]
    assert all(finding.detail for finding in findings)
    assert all(f.remedy or f.name == "vllm" for f in findings if f.status in ("broken", "missing"))
