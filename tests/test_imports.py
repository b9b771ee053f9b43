"""Importing the library is cheap: nothing heavy comes along."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median

import pytest

HEAVY = (
    "datasets",
    "faiss",
    "gguf",
    "matplotlib",
    "openai",
    "ortools",
    "pandas",
    "pyarrow",
    "ray",
    "safetensors",
    "sentence_transformers",
    "sympy",
    "torch",
    "transformers",
    "vllm",
)
# What a LangGraph application pays before it imports us, and the one thing we add by design.
NEIGHBOUR = "import langgraph.graph, langgraph.types, pydantic"


def in_a_new_process(statement: str) -> dict[str, float | list[str]]:
    """Run an import in a fresh interpreter: its seconds, and the packages it loaded."""
    script = (
        "import json, sys, time\n"
        "start = time.process_time()\n"
        f"{statement}\n"
        "seconds = time.process_time() - start\n"
        "roots = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "print(json.dumps({'seconds': seconds, 'roots': roots}))\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "name",
    [
        "expertmix.retrieval",
        "expertmix.tools",
        "expertmix.agents",
        "expertmix.agents.engines",
        "expertmix.agents.pool",
        "expertmix.graph",
        "expertmix.apps",
        "expertmix.apps.cli",
        "expertmix.apps.doctor",
    ],
)
def test_an_import_brings_nothing_heavy_along(name: str) -> None:
    roots = in_a_new_process(f"import {name}")["roots"]
    assert isinstance(roots, list)
    assert sorted(set(roots) & set(HEAVY)) == []


def test_importing_the_graph_costs_little_more_than_importing_langgraph() -> None:
    # Processor time, alternating, smallest of five: other load on the machine only adds. The bound
    # leaves us half of LangGraph's own cost: enough for pyyaml, our forty files and their
    # dataclasses, far too little for numpy-and-up (torch alone would be several times LangGraph).
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(5):
        theirs.append(float(in_a_new_process(NEIGHBOUR)["seconds"]))  # pyright: ignore[reportArgumentType]
        ours.append(float(in_a_new_process("import expertmix.graph")["seconds"]))  # pyright: ignore[reportArgumentType]
    assert min(ours) <= 1.5 * min(theirs), f"{median(ours):.2f} s against {median(theirs):.2f} s"
