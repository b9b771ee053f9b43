"""Loads a Hugging Face model into this process, or says in one sentence why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...retrieval import InputError
from ...retrieval.loading_turn import loading_turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoadedModel", "explain", "load_model"]

TORCHVISION = (
    "torchvision does not fit this torch; run: pip uninstall -y torchvision torchaudio torchcodec"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A causal language model, ready to run, with what belongs to it."""

    model: PreTrainedModel
    """In eval mode, on its device."""
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    """Tokens that end an answer."""
    window: int | None
    """Tokens that prompt and answer may have together."""
    memory_bytes: int
    """Size of parameters and buffers."""


def load_model(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    context_length: int | None = None,
) -> LoadedModel:
    """Load safetensors weights and their tokenizer; no code that comes with them is run.

    Args:
        model: A folder, or a Hugging Face id with its `revision`.
        revision: Commit of a Hugging Face id.
        dtype: `auto` keeps the stored type.
        device: `auto` takes CUDA if there is any.
        context_length: Lowers the model's own window.

    Raises:
        InputError: no such folder, or an id without a revision. transformers raises errors of its
            own kinds besides; `explain` puts them into words.
    """
    if not Path(model).is_dir() and revision is None:
        raise InputError(f"there is no folder {model}, and a Hugging Face id needs a revision.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"revision": revision} if revision is not None else {}
    tokenizer: Any = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False, **place)
    with loading_turn():
        network: Any = AutoModelForCausalLM.from_pretrained(
            str(model), dtype=dtype, use_safetensors=True, trust_remote_code=False, **place
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device).eval()
    own = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    known = [length for length in (context_length, own) if length is not None]
    return LoadedModel(
        model=network,
        tokenizer=tokenizer,
        ends=_ends(network, tokenizer),
        window=min(known, default=None),
        memory_bytes=sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()]),
    )


def explain(error: Exception) -> str:
    """What went wrong, in one line, with the remedy where there is a known one."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, InputError):
        return text
    if "torchvision" in f"{text} {error.__cause__} {error.__context__}":
        return f"{TORCHVISION} ({text})"
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "transformers"):
        return f"{error.name} is not installed; run: pip install 'expertmix[embed]'"
    return f"{type(error).__name__}: {text}"


def _ends(network: Any, tokenizer: Any) -> frozenset[int]:
    stated = network.generation_config.eos_token_id
    ids = stated if isinstance(stated, list) else [stated]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if isinstance(i, int))
