"""Tiny random dense models with a tokenizer, in folders as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if not loop.last or m['role'] == 'user' %}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
MakeParent = Callable[..., Path]


def letter_tokenizer() -> Any:
    """Bytes, and one token for each option letter behind a space."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "ABCDEFGHIJ"]
    vocab = {name: n for n, name in enumerate(names)}
    vocab |= {"".join(pair): 280 + n for n, pair in enumerate(merges)}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("</s>", "<|start|>", "<|end|>")]
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture
def make_parent(tmp_path: Path) -> MakeParent:
    """Writes a random model of a family into a new folder."""
    import torch
    import transformers

    def make(family: str = "Llama", *, dtype: Any = torch.float32, seed: int = 0, **changes: Any):
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        config = getattr(transformers, f"{family}Config")(**(SIZES | changes))
        torch.manual_seed(seed)
        model: Any = getattr(transformers, f"{family}ForCausalLM")(config)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith("bias"):
                    tensor.normal_(std=0.5)
        model.to(dtype).save_pretrained(folder)
        letter_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """A parquet file of choices, whose right option is the word of the question, in three splits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = ["elm", "oak", "fir", "ash", "yew", "box", "bay", "fig"]
    rows = [
        {
            "id": f"{split}/{n}",
            "split": split,
            "question": f"Say {words[n % 8]} {n}",
            "options": [words[n % 8], words[(n + 3) % 8], words[(n + 5) % 8]],
            "gold_index": 0,
            "gold": "A",
        }
        for split, numbers in (("train", range(24)), ("test", range(20, 30)))
        for n in numbers
    ]
    path = tmp_path / "choices.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A few short calibration prompts."""
    rows: list[dict[str, Any]] = [{"text": f"The {n} trees stood in a row."} for n in range(6)]
    rows += [{"question": f"How many is {n}?", "options": ["one", "two"]} for n in range(3)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
