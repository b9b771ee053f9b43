"""The examples in docstrings run, imported by their public names."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("retrieval", "tools", "agents", "graph", "apps")
NAMES = sorted(
    ".".join(("expertmix", *(p for p in parts if p != "__init__")))
    for floor in FLOORS
    for path in (ROOT / floor).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
    for parts in [path.relative_to(ROOT).with_suffix("").parts]
)


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_module_run(name: str) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.failed == 0
