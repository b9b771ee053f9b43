"""Where a pool keeps and finds finished replies: an answer store in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ...retrieval import InputError
from ..engines import Reply, Request
from .store import AnswerStore, Kept

__all__ = ["Shelf"]


@dataclass(frozen=True, slots=True)
class _Parcel:
    kept: Kept | None
    """None for what is not to be kept; it takes its turn all the same."""
    then: Callable[[], None]


class Shelf:
    """Keeps replies in the order in which they come; those that come together are written together.

    A slow disk, or a store that another process is writing, holds up nobody but those who wait for these very
    replies: the pool's loop goes on. Reading has a thread of its own too: it need not wait for what is being written.

    Args:
        store: The file.
        warn: Called in the loop, once, with why nothing is kept or found any more: a full disk or a damaged file
            must not cost the answers that are still to come.
    """

    def __init__(self, store: AnswerStore, warn: Callable[[str], None]) -> None:
        self._file = store
        self._store: AnswerStore | None = store
        self._warn = warn
        self._defect: Exception | None = None
        self._readers: ThreadPoolExecutor | None = None
        # A thread and no executor: Python closes executors before the functions of atexit, which may close pools.
        self._writer: threading.Thread | None = None
        self._parcels: SimpleQueue[_Parcel | None] = SimpleQueue()

    @property
    def store(self) -> AnswerStore | None:
        """None from the moment when it could not be used."""
        return self._store

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the store for the pool's loop, in which alone the shelf is used.

        Raises:
            InputError: the file cannot be used.
        """
        if self._store is not None:
            self._store.open()
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="expertmix-reader")
        self._parcels = SimpleQueue()
        self._writer = threading.Thread(
            target=self._write_all, args=(self._parcels, loop), name="expertmix-writer", daemon=True
        )
        self._writer.start()

    def close(self) -> None:
        """Write what waits, and close the file. Blocks; the loop must not run any more."""
        if self._readers is not None:
            self._readers.shutdown()
        if self._writer is not None:
            self._parcels.put(None)
            self._writer.join()
        self._file.close()

    async def find(self, identity: str | None, requests: Sequence[Request]) -> dict[str, Reply]:
        """The replies that are there already, by the ids of the requests; none without an identity."""
        if self._store is None or identity is None:
            return {}

        def read() -> dict[str, Reply]:
            found = {request.id: self._file.find(identity, request) for request in requests}
            return {key: reply for key, reply in found.items() if reply is not None}

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)
        except InputError as error:
            self._give_up(str(error))
            return {}

    def keep(
        self, identity: str | None, request: Request, reply: Reply, then: Callable[[], None]
    ) -> None:
        """Keep a reply (unless its weights have no identity); when that is done, `then` is called in the loop."""
        self._parcels.put(_Parcel(None if identity is None else (identity, request, reply), then))

    async def settle(self) -> None:
        """Wait until everything handed in before is kept, or cannot be, and its `then` was called."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parcels.put(_Parcel(None, lambda: _settle(told)))
        await told

    def check(self) -> None:
        """Raise what kept answers from being written, if that was a defect of ours and no trouble of the disk."""
        if self._defect is not None:
            raise self._defect

    def _write_all(
        self, waiting: SimpleQueue[_Parcel | None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """In the writer's thread: whatever waits, in one transaction, until a None comes."""
        is_open = True
        while is_open:
            parcels: list[_Parcel] = []
            parcel = waiting.get()
            with contextlib.suppress(Empty):
                while parcel is not None:
                    parcels.append(parcel)
                    parcel = waiting.get_nowait()
                is_open = False
            if parcels:
                reason = self._write([parcel.kept for parcel in parcels if parcel.kept is not None])
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                    loop.call_soon_threadsafe(self._tell, loop, parcels, reason)

    def _write(self, kept: Sequence[Kept]) -> str | None:
        """Why they are not kept, if they are not."""
        store = self._store
        if not kept or store is None or self._defect is not None:
            return None
        try:
            store.keep_all(kept)
        except InputError as error:
            return str(error)
        except Exception as error:  # whoever asks for it in `check` gets it
            self._defect = error
        return None

    def _give_up(self, reason: str) -> None:
        if self._store is not None:
            self._store = None
            self._warn(reason)

    def _tell(
        self, loop: asyncio.AbstractEventLoop, parcels: Sequence[_Parcel], reason: str | None
    ) -> None:
        if reason is not None:
            self._give_up(reason)
        for parcel in parcels:  # each by itself: one that breaks costs the others nothing
            loop.call_soon(parcel.then)


def _settle(told: asyncio.Future[None]) -> None:
    if not told.done():  # whoever waited may have left
        told.set_result(None)
