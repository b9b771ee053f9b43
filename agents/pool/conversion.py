"""GGUF files as Hugging Face folders: converted once, kept in the cache, shared by processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...retrieval import InputError

__all__ = ["cache_folder", "converted", "make_entry", "run_child"]

RECIPE = "1"
"""Part of every entry's name: a changed recipe makes new entries and leaves the old ones alone."""

SEAL = "expertmix.json"
MAGIC = b"GGUF"


def cache_folder() -> Path:
    """Return where converted weights live: `EXPERTMIX_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("EXPERTMIX_CACHE") or user_cache_dir("expertmix"))


def converted(parts: Sequence[Path], *, digest: str, cache: Path) -> Path:
    """Return the cached folder with the weights of one GGUF file, converting it if need be.

    The folder appears under its name only when it is whole, and a second process that wants it
    meanwhile waits. An entry that is damaged (a file gone or of another size) is made again.

    Args:
        parts: The GGUF file, or its pieces in order.
        digest: Identifies the contents; names the entry.
        cache: Folder of all entries; made if it does not exist.

    Raises:
        InputError: not a GGUF file, one that cannot be converted, or a cache that cannot be written.
    """
    entry = cache / "weights" / f"{digest}-{RECIPE}"

    def fill(draft: Path) -> None:
        _check_magic(parts[0])
        _convert(parts, draft)

    return make_entry(entry, fill)


def make_entry(entry: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made whole by `fill` if it is not there yet.

    Args:
        entry: Its path; it appears under this name only when it is complete.
        fill: Writes the files into the folder it is given.

    Raises:
        InputError: the cache cannot be written; and whatever `fill` raises.
    """
    from filelock import FileLock

    if _whole(entry):
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_suffix(".lock")):
            if not _whole(entry):
                _write(entry, fill)
    except OSError as error:
        raise InputError(
            f"Weights cannot be written to {entry.parent} ({error.strerror or error}); "
            "make room there, or set EXPERTMIX_CACHE to another folder."
        ) from error
    return entry


def run_child(module: str, *arguments: Path | str) -> str | None:
    """Run one of our modules as a program, for work whose memory we want back.

    Returns:
        Why it failed, in one line; None if it did not.
    """
    # One thread: the default OpenMP spins and is slower on a shared machine.
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", f"{__package__}.{module}", *map(str, arguments)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode == 0:
        return None
    return (result.stderr.strip().splitlines() or ["it was killed, perhaps out of memory"])[-1]


def _check_magic(source: Path) -> None:
    with source.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{source} is not a GGUF file; fetch it again.")


def _write(entry: Path, fill: Callable[[Path], None]) -> None:
    draft = entry.with_suffix(".draft")
    # Leftovers of a process that was killed; the lock says that nobody works on them.
    for leftover in (draft, entry):
        if leftover.exists():
            shutil.rmtree(leftover)
    draft.mkdir()
    try:
        fill(draft)
        _seal(draft)
        draft.rename(entry)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _convert(parts: Sequence[Path], draft: Path) -> None:
    source = _joined(parts, draft / "joined.gguf") if len(parts) > 1 else parts[0]
    if (reason := run_child("convert", source, draft)) is not None:
        raise InputError(f"The GGUF weights in {parts[0]} cannot be converted: {reason}")
    (draft / "joined.gguf").unlink(missing_ok=True)


def _joined(parts: Sequence[Path], whole: Path) -> Path:
    with whole.open("wb") as stream:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, stream, 1 << 20)
    return whole


def _seal(draft: Path) -> None:
    """Write the list of files last: an entry without it, or at odds with it, is not whole."""
    sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
    (draft / SEAL).write_text(json.dumps({"files": sizes}, indent=2), encoding="utf-8")


def _whole(entry: Path) -> bool:
    try:
        sizes = json.loads((entry / SEAL).read_text(encoding="utf-8"))["files"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
