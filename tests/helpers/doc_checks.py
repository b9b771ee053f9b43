"""What can be known of a block without running it: its syntax, and whether it names what exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any

import typer
import yaml
from doc_blocks import ROOT, Block

from expertmix.agents import Catalog
from expertmix.apps.cli import app
from expertmix.retrieval import InputError

__all__ = ["find_faults"]

LANGUAGES = ("bash", "console", "html", "json", "jsonl", "mermaid", "python", "sh", "text", "toml", "yaml")  # fmt: skip


def find_faults(block: Block, files: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with a block, in sentences."""
    if block.language not in LANGUAGES:
        return [f'the language "{block.language}" is none of {", ".join(LANGUAGES)}']
    if block.language == "mermaid" and block.page.startswith("docs/"):
        return ["the site would load mermaid from another host: draw it with docs/pictures"]
    if block.junk:
        return [f"nobody reads {block.junk!r} behind the fence"]
    if block.reason is not None and len(block.reason.split()) < 2:
        return ['.no-run needs data-reason="…", in a few words']
    try:
        match block.language:
            case "python":
                return list(_check_python(block.source))
            case "bash" | "sh":
                installing = {words[0] for words in split_commands(block.source)} & {
                    "make",
                    "pip",
                    "uv",
                }
                if block.runs and installing:
                    return [f"{', '.join(installing)} would change the environment: say .no-run"]
                return list(_check_shell(block.source, files))
            case "console":
                typed = [line[2:] for line in block.source.splitlines() if line[:2] == "$ "]
                return list(_check_shell("\n".join(typed), files)) if typed else ["no $ in it"]
            case "json":
                json.loads(block.source)
            case "jsonl":
                for line in block.source.splitlines():
                    json.loads(line)
            case "toml":
                tomllib.loads(block.source)
            case "yaml":
                _check_yaml(block.source)
            case _:
                pass
    except (ValueError, SyntaxError, InputError, yaml.YAMLError) as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def _check_python(source: str) -> Iterator[str]:
    tree = compile(
        source, "<docs>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )  # fmt: skip
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("expertmix"):
            continue
        try:
            module = importlib.import_module(str(node.module))
        except ModuleNotFoundError as error:
            if str(error.name).startswith("expertmix"):
                yield f"there is no {error.name}"
            continue  # what it needs is not installed
        yield from (
            f"{node.module} has no {n.name}" for n in node.names if not hasattr(module, n.name)
        )


def _check_yaml(source: str) -> None:
    """Of a pool file, also what pydantic says; experts may stand alone."""
    loaded: Any = yaml.safe_load(source.replace("<40 hexadecimal digits>", "a" * 40))
    if isinstance(loaded, list) and loaded and "alias" in loaded[0]:
        loaded = {"experts": loaded}
    if isinstance(loaded, dict) and "experts" in loaded:
        Catalog.from_dict(loaded, base=ROOT)


def _check_shell(source: str, files: tuple[str, ...]) -> Iterator[str]:
    checked = subprocess.run(["bash", "-n"], input=source, text=True, capture_output=True, check=False)  # fmt: skip
    if checked.returncode:
        yield checked.stderr.strip()
        return
    for words in split_commands(source):
        match words:
            case ["expertmix", *rest]:
                yield from _check_command(rest)
            case ["make", target, *_] if not re.search(
                rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
            ):
                yield f"the Makefile has no target {target}"
            case ["python", "-m", module, *_] if module.startswith("expertmix"):
                if importlib.util.find_spec(module) is None:
                    yield f"there is no module {module}"
            case ["python", script, *rest] if script.endswith(".py") and script not in files:
                path = ROOT / script
                text = path.read_text(encoding="utf-8") if path.is_file() else None
                if text is None:
                    yield f"there is no {script}"
                    continue
                options = [word.split("=")[0] for word in rest if word.startswith("--")]
                yield from (f"{script} has no {o}" for o in options if f'"{o}"' not in text)
            case [("pip" | "uv"), *_]:
                yield from _check_extras(words)
            case _:
                pass


def split_commands(source: str) -> Iterator[list[str]]:
    """The simple commands of a script as words, without settings before them and redirections' signs."""
    for line in re.sub(r"\\\n", " ", source).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        try:
            tokens = list(lexer)
        except ValueError:  # a string over several lines
            continue
        for token in (*tokens, ";"):
            if set(token) <= set("();&|"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=|exec$|then$|do$", token):
                words.append(token)


def _check_command(words: list[str]) -> Iterator[str]:
    command: Any = typer.main.get_command(app)
    name = "expertmix"
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            break
        if words[0] not in command.commands:
            yield f"{name} has no command {words[0]}"
            return
        name = f"{name} {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {"--help", *(name for p in command.params for name in (*p.opts, *p.secondary_opts))}
    for word in words:
        if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known:
            yield f"{name} has no option {word}"


def _check_extras(words: list[str]) -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if named := re.match(r"(?:expertmix|\.)\[([\w,-]+)\]", word):
            for extra in set(named[1].split(",")) - set(project["optional-dependencies"]):
                yield f"there is no extra {extra}"
