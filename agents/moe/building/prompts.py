"""The prompts on which a model is watched while it is split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....retrieval import InputError, Question
from ...engines.tokens import encode_chat
from ...reason import build_messages

__all__ = ["Prompt", "encode_prompts", "new_tokens", "read_prompts"]

OWN = Path(__file__).with_name("calibration.jsonl")
LONGEST = 256
"""Tokens; what a prompt has beyond is left out."""

Prompt = Question | str


def read_prompts(path: Path | None = None) -> list[Prompt]:
    """Read a JSONL file of questions (`question` or `text` with `options`) and of plain texts.

    Raises:
        InputError: a file that cannot be read, holds something else, or less than two prompts.
    """
    path = path or OWN
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The calibration prompts in {path} cannot be read: {error}") from error
    prompts = [_read(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if len(prompts) < 2:
        raise InputError(f"{path} holds {len(prompts)} prompts; calibrating needs at least two.")
    return prompts


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The token ids of each prompt; texts as they are, questions as experts are asked."""
    template = None if tokenizer.chat_template else "plain"
    encoded = [
        list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if isinstance(prompt, str)
        else encode_chat(tokenizer, build_messages(prompt, style="letter"), chat_template=template)
        for prompt in prompts
    ]
    return [ids[:LONGEST] for ids in encoded if ids]


def new_tokens(encoded: Sequence[Sequence[int]]) -> list[list[bool]]:
    """Per prompt, which tokens were not already seen behind the very same beginning.

    A chat template's head is the same in all prompts, and would count as often as there are prompts.
    """
    seen: set[tuple[int, ...]] = set()
    fresh: list[list[bool]] = []
    for ids in encoded:
        heads = [tuple(ids[: end + 1]) for end in range(len(ids))]
        fresh.append([head not in seen for head in heads])
        seen.update(heads)
    return fresh


def _read(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is no JSON object.")
    if not row.get("options") and isinstance(row.get("text"), str) and row["text"].strip():
        return row["text"]
    try:
        return Question.from_json(row)
    except InputError as error:
        raise InputError(f"{where} is not a prompt: {error}") from error
