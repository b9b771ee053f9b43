"""Engines that need no memory here: addresses, chat models, recordings. Started once, asked at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ...retrieval import InputError
from ..engines import Engine, EngineError, Failure, Reply
from .events import PoolEvent
from .groups import Group
from .host import Host
from .jobs import CLOSED, Job
from .residents import Slice
from .serving import serve_slice
from .workshop import Workshop, close_quietly

__all__ = ["PlainEngines", "failure_of"]


class PlainEngines:
    """By group, as long as the pool is open."""

    def __init__(self, host: Host, workshop: Workshop, tell: Callable[[PoolEvent], None]) -> None:
        self._host = host
        self._workshop = workshop
        self._tell = tell
        self._engines: dict[str, Engine] = {}
        self._starting: dict[str, asyncio.Task[Engine]] = {}
        self._at_work = 0
        self.is_draining = False
        """Whether no further job may begin; until `close`."""

    @property
    def is_at_work(self) -> bool:
        """Whether an engine has been asked something and has not answered yet."""
        return self._at_work > 0

    async def run(self, job: Job) -> list[Reply]:
        """Ask a job's engine, started if need be. An engine that fails is asked again by the next job."""
        try:
            engine = None if self.is_draining else await self._reach(job.group)
        except EngineError as error:
            job.refuse(error.failure)
            return await job.done
        if engine is None or self.is_draining:
            return await job.done
        begun = time.perf_counter()
        slice_ = Slice(job, job.take(len(job.requests)), 0.0)
        self._at_work += 1
        try:
            lost, failure = await serve_slice(engine, slice_, job.settle, is_mortal=False)
        finally:
            self._at_work -= 1
            job.seconds += time.perf_counter() - begun
        for request in lost:
            assert failure is not None
            job.settle(Reply.failed(request, failure))
        return await job.done

    async def close(self) -> None:
        """End those that were started, and those that are being started."""
        for task in self._starting.values():
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        engines = list(self._engines.values())
        await asyncio.gather(*map(close_quietly, engines), return_exceptions=True)
        self._engines.clear()
        self._starting.clear()
        self.is_draining = False

    async def _reach(self, group: Group) -> Engine:
        """The engine of a group, started once however many ask."""
        key = group.key
        if key not in self._engines:
            if key not in self._starting:
                self._starting[key] = asyncio.create_task(self._start(group))
            starting = self._starting[key]
            await asyncio.wait([starting])  # whoever is cancelled leaves it to the others
            if self._starting.get(key) is starting:
                del self._starting[key]
            if starting.cancelled():
                raise EngineError(CLOSED)
            return starting.result()
        return self._engines[key]

    async def _start(self, group: Group) -> Engine:
        self._tell(PoolEvent(kind="loading", weights=group.name))
        try:
            prepared = await asyncio.to_thread(self._host.prepare, group)
            engine, load = await self._workshop.start(prepared, None)
        except Exception as error:  # an engine of the user's own may raise anything
            failure = failure_of(error)
            self._tell(PoolEvent(kind="failed", weights=group.name, message=failure.message))
            raise EngineError(failure) from None
        self._engines[group.key] = engine
        self._tell(PoolEvent(kind="ready", weights=group.name, seconds=load.seconds))
        return engine


def failure_of(error: Exception) -> Failure:
    """Why something could not be loaded, whoever found out."""
    if isinstance(error, EngineError):
        return error.failure
    told = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return Failure(kind="load", message=f"{told}{error}")
