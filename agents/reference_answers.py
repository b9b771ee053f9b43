r"""The answer reading and scoring of the published code, with their mistakes, to compare figures with.

Written from its description and pinned by recorded values (symbolic-moe.md §1.9 and §5.3). Nothing
else in the library uses it: it takes the `A` of `Answer: none` for an answer. `answers.read_answer` is
the reader to use.
"""

from __future__ import annotations

import re
import threading
from math import prod

__all__ = ["is_correct_like_reference", "read_boxed_like_reference", "read_choice_like_reference"]

NOT_FOUND = "N/A"
POWER_PRODUCT = 10_000
"""Bound on the product of all whole numbers after a power sign, up to the next word or equals sign."""

_BREAK = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|[=$]")
_COSTLY = re.compile(
    r"\d{4}\s*!|[)}]\s*!|!!|\\\w*binom"
    r"|(?:\^|\*\*)(?:[^a-zA-Z\\=$]|\\[a-zA-Z]+)*?(?:\^|\*\*)"  # a tower of powers
)


def read_choice_like_reference(text: str | None, n: int) -> str:
    """The last capital before a `)`, or else the last capital anywhere, even inside a word.

    Args:
        text: The reply.
        n: Number of options, 1 to 26; later letters are not seen.

    Returns:
        A letter, `"N/A"`, or `"|"`: a stray bar is part of the published pattern.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:n]
    marked = re.findall(rf"([{letters}|])\)", text or "")
    found = marked or re.findall(rf"[{letters}]", text or "")
    return found[-1] if found else NOT_FOUND


def read_boxed_like_reference(text: str | None) -> str:
    r"""What the last `\boxed{…}` holds; the whole text if there is none or it is never closed.

    Without a `\boxed`, the last `\fbox{…}` is returned, but with its command around it.
    """
    if not text:
        return NOT_FOUND
    start = text.rfind(r"\boxed")
    if start < 0:
        start = text.rfind(r"\fbox")
    end = _box_end(text, start) if start >= 0 else None
    if end is None:
        return text
    box = text[start:end]
    return box[len(r"\boxed{") : -1] if box.startswith(r"\boxed{") else box


def is_correct_like_reference(gold: object, answer: object) -> bool:
    r"""Whether math-verify accepts the answer in any of three dresses: `$x$`, `x`, `x` without `\( \)`.

    Any exception makes the answer wrong: one is raised for the number 33, which the published code reads
    back from its tables, so that its "initial accuracy" on AIME is 0. Of a gold with two values, such as
    `080 or 081`, only the last counts. A letter is right where `same_answer` says so.

    math-verify reads plain expressions by evaluating them. What could keep it busy (towers of powers,
    factorials of large numbers, binomials) is therefore wrong here unless it is the same text.

    Raises:
        RuntimeError: not called from the main thread, where math-verify finds 33 unequal to 33.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("math-verify is only right in the main thread; compare answers there")
    if not (isinstance(gold, str) and isinstance(answer, str)):
        return False
    if not (_is_cheap(gold) and _is_cheap(answer)):
        return gold == answer
    from math_verify import parse, verify

    bare = [re.sub(r"\\[()]", "", text) for text in (gold, answer)]
    try:
        return any(
            verify(parse(first), parse(second))
            for first, second in ((f"${gold}$", f"${answer}$"), (gold, answer), (bare[0], bare[1]))
        )
    except Exception:  # as published: whatever goes wrong, the answer is wrong
        return False


def _is_cheap(text: str) -> bool:
    """Whether nothing in the text takes long to evaluate."""
    powers = [re.split(r"\^|\*\*", part, maxsplit=1)[1:] for part in _BREAK.split(text)]
    products = [prod(map(int, re.findall(r"\d{1,9}", "".join(power)))) for power in powers]
    return max(products) <= POWER_PRODUCT and not _COSTLY.search(text)


def _box_end(text: str, start: int) -> int | None:
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place + 1
    return None
