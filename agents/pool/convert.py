"""Writes a GGUF file as a Hugging Face folder in bf16. Run as a program, in its own process.

    python -m expertmix.agents.pool.convert SOURCE.gguf FOLDER

De-quantising needs torch, transformers and memory for the whole model; a process of its own gives
all of that back. Problems are reported as one last line on standard error and exit status 1.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["convert", "hide_torchvision", "main"]

DIGITS = {"type": "Digits", "individual_digits": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
NEEDED = ("torch", "transformers", "gguf", "accelerate")


def convert(source: Path, folder: Path) -> None:
    """Write the model, tokenizer and chat template of one GGUF file into `folder`.

    Weights become bfloat16 and keep the error of their quantisation. What transformers loses is put
    back: the pre-tokenizer that splits numbers into digits, and the model's context length.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place = {"gguf_file": source.name, "local_files_only": True}
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        dtype=torch.bfloat16,
        # Without it the config stays "quantised" and save_pretrained refuses.
        quantization_config=GgufConfig(dequantize=True),
        **place,
    )
    model.save_pretrained(str(folder))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(source.parent), **place)
    tokenizer.save_pretrained(str(folder))
    _settle_tokenizer(folder, model.config.get_text_config().max_position_embeddings)
    if _pre_tokenizer(source) == "smollm":
        _split_digits(folder / "tokenizer.json")


def hide_torchvision() -> None:
    """Make transformers in this process do without torchvision, torchaudio and torchcodec.

    Beside a CPU build of torch, pip puts CUDA builds of them, and every model import then dies of
    `operator torchvision::nms does not exist`. A text model needs none of them.
    """
    for name in ("torchvision", "torchaudio", "torchcodec"):
        # The import system reads None as "there is no such module".
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]


def main(arguments: Sequence[str]) -> int:
    """Convert `[source, folder]`; return the exit status."""
    source, folder = map(Path, arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"it needs {' and '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 1
    try:
        hide_torchvision()
        convert(source, folder)
    except Exception as error:  # the parent shows the reason, whatever it is
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        return 1
    return 0


def _pre_tokenizer(source: Path) -> str | None:
    from gguf import GGUFReader

    field: Any = GGUFReader(str(source)).get_field("tokenizer.ggml.pre")
    return None if field is None else str(field.contents())


def _settle_tokenizer(folder: Path, context_length: int) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"model_max_length": context_length, "tokenizer_class": "PreTrainedTokenizerFast"}
    for ours in ("is_local", "local_files_only", "backend"):
        config.pop(ours, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _split_digits(path: Path) -> None:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    steps = [DIGITS, {**BYTE_LEVEL, "use_regex": True}]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
