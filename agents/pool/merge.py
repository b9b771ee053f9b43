"""Adds a LoRA adapter to the weights it was trained on. Run as a program, in its own process.

    python -m expertmix.agents.pool.merge BASE ADAPTER FOLDER

Problems are reported as one last line on standard error and exit status 1.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main", "merge"]

PREFIX = "base_model.model."


def merge(base: Path, adapter: Path, folder: Path) -> None:
    """Write `W + (alpha / r) B A` for every adapted matrix W, and copy everything else.

    Sums are made in float32 and stored in the base's own type. LoRA: Hu et al. 2021, eq. 3.

    Raises:
        ValueError: the adapter uses more than plain LoRA, or names matrices that the base has not.
    """
    from safetensors.torch import load_file, save_file

    scale = _read_scale(adapter / "adapter_config.json")
    lora: dict[str, Any] = load_file(adapter / "adapter_model.safetensors")
    strange = [name for name in lora if ".lora_A." not in name and ".lora_B." not in name]
    if strange:
        raise ValueError(f"only plain LoRA can be merged, this has {strange[0]}")
    pairs = {
        name.removeprefix(PREFIX).replace(".lora_A.weight", ".weight"): (
            lora[name],
            lora[name.replace(".lora_A.", ".lora_B.")],
        )
        for name in lora
        if ".lora_A." in name
    }
    for file in sorted(base.iterdir()):
        if file.suffix != ".safetensors":
            if file.is_file() and file.name != "expertmix.json":
                shutil.copyfile(file, folder / file.name)
            continue
        tensors: dict[str, Any] = load_file(file)
        for name in [name for name in tensors if name in pairs]:
            a_RI, b_OR = pairs.pop(name)  # R rank, I inputs, O outputs
            delta_OI = scale * (b_OR.float() @ a_RI.float())
            tensors[name] = (tensors[name].float() + delta_OI).to(tensors[name].dtype)
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    if pairs:
        raise ValueError(f"the base has no {sorted(pairs)[0]}; the adapter is for another model")


def main(arguments: Sequence[str]) -> int:
    """Merge `[base, adapter, folder]`; return the exit status."""
    try:
        merge(*map(Path, arguments))
    except Exception as error:  # the parent shows the reason, whatever it is
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 1
    return 0


def _read_scale(path: Path) -> float:
    config = json.loads(path.read_text(encoding="utf-8"))
    beyond = [
        key
        for key in (
            "use_dora",
            "fan_in_fan_out",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "lora_bias",
        )
        if config.get(key)
    ]
    if config.get("bias", "none") != "none" or beyond:
        raise ValueError(f"only plain LoRA can be merged, this uses {', '.join(beyond) or 'bias'}")
    rank = config["r"]
    return config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
