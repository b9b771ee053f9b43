"""Measure an adapter against its base model, greedily, on questions that it was not trained on.

    python examples/measure_adapter.py arithmetic --adapter examples/adapters/arithmetic
    python examples/measure_adapter.py choices --adapter examples/adapters/choices --data FOLDER

Both are asked the same questions in the way that the adapter was trained for: `arithmetic` writes an
answer, `choices` takes the option with the highest summed log-probability. Figures are the share of
right answers with a 95 % Wilson interval; a reply without an answer counts as wrong.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lessons import arithmetic_lessons, benchmark_questions
from train_adapter import BASE, encode_options, pad, target_logprobs

from expertmix.agents.answers import is_correct, read_answer
from expertmix.agents.pool.weights import PackageWeights, resolve_weights
from expertmix.agents.reason import build_messages
from expertmix.retrieval import InputError, Question, read_questions

__all__ = ["score", "wilson", "write"]

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


def write(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[str | None]:
    """Return what each question's greedy reply settles on."""
    import torch

    prompts = [
        tokenizer.apply_chat_template(
            list(build_messages(q)), tokenize=False, add_generation_prompt=True
        )
        for q in questions
    ]
    answers: list[str | None] = [None] * len(questions)
    for places in _by_length([len(prompt) for prompt in prompts]):
        batch = tokenizer(
            [prompts[i] for i in places],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode():
            ids_BT = model.generate(**batch, max_new_tokens=MOST_TOKENS, do_sample=False)
        replies_BT = ids_BT[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(replies_BT, skip_special_tokens=True)
        for place, text in zip(places, texts, strict=True):
            answers[place] = read_answer(text, questions[place])
    return answers


def score(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[str | None]:
    """Return the letter of each question's likeliest option. All must have equally many options."""
    import torch

    groups = [encode_options(tokenizer, q) for q in questions]
    answers: list[str | None] = [None] * len(questions)
    for places in _by_length([max(len(ids) for ids, _ in group) for group in groups]):
        batch = pad([groups[i] for i in places], tokenizer.pad_token_id)
        with torch.inference_mode():
            logprobs_N, rows_N = target_logprobs(model, batch)
            sums_B = logprobs_N.new_zeros(len(batch.ids_BT)).index_add(0, rows_N, logprobs_N)
        best_Q = sums_B.view(len(places), batch.rows).argmax(1)
        for place, best in zip(places, best_Q.tolist(), strict=True):
            answers[place] = questions[place].letters[best]
    return answers


def _by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def _load(adapter: Path) -> tuple[Any, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_weights(PackageWeights(package=BASE), root=Path.cwd()).model
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _tests(skill: str, data: Path | None, limit: int) -> dict[str, list[Question]]:
    shipped = read_questions(HERE / "references.jsonl")
    if skill == "arithmetic":
        made_up = itertools.islice(arithmetic_lessons(1, held_out=True), limit)
        return {
            "made up, held out": [lesson.question for lesson in made_up],
            "references.jsonl": [q for q in shipped if NUMERIC & set(q.skills)],
        }
    if data is None:
        raise InputError("choices are measured on benchmarks: give their folder with --data")
    tests = {
        name: random.Random(0).sample(benchmark_questions(data / f"{name}.parquet"), limit)
        for name in ("arc_easy", "openbookqa")
    }
    return tests | {"references.jsonl": [q for q in shipped if q.kind == "choice"]}


def _report(name: str, questions: Sequence[Question], answers: Sequence[str | None]) -> None:
    right = sum(is_correct(a, q) for a, q in zip(answers, questions, strict=True))
    low, high = wilson(right, len(questions))
    unread = sum(answer is None for answer in answers)
    print(
        f"{name}: {right}/{len(questions)} = {right / len(questions):.3f} "
        f"[{low:.3f}, {high:.3f}], without an answer {unread}",
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
    options = parser.parse_args()
    try:
        tests = _tests(options.skill, options.data, options.limit)
        model, tokenizer = _load(options.adapter)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    answer = write if options.skill == "arithmetic" else score
    for name, questions in tests.items():
        _report(f"adapter, {name}", questions, answer(model, tokenizer, questions))
        with model.disable_adapter():
            _report(f"base, {name}", questions, answer(model, tokenizer, questions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
