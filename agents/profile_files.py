"""A profile as files: a manifest, and one parquet table each of outcomes and references.

The manifest (`profile.json`) names the tables by their sha256 and is replaced last. Until then they lie
beside the old ones under names with their hash, so whatever ends the program leaves a profile that can
be read: the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from ..retrieval import InputError
from .profile import Profile
from .records import ExpertRecord, Outcome, Reference

__all__ = ["FORMAT", "MANIFEST", "find_format", "load_profile", "save_profile"]

FORMAT = 2
MANIFEST = "profile.json"
TABLES = ("outcomes", "references")
AGAIN = "run `expertmix profile` again: only the missing calls are made, since replies are kept"

Row = dict[str, Any]


def save_profile(profile: Profile, folder: str | Path) -> None:
    """Write `profile.json`, `outcomes.parquet` and `references.parquet`, replacing older ones.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder = Path(folder)
    contents = {
        "outcomes": _pack("outcomes", map(_outcome_row, profile.outcomes)),
        "references": _pack("references", map(_reference_row, profile.questions.values())),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = {
        "format": FORMAT,
        "references": profile.references,
        "prompts": profile.prompts,
        "seed": profile.seed,
        "extractor": profile.extractor,
        "experts": {
            alias: {
                "identity": expert.identity,
                "seconds_per_call": expert.seconds_per_call,
                "failed": expert.failed,
            }
            for alias, expert in profile.experts.items()
        },
        "remarks": list(profile.remarks),
        "sha256": hashes,
    }
    text = json.dumps(manifest, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _replace(folder / _waiting(name, hashes[name]), content)
        _replace(folder / MANIFEST, text.encode())
        for name in TABLES:
            os.replace(folder / _waiting(name, hashes[name]), folder / f"{name}.parquet")
            for left in folder.glob(
                f"{name}-{'[0-9a-f]' * 16}.parquet*"
            ):  # by a run that was killed
                left.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the profile to {folder}: {error.strerror}") from None


def load_profile(path: str | Path) -> Profile:
    """Read the profile in a folder, named by the folder or by the manifest in it.

    Raises:
        InputError: there is none, it is of another format, or its files are damaged or do not belong
            together.
    """
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    found = find_format(path)
    if found is None:
        raise InputError(f"no profile at {path}: make one with `expertmix profile`")
    if found != FORMAT:
        what = AGAIN if found < FORMAT else "use the version of expertmix that made it"
        raise InputError(f"{path} has profile format {found}; this version reads {FORMAT}; {what}")
    try:
        manifest = _read_manifest(path)
        tables = {name: _read_table(path.parent, name, manifest) for name in TABLES}
        return Profile(
            references=_text(manifest["references"]),
            prompts=_text(manifest["prompts"]),
            seed=int(manifest["seed"]),
            extractor=_text(manifest["extractor"]),
            experts={alias: ExpertRecord(**row) for alias, row in manifest["experts"].items()},
            questions={row["id"]: _read_reference(row) for row in tables["references"]},
            outcomes=tuple(Outcome(**row) for row in tables["outcomes"]),
            remarks=tuple(map(_text, manifest["remarks"])),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path} is damaged ({error!r}); {AGAIN}") from None


def find_format(path: str | Path) -> int | None:
    """The format of the profile at a manifest's path; None if there is no file.

    Raises:
        InputError: the file is no manifest of a profile.
    """
    path = Path(path)
    if not path.is_file():
        return None
    found = _read_manifest(path).get("format")
    if isinstance(found, bool) or not isinstance(found, int):
        raise InputError(f"{path} is no profile; make one with `expertmix profile`")
    return found


def _read_manifest(path: Path) -> Row:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no profile; make one with `expertmix profile`")
    return cast("Row", content)


def _outcome_row(outcome: Outcome) -> Row:
    return {name: getattr(outcome, name) for name in Outcome.__slots__}


def _reference_row(reference: Reference) -> Row:
    row: Row = {name: getattr(reference, name) for name in Reference.__slots__}
    row["skills"] = [{"name": name, "weight": share} for name, share in reference.skills.items()]
    return row


def _read_reference(row: Mapping[str, Any]) -> Reference:
    skills = {_text(skill["name"]): float(skill["weight"]) for skill in row["skills"]}
    content: Row = {**row, "skills": skills}
    return Reference(**content)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _schema(name: str) -> Any:
    import pyarrow as pa

    def need(name: str, kind: Any) -> Any:
        return pa.field(name, kind, nullable=False)

    text, number = pa.string(), pa.int32()
    if name == "outcomes":
        return pa.schema(
            [
                need("question_id", text),
                need("expert", text),
                need("sample", number),
                pa.field("answer", text),
                need("right", pa.bool_()),
                need("tokens", number),
            ]
        )
    skill = pa.struct([need("name", text), need("weight", pa.float64())])
    return pa.schema(
        [
            need("id", text),
            need("gold", text),
            need("options", number),
            need("kind", text),
            need("skills", pa.list_(pa.field("element", skill, nullable=False))),
            need("content", text),
        ]
    )


def _pack(name: str, rows: Iterable[Row]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = pa.Table.from_pylist([*rows], schema=_schema(name))
    except UnicodeEncodeError:
        raise InputError("an id, a gold answer or a skill is no valid Unicode text") from None
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _read_table(folder: Path, name: str, manifest: Mapping[str, Any]) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    wanted = str(manifest["sha256"][name])
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise InputError(f"the sha256 of {name} is no hash; {AGAIN}")
    places = [folder / _waiting(name, wanted), folder / f"{name}.parquet"]
    contents = [place.read_bytes() for place in places if place.is_file()]
    for content in contents:
        if hashlib.sha256(content).hexdigest() == wanted:
            break
    else:
        what = "is not the table that the manifest was written for" if contents else "is missing"
        raise InputError(f"{name}.parquet {what}; {AGAIN}")
    try:
        table = parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        raise InputError(f"{name}.parquet is no parquet file; {AGAIN}") from None
    if table.schema.names != _schema(name).names:
        raise InputError(f"{name}.parquet has the columns {', '.join(table.schema.names)}; {AGAIN}")
    return cast("list[Row]", table.to_pylist())


def _waiting(name: str, sha256: str) -> str:
    """What a table is called until the manifest that names it is there."""
    return f"{name}-{sha256[:16]}.parquet"


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
