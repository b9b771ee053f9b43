r"""The answer reading of the published code, with its mistakes, for comparisons with its figures.

Written from its description and pinned by recorded values (symbolic-moe.md §1.9 and §5.3). Nothing
else in the library uses it: it takes the `A` of `Answer: none` for an answer. `answers.read_answer` is
the reader to use.
"""

from __future__ import annotations

import re

__all__ = ["read_boxed_like_reference", "read_choice_like_reference"]

NOT_FOUND = "N/A"


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
