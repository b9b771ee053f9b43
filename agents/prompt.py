"""Prompts are Markdown files beside the code; this reads and fills them."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from string import Template

__all__ = ["fill_prompt", "hash_prompts"]


def fill_prompt(name: str, **values: str) -> str:
    """Fill the prompt file `prompts/NAME.md`.

    Values are inserted as they are: a `$` inside a question is never taken for a placeholder.

    Raises:
        KeyError: a placeholder of the file has no value.
    """
    return _template(name).substitute(values).strip()


def hash_prompts(*names: str) -> str:
    """A sha256 over prompt files, to tell whether answers were made under the same wording."""
    texts = (_template(name).template for name in names)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


@cache  # the files do not change while we run, and a large batch asks for them once per request
def _template(name: str) -> Template:
    source = resources.files(__package__ or "expertmix.agents") / "prompts" / f"{name}.md"
    return Template(source.read_text(encoding="utf-8"))
