"""The public surface: every `__all__` is there, sorted, true, and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("retrieval", "tools", "agents", "graph", "apps")


def dotted(path: Path) -> str:
    """`agents/engines/__init__.py` is `expertmix.agents.engines`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("expertmix", *(part for part in parts if part != "__init__")))


FILES = {
    dotted(path): path
    for floor in FLOORS
    for path in sorted((ROOT / floor).rglob("*.py"))
    if path.name != "__main__.py"
}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]


def in_order(name: str) -> tuple[int, str]:
    """The order that ruff keeps too: constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def defined_publicly(source: str) -> set[str]:
    """The functions and classes that a module defines at its top without an underscore."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {
        node.name
        for node in ast.parse(source).body
        if isinstance(node, definitions)
        and not node.name.startswith("_")
        and not any(map(_is_command, node.decorator_list))
    }


def _is_command(decorator: ast.expr) -> bool:
    """Whether a decorator hands the function to the command line, which is then its public face."""
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(function, ast.Attribute) and function.attr in ("command", "callback")


def imported_here(source: str) -> set[str]:
    """The names that a package takes over from its own modules."""
    return {
        alias.asname or alias.name
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_")
    }


def undocumented(module: ModuleType) -> list[str]:
    """The public classes and functions, and public methods defined in them, without a docstring."""
    missing: list[str] = []
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not (value.__doc__ or "").strip():
            missing.append(name)
        if inspect.isclass(value) and value.__module__ == module.__name__:
            missing += [
                f"{name}.{key}"
                for key, member in vars(value).items()
                if not key.startswith("_")
                and (inspect.isfunction(member) or isinstance(member, classmethod | property))
                and not inspect.getdoc(getattr(value, key))
            ]
    return missing


@pytest.mark.parametrize("name", FILES)
def test_a_module_lists_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert isinstance(getattr(module, "__all__", None), list), f"{name} has no __all__"
    exported: list[str] = module.__all__
    assert exported == sorted(set(exported), key=in_order), f"{name}.__all__ is not sorted"
    assert [key for key in exported if not hasattr(module, key)] == []
    assert undocumented(module) == []
    unlisted = defined_publicly(FILES[name].read_text(encoding="utf-8")) - set(exported)
    assert not unlisted, f"{name} defines {sorted(unlisted)}: export them, or begin with _"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_exports_exactly_what_it_imports(name: str) -> None:
    source = FILES[name].read_text(encoding="utf-8")
    exported = set(importlib.import_module(name).__all__)
    assert imported_here(source) | defined_publicly(source) == exported


def test_the_checks_see_what_is_missing() -> None:
    source = "def open(): ...\ndef _shut(): ...\nclass Door: ...\n@app.command()\ndef knock(): ..."
    assert defined_publicly(source) == {"open", "Door"}
    assert imported_here("from .a import b as c, _d\nfrom json import e\nfrom ..f import g") == {
        "c"
    }
    module = ModuleType("door")
    door = type("Door", (), {"__module__": "door", "knock": lambda self: None})  # pyright: ignore[reportUnknownLambdaType]
    module.__dict__.update(Door=door, __all__=["Door"])
    assert undocumented(module) == ["Door", "Door.knock"]
