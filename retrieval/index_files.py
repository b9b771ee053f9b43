"""An index on disk: `vectors.safetensors`, `rows.jsonl` and a `manifest.json` that vouches for both.

FAISS's own files can corrupt memory when they are read, so none is written: the structure is rebuilt
from the vectors. Nothing is unpickled. Sizes are checked before anything is allocated, then sha256,
then contents; whatever does not fit ends in an `InputError`, never in half an index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = ["check_size", "read_index", "write_index"]

FORMAT = 1
MAX_ROWS = 5_000_000
MAX_DIMENSION = 8192
MAX_VECTOR_BYTES = 8 * 2**30
MAX_ROW_BYTES = 4 * 2**30
HEADER_BYTES = 2**16  # of a safetensors file with one tensor
MANIFEST_BYTES = 2**20
MANIFEST = "manifest.json"
VECTORS = "vectors.safetensors"
ROWS = "rows.jsonl"

Vectors = npt.NDArray[np.float32]
Rows = tuple[dict[str, Any], ...]


def check_size(n: int, dimension: int) -> None:
    """Refuse an index that is larger than one may be.

    Raises:
        InputError: too many rows, dimensions or bytes.
    """
    size = n * dimension * 4
    if not 0 <= n <= MAX_ROWS or not 0 <= dimension <= MAX_DIMENSION or size > MAX_VECTOR_BYTES:
        raise InputError(
            f"{n} vectors of dimension {dimension} are more than an index may have "
            f"({MAX_ROWS} rows, {MAX_DIMENSION} dimensions, {MAX_VECTOR_BYTES // 2**30} GiB)"
        )


def write_index(
    folder: Path,
    vectors_ND: Vectors,
    rows: Sequence[Mapping[str, Any]],
    encoder_name: str,
    encoder_revision: str,
) -> Path:
    """Write an index to `folder`, whole or not at all; an index that is there already is replaced.

    Raises:
        InputError: `folder` holds something else than an index, or a row is not plain JSON.
    """
    is_other = folder.exists() and not (folder / MANIFEST).is_file()
    if is_other and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something else than an index; give a new folder")
    contents = {VECTORS: _vector_bytes(vectors_ND), ROWS: _row_bytes(rows)}
    manifest = {
        "format": FORMAT,
        "n": len(rows),
        "dimension": int(vectors_ND.shape[1]),
        "encoder": encoder_name,
        "encoder_revision": encoder_revision,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    contents[MANIFEST] = json.dumps(manifest, indent=1).encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, content in contents.items():
            (fresh / name).write_bytes(content)
        fresh.chmod(0o755)  # mkdtemp keeps others out
        _replace(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def read_index(
    folder: Path, encoder_name: str | None, encoder_revision: str | None
) -> tuple[Vectors, Rows, str, str]:
    """Vectors, rows, and the name and revision of the encoder, all checked.

    Raises:
        InputError: see `VectorIndex.load`.
    """
    manifest = _read_manifest(folder)
    for key, wanted in (("encoder", encoder_name), ("encoder_revision", encoder_revision)):
        if wanted is not None and manifest[key] != wanted:
            raise InputError(
                f"the index in {folder} was made with {key} {manifest[key]!r}, but {wanted!r} is "
                "in use; build it again"
            )
    vectors_ND = _read_vectors(folder, manifest)
    rows = _read_rows(folder, manifest)
    return vectors_ND, rows, manifest["encoder"], manifest["encoder_revision"]


def _vector_bytes(vectors_ND: Vectors) -> bytes:
    from safetensors.numpy import save

    return save({"vectors": np.ascontiguousarray(vectors_ND, dtype=np.float32)})


def _row_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    try:
        lines = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) for row in rows]
        return "".join(f"{line}\n" for line in lines).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"a row of the index is not plain JSON ({error})") from None


def _replace(folder: Path, fresh: Path) -> None:
    """Put `fresh` where `folder` is. Between two renames there is nothing, never half an index."""
    if not folder.exists():
        os.rename(fresh, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old / "index")
    try:
        os.rename(fresh, folder)
    except OSError:
        os.rename(old / "index", folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"no index at {folder}: there is no {MANIFEST} in it")
    if path.stat().st_size > MANIFEST_BYTES:
        raise InputError(f"{path} is too large to be a manifest")
    try:
        manifest: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON; build the index again") from None
    if not _is_manifest(manifest):
        raise InputError(f"{path} is not a manifest of format {FORMAT}; build the index again")
    check_size(manifest["n"], manifest["dimension"])
    return manifest


def _is_manifest(value: object) -> bool:
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        manifest = cast("dict[str, Any]", value)
        files = [manifest["files"][name] for name in (VECTORS, ROWS)]
        numbers = [manifest["n"], manifest["dimension"], *(file["bytes"] for file in files)]
        names = [manifest[key] for key in ("encoder", "encoder_revision")]
        return (
            manifest["format"] == FORMAT
            and all(type(number) is int and number >= 0 for number in numbers)
            and all(isinstance(name, str) for name in (*names, *(f["sha256"] for f in files)))
        )
    return False


def _read_vectors(folder: Path, manifest: dict[str, Any]) -> Vectors:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    shape = (manifest["n"], manifest["dimension"])
    content = _read_checked(folder, VECTORS, manifest, 4 * shape[0] * shape[1] + HEADER_BYTES)
    try:
        vectors_ND = load(content)["vectors"]
    except (SafetensorError, KeyError, ValueError):
        raise InputError(f"{folder / VECTORS} does not hold the index's vectors") from None
    if vectors_ND.shape != shape or vectors_ND.dtype != np.float32:
        raise InputError(f"{folder / VECTORS} does not hold float32 vectors of shape {shape}")
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    if not np.allclose(norms_N, 1.0, atol=1e-3):  # also refuses what is not finite
        raise InputError(f"{folder / VECTORS} holds vectors that are not of length 1")
    return vectors_ND


def _read_rows(folder: Path, manifest: dict[str, Any]) -> Rows:
    content = _read_checked(folder, ROWS, manifest, MAX_ROW_BYTES)
    try:
        rows: list[Any] = [json.loads(line) for line in content.splitlines()]
    except (ValueError, RecursionError):
        raise InputError(f"{folder / ROWS} has a line that is not JSON") from None
    if len(rows) != manifest["n"] or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{folder / ROWS} does not hold {manifest['n']} JSON objects")
    return tuple(cast("list[dict[str, Any]]", rows))


def _read_checked(folder: Path, name: str, manifest: dict[str, Any], limit: int) -> bytes:
    """The content of a file that has the size and the sha256 that the manifest gives."""
    path, told = folder / name, manifest["files"][name]
    if not path.is_file():
        raise InputError(f"the index in {folder} lacks {name}; build it again")
    if path.stat().st_size != told["bytes"] or told["bytes"] > limit:
        raise InputError(f"{path} does not have the size that the manifest allows; build it again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise InputError(f"{path} was changed after the index was written; build it again")
    return content
