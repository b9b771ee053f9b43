"""A run on disk: what is finished stays finished, and a second run goes on where the first ended."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ..agents import AnswerStore, Ledger, Outlook, Timeline
from ..retrieval import InputError, Question, fingerprint
from .result import Result, Solution

__all__ = ["RunFolder"]

FORMAT = 1


class RunFolder:
    """`answers.jsonl`, `ledger.json`, every reply in `replies.sqlite`, and whose they are.

    Args:
        path: The folder; made by `claim`.
        store: Where replies are kept, if not in the folder.
    """

    def __init__(self, path: str | Path, *, store: AnswerStore | None = None) -> None:
        self.path = Path(path)
        # An empty store is falsy: it has a length.
        self.store = AnswerStore(self.path / "replies.sqlite") if store is None else store

    @property
    def answers(self) -> Path:
        """One line per finished question."""
        return self.path / "answers.jsonl"

    def claim(self, questions: Sequence[Question], settings: Mapping[str, Any]) -> None:
        """Make the folder ours, or recognise it as ours.

        Args:
            questions: All questions of the run.
            settings: Plain JSON values on which the answers depend.

        Raises:
            InputError: it belongs to other questions or settings, or cannot be written.
        """
        ours = {"format": FORMAT, "questions": fingerprint(questions), "settings": dict(settings)}
        manifest = self.path / "run.json"
        if not manifest.exists():
            if self.path.is_dir() and any(p.suffix != ".part" for p in self.path.iterdir()):
                raise InputError(
                    f"{self.path} is not empty and holds no run; choose a new folder for --out"
                )
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                _write(manifest, json.dumps(ours, indent=1))
            except OSError as error:
                raise InputError(f"cannot write to {self.path}: {error.strerror}") from None
            return
        theirs = _read_object(manifest)
        if theirs.get("questions") != ours["questions"]:
            raise InputError(
                f"{self.path} belongs to other questions; choose a new folder for --out"
            )
        if theirs != ours:
            raise InputError(
                f"{self.path} belongs to a run with other settings ({_differ(theirs, ours)}); "
                "choose a new folder for --out"
            )

    def finished(self, questions: Sequence[Question]) -> list[Solution]:
        """Solutions of earlier runs. One that misses an expert's answer is not finished."""
        if not self.answers.exists():
            return []
        by_id = {question.id: question for question in questions}
        rows: dict[str, dict[str, Any]] = {}
        for line in self.answers.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                if row["id"] in by_id and isinstance(row["missing"], dict):
                    rows[row["id"]] = row
            except (ValueError, LookupError, TypeError):
                continue  # the line during which an earlier run was interrupted
        return [
            Solution(question=by_id[qid], row=row)
            for qid, row in rows.items()
            if not row["missing"]
        ]

    def append(self, solutions: Sequence[Solution]) -> None:
        """Keep solutions at once, after whatever is there."""
        with _told_of_disk(self.path), self.answers.open("ab") as file:
            # A line that an earlier run left unfinished must not swallow the next one; empty lines
            # are skipped by whoever reads.
            file.write(b"\n" if file.tell() else b"")
            for solution in solutions:
                # Escaped to ASCII: models also write what UTF-8 cannot (lone surrogates).
                file.write(json.dumps(solution.row).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read_ledger(self) -> Ledger:
        """What earlier runs into this folder cost."""
        path = self.path / "ledger.json"
        return Ledger.from_json(_read_object(path)) if path.exists() else Ledger()

    def write_ledger(self, ledger: Ledger, outlooks: Sequence[Outlook] = ()) -> None:
        """Replace the ledger in one step; with what the last run's plan said beside what came of it."""
        told = {**ledger.to_json(), "forecast": [outlook.to_json() for outlook in outlooks]}
        with _told_of_disk(self.path):
            _write(self.path / "ledger.json", json.dumps(told, indent=1))

    def read_timeline(self) -> Timeline:
        """What earlier runs into this folder did; empty if that is not known or cannot be read."""
        try:
            return Timeline.from_json(_read_object(self.path / "timeline.json"))
        except (InputError, OSError):
            return Timeline()  # a picture is no reason to refuse to go on

    def write_timeline(self, timeline: Timeline) -> None:
        """Replace the timeline in one step."""
        with _told_of_disk(self.path):
            _write(self.path / "timeline.json", json.dumps(timeline.to_json()))

    def finish(self, questions: Sequence[Question], solutions: Sequence[Solution]) -> Result:
        """Put the answers into the questions' order, one line each, and give them back."""
        rows = {solution.question.id: solution for solution in solutions}
        ordered = [rows[question.id] for question in questions if question.id in rows]
        lines = (json.dumps(solution.row) for solution in ordered)
        with _told_of_disk(self.path):
            _write(self.answers, "".join(f"{line}\n" for line in lines))
        if not (
            self.path / "ledger.json"
        ).exists():  # killed between the last answers and their costs
            self.write_ledger(Ledger())
        return Result(ordered, _read_object(self.path / "ledger.json"))


def _differ(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    old = cast("dict[str, Any]", theirs.get("settings") or {})
    new = cast("dict[str, Any]", ours["settings"])
    changed = [key for key in new if old.get(key) != new[key]]
    if "pool" in changed:
        return "the pool's experts changed"
    parts = [f"{key} was {old.get(key)!r}, is {new[key]!r}" for key in changed]
    return ", ".join(parts) or f"format {theirs.get('format')}, this version writes {FORMAT}"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged; choose a new folder for --out")
    return cast("dict[str, Any]", content)


@contextmanager
def _told_of_disk(path: Path) -> Generator[None]:
    """A full or broken disk is one sentence; what was written before stays."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write to {path}: {error.strerror}; what is finished is kept, make room and run "
            "the same command to go on"
        ) from None


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
