"""Doing what was decided: each deed is a task of its own, and its outcome a message to the loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ...retrieval import InputError
from ..engines import Engine, Failure, Load, Reply, Request
from .actions import Begin, End, Rest, Start, Swap, Wake
from .announcer import Announcer
from .events import LoadWay
from .groups import Group
from .host import Host
from .jobs import CLOSED
from .local_host import read_ahead
from .plain_engines import failure_of
from .residents import Resident, Slice
from .serving import serve_slice
from .workshop import Workshop, close_quietly

__all__ = ["Deeds", "Reports"]

LAST_WORDS = 5.0
"""Seconds in which calls of an engine that was ended have to return."""


class Reports(Protocol):
    """What the loop wants to hear. All but `heard` are called by the loop itself, as messages."""

    def heard(self, resident: Resident, slice_: Slice, reply: Reply) -> None:
        """A reply that counts, as soon as it is there."""
        ...

    def finished(
        self,
        resident: Resident,
        slice_: Slice,
        lost: list[Request],
        failure: Failure | None,
        now: float,
    ) -> None:
        """An engine is done with a slice."""
        ...

    def came_up(
        self, resident: Resident, engine: Engine, load: Load, way: LoadWay, now: float
    ) -> None:
        """An engine has its weights."""
        ...

    def came_down(self, resident: Resident, failure: Failure, now: float) -> None:
        """A new engine could not load its weights."""
        ...

    def gone(self, resident: Resident, failure: Failure, now: float) -> None:
        """An engine has ended."""
        ...

    def swap_failed(self, resident: Resident) -> None:
        """A swap in place went wrong; its engine has gone."""
        ...

    def slept(self, resident: Resident) -> None:
        """An engine sleeps."""
        ...

    def next_to_load(self) -> Group | None:
        """The group that will be loaded next."""
        ...


class Deeds:
    """Starts, feeds and ends engines.

    Args:
        host: Finds weights.
        workshop: Loads them.
        announcer: Tells watchers.
        loop: Hears of every outcome.
        post: Gives the loop a message, which it calls with its time.
    """

    def __init__(
        self,
        host: Host,
        workshop: Workshop,
        announcer: Announcer,
        loop: Reports,
        post: Callable[[Callable[[float], None]], None],
    ) -> None:
        self._host = host
        self._workshop = workshop
        self._announcer = announcer
        self._loop = loop
        self._post = post
        self.tasks: set[asyncio.Task[None]] = set()
        """Those that are not done yet."""

    def do(self, action: Begin | Start | Swap | Wake | Rest | End, now: float) -> None:
        """Begin to do what an action says."""
        resident = action.resident
        match action:
            case Begin(_, slice_):
                self._begin(resident, slice_, now)
            case Start():
                self._load(resident, "fresh")
            case Swap():
                self._load(resident, "reload")
            case Wake():
                self._load(resident, "wake")
            case Rest():
                self._spawn(self._rest(resident))
            case End():
                self.end(resident, CLOSED)

    def end(self, resident: Resident, failure: Failure) -> None:
        """End an engine; what it owes is lost for the reason given."""
        self._spawn(self._end(resident, failure))

    def _begin(self, resident: Resident, slice_: Slice, now: float) -> None:
        if not resident.working_as:
            resident.working_as = resident.group.name
            resident.heard_at = resident.told_at = now
            self._announcer.tell("working", resident)
            self._spawn(self._read_ahead())
        slice_.task = self._spawn(self._serve(resident, slice_))

    def _load(self, resident: Resident, way: LoadWay) -> None:
        self._announcer.tell("loading", resident, way=way, previous=resident.previous)
        self._spawn(self._bring_up(resident, way))

    async def _bring_up(self, resident: Resident, way: LoadWay) -> None:
        try:
            engine, load = await self._get_weights(resident, way)
        except Exception as error:  # an engine of the user's own may raise anything
            failure = failure_of(error)
            if way == "fresh":
                self._post(lambda now: self._loop.came_down(resident, failure, now))
            else:  # the short cut failed, and its engine with it; a new one may do
                self._announcer.tell_of(resident.group, "warning", message=failure.message)
                if way == "reload":
                    self._post(lambda _: self._loop.swap_failed(resident))
                self._post(lambda now: self._loop.gone(resident, failure, now))
            return
        self._post(lambda now: self._loop.came_up(resident, engine, load, way, now))

    async def _get_weights(self, resident: Resident, way: LoadWay) -> tuple[Engine, Load]:
        prepared = self._host.prepare(resident.group)
        if way == "fresh" or resident.engine is None:
            device = resident.device if resident.group.local else None
            return await self._workshop.start(prepared, device)
        if way == "reload":
            return resident.engine, await self._workshop.swap(resident.engine, prepared)
        return resident.engine, await self._workshop.wake(resident.engine, prepared)

    async def _serve(self, resident: Resident, slice_: Slice) -> None:
        assert resident.engine is not None
        lost: list[Request] = []
        failure: Failure | None = None
        try:
            lost, failure = await serve_slice(
                resident.engine,
                slice_,
                lambda reply: self._loop.heard(resident, slice_, reply),
                is_mortal=resident.group.local,
            )
        finally:  # also where the job was withdrawn
            self._post(lambda now: self._loop.finished(resident, slice_, lost, failure, now))

    async def _read_ahead(self) -> None:
        """While a model works, read the next one's weights into memory that is free anyway."""
        group = self._loop.next_to_load()
        if group is not None:
            with contextlib.suppress(InputError, OSError):
                await asyncio.to_thread(read_ahead, self._host.prepare(group))

    async def _rest(self, resident: Resident) -> None:
        assert resident.engine is not None
        try:
            await self._workshop.sleep(resident.engine, self._host.prepare(resident.group))
        except Exception as error:
            failure = failure_of(error)
            self._announcer.tell("warning", resident, message=failure.message)
            self._post(lambda now: self._loop.gone(resident, failure, now))
        else:
            self._post(lambda _: self._loop.slept(resident))

    async def _end(self, resident: Resident, failure: Failure) -> None:
        try:
            if resident.engine is not None:
                await close_quietly(resident.engine)
            calls = [slice_.task for slice_ in resident.slices if slice_.task is not None]
            if calls:  # of an engine that died: what they have heard from it counts
                await asyncio.wait(calls, timeout=LAST_WORDS)
        finally:
            self._post(lambda now: self._loop.gone(resident, failure, now))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task
