"""The folder in which an unfinished build lies until it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....retrieval import InputError
from .part import Part, read_part, write_part

__all__ = ["check_free", "claim", "keep_part"]


def check_free(out: Path) -> None:
    """Refuse a place where something else is.

    Raises:
        InputError: a file, or a folder that is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is not empty; name a new folder, or empty it first.")


def claim(work: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder for work in progress, or check that what lies there is of the same build.

    Raises:
        InputError: it belongs to another build.
    """
    note = work / "build.json"
    text = json.dumps(dict(identity), indent=2, sort_keys=True)
    if work.exists() and (not note.is_file() or note.read_text(encoding="utf-8") != text):
        raise InputError(
            f"{work} holds the work of another build; remove it, or repeat the command that made it."
        )
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(text, encoding="utf-8")


def keep_part(part: Part, folder: Path) -> Part:
    """Write a part under a name that only whole parts have, and return it as it reads from there."""
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    write_part(part, draft)
    draft.rename(folder)
    return read_part(folder)
