"""Making one clear sentence out of whatever a server, a model or a table may say."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["is_about_context", "name_some", "one_line"]

CONTEXT = re.compile(
    r"context[ _-]?(length|window|size)|max_model_len|maximum (prompt|input|sequence) length"
    r"|(prompt|input|request) (is|are) too (long|large)|too many (input |prompt )?tokens",
    re.IGNORECASE,
)


def one_line(text: object, *, limit: int = 240) -> str:
    """Strip control characters, join lines and shorten to `limit` characters.

    What others wrote is untrusted: it may carry terminal escapes, invisible direction marks, or a
    megabyte of HTML.
    """
    # Cut before cleaning: a megabyte must not be cleaned to be thrown away.
    printable = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * limit])
    words = " ".join(printable.split())
    return words if len(words) <= limit else f"{words[: limit - 1].rstrip()}…"


def name_some(names: Iterable[str], *, limit: int = 8) -> str:
    """`a, b, c and 31 more`; `none` where there are no names. Sorted, each one shortened."""
    ordered = sorted(names)
    shown = ", ".join(one_line(name, limit=60) for name in ordered[:limit])
    rest = len(ordered) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown or "none"


def is_about_context(message: str) -> bool:
    """Whether an error message says that the prompt does not fit the model's context window."""
    return CONTEXT.search(message) is not None
