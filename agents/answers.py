"""Reading an answer out of what a model wrote, and comparing it with another answer or the gold.

Three kinds of answer are known: the letter of an option, a number (or expression), and a short
text. All model text is untrusted: nothing of it is evaluated, and no text makes a function raise.
"""

from __future__ import annotations

import re
import unicodedata

from ..retrieval import TASKS, Question
from .choice_answers import read_choice
from .number_answers import matches_number, read_number, same_number
from .statements import boxed, clause, own_part, plain, statements, strip_thinking, tidy
from .task_answers import read_task_answer

__all__ = ["is_correct", "read_answer", "same_answer", "strip_thinking"]

SHORT_WORDS = 12
"""A line of more words is an explanation, not a short answer."""
CONTAINING_WORDS = 8
"""An answer of at most this many words may say more than the gold."""
TEXT_CHARS = 200

_DENIAL = re.compile(r"\b(?:not|no|never|neither|nor|or|isn't|without)\b")


def read_answer(text: str, question: Question) -> str | None:
    r"""The answer that a reply settles on, in canonical form, or None if it settles on none.

    Thinking (up to the last `</think>`) is not read. A question of a benchmark set is read by the set's
    own rule (`read_task_answer`).

    Returns:
        For choices a letter that the question has; for numbers `"42"`, `"2.5"`, `"1/2"` or an
        expression as written; otherwise a short text without its final stop.
    """
    if question.task in TASKS:
        return read_task_answer(text, question)
    text = strip_thinking(text)
    if question.kind == "choice":
        return read_choice(text, question.options)
    if question.kind == "number":
        return read_number(text)
    return _read_text(text)


def is_correct(answer: str | None, question: Question) -> bool:
    """Whether an answer read by `read_answer` is right; None never is.

    A text is right if it equals one of the gold's alternatives (`a || b`) but for case, accents,
    articles, punctuation and spaces, or if both are the same number. It may also say a little more:
    an answer of at most eight words that contains an alternative as whole words, and neither denies
    nor offers a choice (`not`, `or`, …).

    Raises:
        ValueError: the question has no gold answer.
    """
    if question.gold is None:
        raise ValueError(f'question "{question.id}" has no gold answer to compare with')
    if answer is None:
        return False
    if question.kind == "choice":
        return answer.strip().upper() == question.gold.strip().upper()
    if question.kind == "number":
        return matches_number(answer, question.gold)
    return any(_fits(answer, gold) for gold in question.gold.split("||") if gold.strip())


def same_answer(first: str | None, second: str | None, question: Question) -> bool:
    """Whether two answers to the question count as one in a vote. None equals nothing."""
    if first is None or second is None:
        return False
    if question.kind == "choice":
        return first.strip().upper() == second.strip().upper()
    if question.kind == "number":
        return same_number(first, second)
    return _normal(first) == _normal(second)


def _read_text(text: str) -> str | None:
    text = own_part(tidy(text)) or text
    boxes = [box.text for box in boxed(text) if box.text]
    stated = [s.text for s in statements(text) if s.cue != "hashes"]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if boxes or stated:
        return _short((boxes or stated)[-1])
    for line in lines[-1:] + lines[:1]:
        if len(line.split()) <= SHORT_WORDS:
            return _short(line)
    return None


def _short(content: str) -> str | None:
    answer = " ".join(plain(clause(content)).split()).strip(" .,;:!?\"'“”")
    return answer[:TEXT_CHARS].strip() or None


def _fits(answer: str, gold: str) -> bool:
    said, wanted = _normal(answer), _normal(gold)
    if said == wanted:
        return True
    if any(c.isdigit() for c in gold) and same_number(gold, answer):
        return True
    if not wanted or len(said.split()) > CONTAINING_WORDS or _DENIAL.search(answer.casefold()):
        return False
    return f" {wanted} " in f" {said} "


def _normal(text: str) -> str:
    """Lower case, without accents, articles, punctuation and extra spaces."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text)).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c)).replace("'", "")
    words = re.sub(r"[^\w]+|_", " ", text).split()
    kept = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(kept or words) or text.strip()
