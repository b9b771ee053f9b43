"""What a set of files holds, as one sha256 that is remembered while the files stay the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["digest_bytes", "digest_files"]

REMEMBERED_FROM = 8 << 20
"""Bytes; smaller files are read again, which costs less than looking the digest up."""


def digest_files(files: Iterable[Path], *, cache: Path) -> str:
    """Return the sha256 of the files' names and contents, in any order, as 64 hex digits.

    Reading gigabytes takes seconds, so the digest of a large file is kept under `cache`, for as long
    as its path, size, inode and time of change stay as they were.
    """
    lines = [f"{file.name} {_digest(file, cache)}" for file in files]
    return digest_bytes("\n".join(sorted(lines)).encode())


def digest_bytes(data: bytes) -> str:
    """Return the sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _digest(file: Path, cache: Path) -> str:
    state = file.stat()
    if state.st_size < REMEMBERED_FROM:
        return digest_bytes(file.read_bytes())
    identity = f"{file.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}"
    note = cache / "digests" / digest_bytes(identity.encode())
    with contextlib.suppress(OSError):
        return note.read_text(encoding="ascii")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        _remember(note, digest)
    return digest


def _remember(note: Path, digest: str) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=note.parent)
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(digest)
    Path(name).replace(note)
