"""The files of recorded answers: rows and names, or one sentence about why there are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..retrieval import InputError
from .engines.wording import name_some, one_line

__all__ = ["read_models", "read_rows"]


def read_rows(
    path: Path, *, needed: Sequence[str], wanted: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """All rows of a parquet file, with the columns named here that it has.

    Raises:
        InputError: there is no such file, it is no parquet file, lacks a needed column, is empty, or
            pyarrow is not installed.
    """
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: a table is a folder with questions.parquet and outcomes.parquet"
        )
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"reading {path} needs pyarrow: pip install 'expertmix[eval]'") from None
    try:
        columns = list(parquet.read_schema(path).names)
        missing = [name for name in needed if name not in columns]
        if missing:
            raise InputError(f"{path} lacks the column {missing[0]}; it has {name_some(columns)}")
        kept = [name for name in (*needed, *wanted) if name in columns]
        rows = cast("list[dict[str, Any]]", parquet.read_table(path, columns=kept).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file ({one_line(error)})") from None
    if not rows:
        raise InputError(f"{path} has no rows")
    for name in needed:
        if (bare := sum(row[name] is None for row in rows)) > 0:
            raise InputError(f"{path} has {bare} rows without {name}; every row needs one")
    return rows


def read_models(path: str | Path) -> list[str]:
    """Names of models from a file: one a line (`#` begins a comment), or a JSON list.

    Raises:
        InputError: the file is missing, no UTF-8 text, empty, or JSON but no list of names.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path} cannot be read: {why}") from None
    names: object = [line.strip() for line in text.splitlines()]
    if text.startswith(("[", "{")):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON ({error})") from None
    listed = cast("list[object]", names) if isinstance(names, list) else []
    found = [name for name in listed if isinstance(name, str) and name and name[0] != "#"]
    if isinstance(names, dict) or not all(isinstance(name, str) for name in listed):
        raise InputError(f"{path} is no list of names: write one a line, or a JSON list")
    if not found:
        raise InputError(f"{path} names no models: write one a line")
    return list(dict.fromkeys(found))
