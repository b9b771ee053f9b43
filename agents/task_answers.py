r"""Reading an answer by the rule of the benchmark set that the question comes from.

Each rule is the official one where there is one, quirks included: the first pattern that fits decides,
even if what it finds is no option. Then the reply has no answer; nothing is guessed.

| task | rule | source |
|---|---|---|
| `mmlu_pro` | `answer is (X)`; else `Answer: X`; else the last lone capital A–J | `compute_accuracy.py`, TIGER-AI-Lab/MMLU-Pro (Apache-2.0), which then guesses at random |
| `gpqa` | the first `Answer: X` | `gpqa_eval.py`, openai/simple-evals (MIT) |
| `aime` | the last `\boxed{…}`; where there is none, the last whole number | `parser.py`, eth-sri/matharena |
| `gsm8k` | the first `#### N`; else the last number | `gsm8k.yaml`, EleutherAI/lm-evaluation-harness (MIT): its strict and its flexible filter |
| others | a first line that is a letter and nothing else; otherwise as everywhere (`read_choice`) | `mmlu/generative`, same harness. Their official evaluations compare likelihoods and read no text |
"""

from __future__ import annotations

import re
import string

from ..retrieval import Question
from .choice_answers import read_choice
from .number_answers import read_number
from .statements import boxed, strip_thinking

__all__ = ["read_task_answer"]

DIGITS = 40  # a longer number is nobody's answer
AIME_MOST = 999

_PRO_FIRST = re.compile(r"answer is \(?([A-J])\)?")
# `.*[aA]nswer:\s*([A-J])` takes the last of a line; this finds all of them without going back and forth.
_PRO_SECOND = re.compile(r"[aA]nswer:(?=\s*([A-J]))")
_PRO_THIRD = re.compile(r"\b[A-J]\b")
_WHOLE = re.compile(r"\b[0-9]+\b")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_NUMBER = re.compile(r"(-?)0*([0-9]*)(?:\.([0-9]*?)0*)?")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read_task_answer(text: str, question: Question) -> str | None:
    """The answer that a reply gives by the rule of `question.task`, or None if it gives none.

    Thinking (up to the last `</think>`) is not read. No text makes it raise.

    Returns:
        A letter that the question has, or a number without leading zeros, commas or unit.
    """
    text = strip_thinking(text)
    if question.task == "aime":
        return _read_aime(text)
    if question.task == "gsm8k":
        return _read_gsm8k(_before_next_question(text))
    if question.task == "mmlu_pro":
        letter = _read_mmlu_pro(_before_next_question(text))
    elif question.task == "gpqa":
        letter = _read_gpqa(text, question.letters)
    else:
        letter = _read_bare_line(text)
        if letter is None or letter not in question.letters:
            return read_choice(text, question.options)
    return letter if letter and letter in question.letters else None


def _before_next_question(text: str) -> str:
    """What stands before a next question that the model asks itself: there the harness stops it."""
    return text.partition("\nQuestion:")[0]


def _read_mmlu_pro(text: str) -> str | None:
    if first := _PRO_FIRST.search(text):
        return first[1]
    if second := _PRO_SECOND.search(text):
        line_end = text.find("\n", second.start())
        line = _PRO_SECOND.finditer(text, second.start())
        if line_end < 0:
            line_end = len(text)
        return [match[1] for match in line if match.start() < line_end][-1]
    lone = _PRO_THIRD.findall(text)
    return lone[-1] if lone else None


def _read_gpqa(text: str, letters: str) -> str | None:
    if not letters:
        return None
    found = re.search(rf"Answer[ \t]*:[ \t]*\$?([{letters}])\$?", text, re.IGNORECASE)
    # A small letter fits the official pattern and then equals no right answer.
    return found[1] if found else None


def _read_aime(text: str) -> str | None:
    boxes = boxed(text)
    if boxes:
        found = read_number(f"\\boxed{{{boxes[-1].text}}}")
    else:
        whole = _WHOLE.findall(text)
        found = whole[-1] if whole else None
    if found is None or not re.fullmatch(r"0*[0-9]{1,3}", found):
        return None
    value = int(found[-3:])
    return str(value) if value <= AIME_MOST else None


def _read_gsm8k(text: str) -> str | None:
    if strict := _STRICT.search(text):
        return _plain_number(strict[1])
    numbers = _FLEXIBLE.findall(text)
    return _plain_number(numbers[-1]) if numbers else None


def _plain_number(text: str) -> str | None:
    """As the harness cleans it (no comma, no `$`, no final stop), in one spelling for each value."""
    text = text.replace(",", "").replace("$", "").removesuffix(".")
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > DIGITS or not any(mark.isdigit() for mark in text):
        return None
    sign, whole, places = match[1], match[2] or "0", match[3] or ""
    value = f"{whole}.{places}" if places else whole
    return value if value == "0" else sign + value


def _read_bare_line(text: str) -> str | None:
    line = text.partition("\n")[0].translate(_NO_PUNCTUATION).strip().upper()
    return line if len(line) == 1 else None
