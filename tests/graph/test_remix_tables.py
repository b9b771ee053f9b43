"""Which questions a study takes from a parquet file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expertmix.graph.remix_tables import choose, find_splits, read_choices
from expertmix.retrieval import InputError, Question


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def make_row(at: int, **changes: Any) -> dict[str, Any]:
    row = {"id": f"i{at}", "question": f"What is {at}?", "options": ["x", "y"], "gold": "B"}
    return row | {"split": "train" if at % 2 else "test"} | changes


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "t.parquet", [make_row(at) for at in range(40)])


def test_splits_are_taken_by_name_and_found_by_their_beginning(table: Path, tmp_path: Path) -> None:
    assert {q.id for q in read_choices(table, splits=["test"])} == {
        f"i{n}" for n in range(0, 40, 2)
    }
    assert len(read_choices(table)) == 40
    assert find_splits(table, "tr") == ["train"]
    assert find_splits(table, "dev") is None
    bare = write(tmp_path / "b.parquet", [{"question": "?", "options": ["x", "y"], "gold": "A"}])
    assert find_splits(bare, "test") is None
    assert read_choices(bare)[0].id == "b/1"  # numbered by the file where rows have no id


def test_a_larger_limit_keeps_what_a_smaller_one_chose_in_any_file_order(tmp_path: Path) -> None:
    rows = [make_row(at) for at in range(40)]
    first = read_choices(write(tmp_path / "a.parquet", rows), limit=5)
    turned = write(tmp_path / "b.parquet", rows[::-1])
    assert [q.id for q in read_choices(turned, limit=5)] == [q.id for q in first]
    assert read_choices(turned, limit=12)[:5] == first
    assert read_choices(turned, limit=5, seed=1) != first


def test_rows_without_options_are_left_out(tmp_path: Path) -> None:
    rows = [make_row(0), make_row(1, options=None, gold="7"), make_row(2, options=[])]
    assert [q.id for q in read_choices(write(tmp_path / "a.parquet", rows))] == ["i0"]


def test_other_names_of_columns_are_understood(tmp_path: Path) -> None:
    rows = [{"question_id": "m1", "question": "?", "options": ["x", "y", "z"], "gold": "C"}]
    (found,) = read_choices(write(tmp_path / "a.parquet", rows))
    assert found == Question(id="m1", text="?", options=("x", "y", "z"), gold="C", kind="choice")


def test_gold_may_be_an_index(tmp_path: Path) -> None:
    rows = [{"question": "?", "options": ["x", "y", "z"], "gold_index": 2}]
    assert read_choices(write(tmp_path / "a.parquet", rows))[0].gold == "C"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "there is no file"),
        (b"no parquet", "cannot be read as parquet"),
        ([make_row(0, gold="Z")], r"row 1: "),
        ([make_row(0, options=None, gold="7")], "no multiple-choice questions"),
        ([make_row(0, gold=None)], "row 1: it has no gold answer"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "a.parquet"
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif change is not None:
        write(path, change)
    with pytest.raises(InputError, match=said):
        read_choices(path)


def test_choosing_is_by_id_alone() -> None:
    questions = [Question(id=f"q{n}", text="?") for n in range(10)]
    assert choose(questions, 3, 0) == choose(questions[::-1], 3, 0)
    assert len(choose(questions, None, 0)) == 10
