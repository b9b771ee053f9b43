"""Whether torch, transformers and vLLM import: asked in child processes, so that ours stays light."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ...agents.engines.reasons import exit_reason
from .ailments import UNINSTALL, recognise
from .finding import Finding

__all__ = ["Probe", "find_imports", "probe"]

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a child process said about one package."""

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str = ""
    """Why it does not import, in one sentence; empty when it does."""


def probe(name: str, *, timeout: float, environ: Mapping[str, str] | None = None) -> Probe:
    """Import a package in a child process and report.

    Args:
        name: A key of `probe.PROBES`.
        timeout: Seconds after which the child is stopped and reported as hanging.
        environ: The child's environment; ours by default.
    """
    command = [sys.executable, "-m", "expertmix.apps.checkup.child", name]
    child = {**(os.environ if environ is None else environ), **_QUIET}
    try:
        done = subprocess.run(
            command, env=child, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return Probe(name=name, error=f"it had not been imported after {timeout:.0f} seconds")
    try:
        facts = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return Probe(name=name, error=f"{exit_reason(done.returncode)} {last}".strip())
    return Probe(name=name, facts=facts, error=str(facts.get("error", "")))


def find_imports(
    *, timeout: float = 180.0, environ: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Say whether torch, its companions, transformers and vLLM can be imported.

    Args:
        timeout: Seconds for each; importing vLLM takes 5 to 20 on a busy laptop.
        environ: The children's environment; ours by default.
    """
    names = ("torch", "companions", "transformers", "vllm")
    with ThreadPoolExecutor(max_workers=2) as pool:
        asked = [pool.submit(probe, name, timeout=timeout, environ=environ) for name in names]
        torch, companions, transformers, vllm = (future.result() for future in asked)
    yield _torch(torch)
    yield from _companions(companions)
    yield _transformers(transformers)
    yield _vllm(vllm)
    if not vllm.error and not vllm.facts["metadata"]:
        yield _vllm_command()
    if not vllm.error and vllm.facts["device"] == "cpu":
        yield _vllm_on_cpu()
    if torch.facts.get("cuda") is None and importlib.util.find_spec("triton"):
        yield _triton()


def _torch(torch: Probe) -> Finding:
    if torch.error:
        return _failed(torch, 'pip install "expertmix[cpu]", or "expertmix[vllm]" for a GPU')
    build = f"CUDA {torch.facts['cuda']}" if torch.facts["cuda"] else "CPU"
    devices = ", ".join(torch.facts["devices"]) or "no GPU"
    detail = f"{torch.facts['version']}, {build} build, {devices}"
    return Finding(name="torch", status="ok", detail=detail)


def _companions(companions: Probe) -> Iterator[Finding]:
    if companions.error:
        yield _failed(companions, UNINSTALL)
    elif not companions.facts:
        detail = "torchvision, torchaudio and torchcodec are not installed; nothing here needs them"
        yield Finding(name="companions of torch", status="ok", detail=detail)
    for name, error in companions.facts.items() if not companions.error else ():
        if error is None:
            yield Finding(name=name, status="ok", detail="fits this torch; nothing here needs it")
        else:
            # The message names some library of CUDA; what is amiss is which package this is.
            sign = "torchvision::nms" if name == "torchvision" else "Could not load this library"
            ailment = recognise(sign)
            assert ailment is not None
            detail = f"{error}: {ailment.cause}. Our own engines hide it and work regardless"
            yield Finding(name=name, status="broken", detail=detail, remedy=UNINSTALL)


def _transformers(transformers: Probe) -> Finding:
    if transformers.error:
        return _failed(transformers, 'pip install "expertmix[embed]"')
    detail = f"{transformers.facts['version']}; its models import"
    return Finding(name="transformers", status="ok", detail=detail)


def _vllm(vllm: Probe) -> Finding:
    if vllm.error:
        return _failed(vllm, 'pip install "expertmix[cpu]", or "expertmix[vllm]" for a GPU')
    version, platform = vllm.facts["version"], vllm.facts["platform"]
    if platform == "UnspecifiedPlatform" or not vllm.facts["device"]:
        ailment = recognise("UnspecifiedPlatform")
        assert ailment is not None
        detail = f"{version} finds nothing to run on (UnspecifiedPlatform): {ailment.cause}"
        return Finding(name="vllm", status="broken", detail=detail, remedy=ailment.remedy)
    return Finding(name="vllm", status="ok", detail=f"{version} runs on {vllm.facts['device']}")


def _vllm_command() -> Finding:
    ailment = recognise("No package metadata was found for vllm")
    assert ailment is not None
    detail = f"`vllm serve` stops with PackageNotFoundError: {ailment.cause}"
    return Finding(name="command vllm", status="info", detail=detail, remedy=ailment.remedy)


def _vllm_on_cpu() -> Finding:
    detail = (
        "no sleep mode (engines are stopped instead), texts repeat across batch sizes in float32 "
        "only, and its warnings about libtcmalloc, libiomp and `pip check` are harmless"
    )
    return Finding(name="vllm on a CPU", status="info", detail=detail)


def _triton() -> Finding:
    detail = "1 GB that a CPU never uses; vLLM and xgrammar work without"
    remedy = f"{sys.executable} -m pip uninstall -y triton"
    return Finding(name="triton", status="info", detail=detail, remedy=remedy)


def _failed(probe: Probe, install: str) -> Finding:
    if f"No module named '{probe.name}'" in probe.error:
        return Finding(name=probe.name, status="missing", detail="not installed", remedy=install)
    ailment = recognise(probe.error)
    detail = f"{probe.error}: {ailment.cause}" if ailment else probe.error
    remedy = ailment.remedy if ailment else install
    return Finding(name=probe.name, status="broken", detail=detail, remedy=remedy)
