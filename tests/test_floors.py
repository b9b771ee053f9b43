"""The law of the house: each floor imports only from the floors below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("retrieval", "tools", "agents", "graph", "apps")  # ground first
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def violations(source: str, path: str) -> Iterator[str]:
    """Say which imports of a library file break the law; `path` is relative to the repository."""
    parts = Path(path).parts
    floor, depth = parts[0], len(parts) - 1  # `agents/engines/base.py` lies two packages deep
    below = FLOORS[: FLOORS.index(floor)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom) and node.level > depth:
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            for module in modules:
                target = module.partition(".")[0]
                if node.level > depth + 1 or target not in below:
                    yield f"{path}:{node.lineno} reaches {target} from {floor}"
            continue
        else:
            continue
        for name in names:
            if name.partition(".")[0] in ("expertmix", *FLOORS):
                yield f"{path}:{node.lineno} imports {name} absolutely; import relatively"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_the_floors_below(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    assert not list(violations(path.read_text(encoding="utf-8"), relative))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("agents/pool/plan.py", "from ...graph import solve"),
        ("agents/pool/plan.py", "from ... import apps"),
        ("agents/pool/plan.py", "from ....agents import vote"),
        ("retrieval/index.py", "from ..tools import lookup"),
        ("graph/nodes.py", "def late():\n    from ..apps.cli import main"),
        ("graph/nodes.py", "import expertmix.agents"),
        ("graph/nodes.py", "from expertmix.agents import vote"),
        ("graph/nodes.py", "import agents.engines"),
        ("graph/nodes.py", "from ..graph import state"),  # its own floor, by a detour
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    assert list(violations(source, path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("agents/pool/plan.py", "from ...retrieval import InputError"),
        ("agents/pool/plan.py", "from ..engines import Request\nfrom .ledger import Ledger"),
        ("agents/__init__.py", "from .answers import vote"),
        ("apps/cli.py", "import graphlib\nimport rich\nfrom .. import graph"),
    ],
)
def test_looking_down_and_sideways_is_allowed(path: str, source: str) -> None:
    assert not list(violations(source, path))
