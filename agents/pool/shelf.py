"""Where a pool keeps and finds finished replies: an answer store in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ...retrieval import InputError
from ..engines import Reply, Request
from .store import AnswerStore, Row

__all__ = ["Shelf"]


@dataclass(frozen=True, slots=True)
class _Parcel:
    row: Row | None
    """None for what is not to be kept; it takes its turn all the same."""
    then: Callable[[], None]
    loop: asyncio.AbstractEventLoop


class Shelf:
    """Keeps replies in the order in which they come; those that come together are written together.

    A slow disk, or a store that another process is writing, holds up nobody but those who wait for these very
    replies: the pool's loop goes on. Used from that loop only.

    Args:
        store: The file.
        warn: Called in the loop, once, with why nothing is kept any more: a full disk must not cost the
            answers that are still to come.
    """

    def __init__(self, store: AnswerStore, warn: Callable[[str], None]) -> None:
        self._file = store
        self._store: AnswerStore | None = store
        self._warn = warn
        # A thread and no executor: Python closes executors before the functions of atexit, which may close pools.
        self._thread: threading.Thread | None = None
        self._parcels: SimpleQueue[_Parcel | None] = SimpleQueue()
        self._defect: Exception | None = None

    @property
    def store(self) -> AnswerStore | None:
        """None from the moment when it could not be written."""
        return self._store

    def open(self) -> None:
        """Open the store.

        Raises:
            InputError: the file cannot be used.
        """
        if self._store is not None:
            self._store.open()
        self._thread = threading.Thread(target=self._work, name="expertmix-shelf", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and close the file. Blocks."""
        if self._thread is not None:
            self._parcels.put(None)
            self._thread.join()
            self._thread = None
        self._file.close()

    async def find(self, identity: str | None, requests: Sequence[Request]) -> dict[str, Reply]:
        """The replies that are there already, by the ids of the requests; none without an identity.

        Raises:
            InputError: the file cannot be read.
        """
        store = self._store
        if store is None or identity is None:
            return {}

        def read() -> dict[str, Reply]:
            found = {request.id: store.find(identity, request) for request in requests}
            return {key: reply for key, reply in found.items() if reply is not None}

        # Not in the shelf's thread: it need not wait for what is being written.
        return await asyncio.to_thread(read)

    def keep(
        self, identity: str | None, request: Request, reply: Reply, then: Callable[[], None]
    ) -> None:
        """Keep a reply (unless its weights have no identity), and call `then` in the loop when that is done."""
        row = None if identity is None else AnswerStore.make_row(identity, request, reply)
        self._parcels.put(_Parcel(row, then, asyncio.get_running_loop()))

    async def settle(self) -> None:
        """Wait until everything handed in before is kept and its `then` was called.

        Raises:
            Exception: a defect of ours kept it from being written.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        self._parcels.put(_Parcel(None, lambda: _settle(told), loop))
        await told
        if self._defect is not None:
            raise self._defect

    def _work(self) -> None:
        """In the shelf's thread: everything that waits, in one transaction, until a None comes."""
        is_open = True
        while is_open:
            parcels: list[_Parcel] = []
            waiting: _Parcel | None = self._parcels.get()
            with contextlib.suppress(Empty):
                while waiting is not None:
                    parcels.append(waiting)
                    waiting = self._parcels.get_nowait()
                is_open = False
            if parcels:
                self._write(parcels)

    def _write(self, parcels: Sequence[_Parcel]) -> None:
        rows = [parcel.row for parcel in parcels if parcel.row is not None]
        store, reason = self._store, None
        try:
            if rows and store is not None and self._defect is None:
                store.keep_rows(rows)
        except InputError as error:
            self._store, reason = None, str(error)
        except Exception as error:  # whoever waits in `settle` gets it
            self._defect = error
        parcels[0].loop.call_soon_threadsafe(self._tell, parcels, reason)

    def _tell(self, parcels: Iterable[_Parcel], reason: str | None) -> None:
        if reason is not None:
            self._warn(reason)
        for parcel in parcels:
            parcel.then()


def _settle(told: asyncio.Future[None]) -> None:
    if not told.done():  # whoever waited may have left
        told.set_result(None)
