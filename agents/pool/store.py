"""Finished replies on disk, so that no one is asked the same thing twice.

A reply is found again by what was asked of which weights: revision, adapter, messages, tools and sampling
(its seed tells samples apart). The file is SQLite in write-ahead mode: a crash or `kill -9` loses at
most the replies that were being written, and several processes may use one file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from threading import RLock
from typing import Any

from ...retrieval import InputError
from ..engines import Failure, OptionScore, Reply, Request, TokenLogprob, Usage

__all__ = ["AnswerStore", "Kept"]

Kept = tuple[str, Request, Reply]
"""What was answered to what, and the identity of the weights that did."""
IN_MEMORY = ":memory:"
"""What SQLite calls a file that each connection has for itself."""


class AnswerStore:
    """Replies by the content of their requests. Threads may share it, and processes the file.

    SQLite does not survive a fork: where it is in use, start processes with the method "spawn".

    One that keeps replies elsewhere is a subclass with its own `find`, `keep_all`, `open` and `close`.

    Every method raises `InputError` if the file cannot be used (damaged, disk full, no permission).
    Of failures only `context` is stored: a prompt that is too long stays so, anything else may go better.
    """

    def __init__(self, path: str | Path) -> None:
        # Connections are made late, and programs change their folder.
        self.path = Path(path) if str(path) == IN_MEMORY else Path(path).absolute()
        self._writer = _Connection(self.path)
        # Reading has a connection of its own: it neither waits for what is being written nor finds what is not yet
        # safe. (SQLite lets threads share one, but then they wait for each other with Python's lock in their hands.)
        self._reader = self._writer if str(self.path) == IN_MEMORY else _Connection(self.path)

    def find(self, identity: str, request: Request) -> Reply | None:
        """The stored reply to this request by these weights, under the request's own id."""
        key = _key(identity, request)
        select = "SELECT reply FROM replies WHERE key = ?"
        try:
            with self._reader.lock:
                row = self._reader.open().execute(select, (key,)).fetchone()
        except sqlite3.Error as error:
            raise InputError(f"cannot read answers from {self.path}: {error}") from None
        try:
            return None if row is None else _decode(json.loads(row[0]), request.id)
        except (ValueError, LookupError, TypeError):
            return None  # a damaged row is asked again

    def keep(self, identity: str, request: Request, reply: Reply) -> None:
        """Store a reply at once. Storing it again changes nothing."""
        self.keep_all([(identity, request, reply)])

    def keep_all(self, kept: Iterable[Kept]) -> None:
        """Store several replies at once: all of them, or none."""
        insert = "INSERT OR IGNORE INTO replies (key, reply) VALUES (?, ?)"
        rows = [
            (_key(identity, request), json.dumps(_encode(reply)))
            for identity, request, reply in kept
            if reply.failure is None or reply.failure.kind == "context"
        ]
        try:
            with self._writer.lock, self._writer.open() as connection:
                connection.executemany(insert, rows)
        except sqlite3.Error as error:
            raise InputError(f"cannot keep answers in {self.path}: {error}") from None

    def __len__(self) -> int:
        with self._writer.lock:
            return int(self._writer.open().execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file; the store opens again when it is next used."""
        self._reader.close()
        self._writer.close()

    def open(self) -> sqlite3.Connection:
        """Open the file, making it if need be; the other methods do so by themselves."""
        connection = self._writer.open()
        self._reader.open()
        return connection


class _Connection:
    """A connection that is made when it is needed, for whichever threads hold its lock."""

    def __init__(self, path: Path) -> None:
        self.lock = RLock()
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> sqlite3.Connection:
        with self.lock:
            if self._connection is None:
                try:
                    self._connection = self._connect()
                except (sqlite3.Error, OSError) as error:
                    raise InputError(f"cannot keep answers in {self._path}: {error}") from None
            return self._connection

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=30, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


def _key(identity: str, request: Request) -> str:
    asked: dict[str, Any] = {
        "identity": identity,
        "adapter": request.adapter,
        "messages": request.messages,
        "options": request.options,
        "sampling": dataclasses.asdict(request.sampling),
    }
    # Recordings and scripts answer by question, not by words.
    asked["question"] = request.question_id
    if request.tools:  # without them the key is what it was before there were any
        asked |= {"tools": request.tools, "tool_choice": request.tool_choice}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=dict).encode()).hexdigest()


def _encode(reply: Reply) -> dict[str, Any]:
    row = dataclasses.asdict(reply)
    del row["request_id"]
    return row


def _decode(row: dict[str, Any], request_id: str) -> Reply:
    return Reply(
        request_id=request_id,
        text=row["text"],
        tool_calls=tuple(row.get("tool_calls", ())),
        reasoning=row.get("reasoning", ""),
        finish=row["finish"],
        usage=Usage(**row["usage"]),
        logprobs=tuple(
            TokenLogprob(
                token=item["token"],
                logprob=item["logprob"],
                top=tuple((token, value) for token, value in item["top"]),
            )
            for item in row["logprobs"]
        ),
        scores=tuple(OptionScore(**item) for item in row["scores"]),
        details=row.get("details", {}),
        failure=None if row["failure"] is None else Failure(**row["failure"]),
    )
