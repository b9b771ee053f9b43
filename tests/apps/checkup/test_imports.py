"""Heavy imports are judged in child processes; here the packages are stand-ins in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from expertmix.apps.checkup import Finding, find_imports, probe

Shelf = Callable[..., dict[str, str]]

TORCH = """
__version__ = "2.13.0+cpu"
class version: cuda = None
class cuda:
    is_available = staticmethod(lambda: False)
"""
TRANSFORMERS = '__version__ = "5.19.0"\nLlamaConfig = LlamaForCausalLM = object\n'
VLLM = '__version__ = "0.32.0"\n'
CPU = """
class CpuPlatform: device_type = "cpu"
current_platform = CpuPlatform()
"""
NOWHERE = """
class UnspecifiedPlatform: device_type = ""
current_platform = UnspecifiedPlatform()
"""
NO_NMS = 'raise RuntimeError("operator torchvision::nms does not exist")\n'


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Put modules in front of the real ones; the environment for a child that sees them."""

    def put(**modules: str) -> dict[str, str]:
        defaults = {"torch": TORCH, "transformers": TRANSFORMERS, "vllm": VLLM}
        for name, source in {**defaults, "vllm__platforms": CPU, **modules}.items():
            folder = tmp_path / name.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text(source, encoding="utf-8")
        path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}

    return put


def judged(environ: dict[str, str], timeout: float = 60) -> dict[str, Finding]:
    """The findings by name."""
    return {finding.name: finding for finding in find_imports(timeout=timeout, environ=environ)}


def test_packages_that_import_are_well(shelf: Shelf) -> None:
    found = judged(shelf(torchaudio="", torchcodec="", torchvision=""))
    assert found["torch"].detail == "2.13.0+cpu, CPU build, no GPU"
    assert {found[name].status for name in ("torch", "torchvision", "transformers", "vllm")} == {
        "ok"
    }
    assert "runs on cpu" in found["vllm"].detail


def test_a_torchvision_for_cuda_is_named_with_its_cause_and_cure(shelf: Shelf) -> None:
    broken = TRANSFORMERS.replace("LlamaConfig =", "import torchvision\nLlamaConfig =")
    found = judged(shelf(torchvision=NO_NMS, transformers=broken))
    assert found["torchvision"].status == "broken"
    assert "vllm#15372" in found["torchvision"].detail
    assert "--repair" in found["torchvision"].remedy
    assert found["transformers"].status == "broken"
    assert "torchvision" in found["transformers"].detail
    assert found["vllm"].status == "ok"  # our engines hide torchvision, and so does its probe


def test_a_companion_that_misses_cuda_is_not_taken_for_a_broken_torch(shelf: Shelf) -> None:
    missing = 'raise OSError("libnvrtc.so.13: cannot open shared object file")\n'
    found = judged(shelf(torchcodec=missing))
    assert "another build of torch" in found["torchcodec"].detail
    assert "--repair" in found["torchcodec"].remedy


def test_vllm_for_cuda_without_a_gpu_is_told_apart_from_a_broken_one(shelf: Shelf) -> None:
    found = judged(shelf(vllm__platforms=NOWHERE))
    assert found["vllm"].status == "broken"
    assert "UnspecifiedPlatform" in found["vllm"].detail
    assert "expertmix[cpu]" in found["vllm"].remedy


def test_a_package_that_is_not_there_is_missing_and_not_broken(shelf: Shelf) -> None:
    absent = "raise ModuleNotFoundError(\"No module named 'vllm'\")"
    found = judged(shelf(vllm=absent))
    assert found["vllm"].status == "missing"
    assert "pip install" in found["vllm"].remedy


def test_a_crash_of_native_code_is_a_finding_and_not_our_end(shelf: Shelf) -> None:
    result = probe("torch", timeout=60, environ=shelf(torch="import os\nos.kill(os.getpid(), 4)"))
    assert "SIGILL" in result.error


def test_an_import_that_hangs_is_stopped(shelf: Shelf) -> None:
    # The first reply pays for the interpreter; the stand-in would sleep far past the bound.
    slow = "import time\ntime.sleep(600)"
    assert "5 seconds" in probe("torch", timeout=5, environ=shelf(torch=slow)).error


def test_what_a_package_prints_does_not_spoil_the_report(shelf: Shelf) -> None:
    chatty = 'print("Welcome!", flush=True)\nimport os\nos.write(1, b"native greetings")\n' + TORCH
    assert probe("torch", timeout=60, environ=shelf(torch=chatty)).facts["version"] == "2.13.0+cpu"


@pytest.mark.real
def test_this_machine_can_run_vllm() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    found = judged(dict(os.environ), timeout=250)
    assert [finding for finding in found.values() if finding.status == "broken"] == []
    assert found["vllm"].status == "ok"
