"""The rows of a question file or of a data set on the hub, before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from .errors import InputError
from .hub_questions import is_hub_name, read_raw_hub_rows

__all__ = ["read_file_rows", "read_rows"]

Row = Mapping[str, Any]


def read_rows(source: str | Path, *, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """Each row with its place, for messages, in the source's order.

    Args:
        source: A `.jsonl` or `.parquet` file, or a data set as `HubName` writes it.
        split: Only rows whose column `split` says so; of a data set, its split of that name.

    Raises:
        InputError: the source cannot be read, a line is no JSON object, or there is no such split.
    """
    if is_hub_name(source):
        return read_raw_hub_rows(str(source), split=split)
    return read_file_rows(Path(source), split=split)


def read_file_rows(path: Path, *, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """As `read_rows`, for a file."""
    if not path.is_file():
        raise InputError(f"no question file at {path}: give a .jsonl or .parquet file")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    return rows if split is None else _choose_split(rows, split, path)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):  # not shown: rows of some sets must not be
            raise InputError(
                f"{path}, line {number}: a JSON object is expected, got {type(row).__name__}"
            )
        yield f"line {number}", cast("dict[str, Any]", row)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            f"reading {path} needs pyarrow: pip install pyarrow, or give a .jsonl file"
        ) from None
    try:
        rows = cast("list[dict[str, Any]]", pq.read_table(path).to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a parquet file ({error})") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _choose_split(
    rows: Iterable[tuple[str, Row]], split: str, source: object
) -> Iterator[tuple[str, Row]]:
    """The rows whose column `split` is `split`; where none is, that is said after the last row."""
    seen: dict[str, None] = {}
    columns: dict[str, None] = {}
    for place, row in rows:
        found = row.get("split")
        if found is not None:
            seen[str(found)] = None
        elif not seen:
            columns.update(dict.fromkeys(map(str, row)))
        if found is not None and str(found) == split:
            yield place, row
    if split in seen:
        return
    if seen:
        raise InputError(f'{source} has no split "{split}"; it has {", ".join(seen)}')
    if columns:
        raise InputError(
            f'{source} has no column "split" to find "{split}" in; it has {", ".join(columns)}'
        )
