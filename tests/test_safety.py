"""What this library never does with files and text that others wrote."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("retrieval", "tools", "agents", "graph", "apps")
FOLDERS = (*FLOORS, "benchmarks", "examples", "locks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNS_TEXT = {"eval", "exec", "__import__"}
FORBIDDEN_CALLS = {
    "os.popen": "a shell",
    "os.system": "a shell",
    "torch.load": "unpickles; safetensors instead",
    "torch.save": "pickles; safetensors instead",
    "yaml.full_load": "builds objects; yaml.safe_load instead",
    "yaml.load": "builds objects; yaml.safe_load instead",
    "yaml.load_all": "builds objects; yaml.safe_load_all instead",
    "yaml.unsafe_load": "builds objects; yaml.safe_load instead",
    "faiss.read_index": "parses an untrusted binary; rebuild from safetensors instead",
}
FORBIDDEN_SETTINGS = {
    "trust_remote_code",
    "allow_pickle",
    "allow_dangerous_deserialization",
    "shell",
}


def dangers(source: str) -> Iterator[str]:
    """Say what in a file would run or unpickle what others wrote, with the line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.partition(".")[0] in UNPICKLERS:
                        yield f"line {node.lineno}: imports {alias.name}"
            case ast.ImportFrom(module=str(module), level=0):
                if module.partition(".")[0] in UNPICKLERS:
                    yield f"line {node.lineno}: imports from {module}"
            case ast.Call(func=function, keywords=keywords):
                name = ast.unparse(function)
                if name in RUNS_TEXT:
                    yield f"line {node.lineno}: {name}()"
                if name in FORBIDDEN_CALLS:
                    yield f"line {node.lineno}: {name}(): {FORBIDDEN_CALLS[name]}"
                for keyword in keywords:
                    if keyword.arg in FORBIDDEN_SETTINGS and _may_be_true(keyword.value):
                        yield f"line {node.lineno}: {keyword.arg}"
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if not isinstance(key, ast.Constant) or key.value not in FORBIDDEN_SETTINGS:
                        continue
                    if _may_be_true(value):
                        yield f"line {value.lineno}: {key.value!r}"
            case _:
                pass


def _may_be_true(value: ast.expr) -> bool:
    return not (isinstance(value, ast.Constant) and not value.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_runs_and_unpickles_nothing_that_others_wrote(path: Path) -> None:
    assert not list(dangers(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def late():\n    from cloudpickle import loads",
        "torch.load(path, weights_only=True)",
        "eval(answer)",
        "exec(compile(answer, 'a', 'exec'))",
        "yaml.load(text, Loader=yaml.Loader)",
        "LLM(model, trust_remote_code=True)",
        "LLM(model, trust_remote_code=card.trusted)",
        "options = {'trust_remote_code': True}",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_a_planted_danger_is_found(source: str) -> None:
    assert list(dangers(source))


@pytest.mark.parametrize(
    "source",
    [
        "LLM(model, trust_remote_code=False)",
        "yaml.safe_load(text)",
        "model.eval()",
        "re.compile(pattern)",
        "{'shell': False}",
    ],
)
def test_the_harmless_neighbours_pass(source: str) -> None:
    assert not list(dangers(source))
