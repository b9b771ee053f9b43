"""What is loaded: local models take turns, remote ones are simply there.

Everything here runs in the pool's one event loop, so plain attributes are enough. A turn serves all
that is waiting for one model; what arrives for it meanwhile joins, as long as no other model waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil

from ...retrieval import InputError
from ..engines import Chunk, Engine, EngineError, Failure, Load, Reply, Request
from .assembly import Prepared, build_engine, on_cuda, prepare
from .catalog import Catalog
from .events import PoolEvent
from .ledger import LoadRecord
from .plan import Group
from .specs import VllmExpert

if TYPE_CHECKING:
    from ..engines.launcher import Launcher

__all__ = ["Job", "Residency", "usable_memory"]

CLOSED = Failure(kind="engine", message="the pool was closed", retryable=True)
FREE_MEMORY_SHARE = 0.9  # the rest is for the operating system and for estimates that fall short


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Requests to one group that run as one batch."""

    group: Group
    requests: list[Request]
    on_reply: Callable[[Reply], None] | None = None
    on_chunk: Callable[[Chunk], None] | None = None
    """If given, the only request is streamed."""
    started: float | None = None
    """When the engine began to work on it (`time.perf_counter`)."""
    ended: float | None = None
    done: asyncio.Future[list[Reply]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def seconds(self) -> float:
        """Wall seconds that the engine has worked on it so far."""
        if self.started is None:
            return 0.0
        return (self.ended or time.perf_counter()) - self.started


class Residency:
    """Starts, keeps and stops engines, and gives every job its turn.

    Args:
        catalog: The pool's experts and settings.
        note_load: Called with every load that succeeded.
        tell: Called with what a watcher may want to see.
        given: Engines by alias, for experts whose engine is `given`.
    """

    def __init__(
        self,
        catalog: Catalog,
        note_load: Callable[[LoadRecord], None],
        tell: Callable[[PoolEvent], None],
        given: Mapping[str, Engine] | None = None,
    ) -> None:
        self._catalog = catalog
        self._given = given
        self._note_load = note_load
        self._tell = tell
        self._prepared: dict[str, Prepared] = {}
        self._engines: dict[str, Engine] = {}  # in the order of last use
        self._memory: dict[str, int] = {}  # bytes, of resident local models
        self._starting: dict[str, asyncio.Task[Engine]] = {}  # remote engines being started
        self._broken: dict[str, Failure] = {}
        self._waiting: list[Job] = []
        self._arrival = asyncio.Event()
        self._turns: asyncio.Task[None] | None = None
        self._launcher: Launcher | None = None

    def prepare(self, group: Group) -> Prepared:
        """Find a group's weights, once.

        Raises:
            InputError: as `assembly.prepare`.
        """
        if group.key not in self._prepared:
            prepared = prepare(group, self._catalog)
            engine = (self._given or {}).get(group.aliases[0])
            if engine is not None:  # all that we can know of a given engine is what it is called
                name = f"{prepared.identity}:{type(engine).__qualname__}:{engine.name}"
                prepared = replace(prepared, identity=name)
            self._prepared[group.key] = prepared
        return self._prepared[group.key]

    async def run(self, job: Job) -> list[Reply]:
        """Do a job when its model's turn comes. Cancelling takes it out, running or not."""
        if not job.group.local:
            try:
                return await self._work(await self._reach(job.group), job)
            except EngineError as error:
                return _refuse(job, error.failure)
        self._waiting.append(job)
        self._arrival.set()
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        try:
            return await job.done
        except asyncio.CancelledError:
            if job in self._waiting:
                self._waiting.remove(job)
            raise

    async def close(self) -> None:
        """Stop everything, whatever is still running; who waits gets a failure."""
        started: list[asyncio.Task[Any]] = [
            *self._starting.values(),
            *([self._turns] if self._turns else []),
        ]
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
        for job in self._waiting:
            if not job.done.done():
                job.done.set_result(_refuse(job, CLOSED))
        await asyncio.gather(*map(self._unload, list(self._engines)), return_exceptions=True)
        if self._launcher is not None:
            await self._launcher.close()
        # As new, so that the pool can be opened again in another event loop.
        self._waiting.clear()
        self._starting.clear()
        self._broken.clear()
        self._arrival = asyncio.Event()
        self._launcher = self._turns = None

    async def _take_turns(self) -> None:
        while self._waiting:
            group = self._waiting[0].group  # whoever has waited longest says whose turn it is
            try:
                engine = await self._bring_up(group)
            except EngineError as error:
                for job in self._pop(group):
                    if not job.done.done():
                        job.done.set_result(_refuse(job, error.failure))
            except Exception as error:
                # A defect of ours: whoever waits gets it as it is, instead of waiting for ever.
                for job in self._pop(group):
                    if not job.done.done():
                        job.done.set_exception(error)
            else:
                await self._serve(engine, group)

    async def _serve(self, engine: Engine, group: Group) -> None:
        """One turn: everything that waits for this model, as one continuous batch."""
        running: set[asyncio.Task[None]] = set()
        arrival = asyncio.create_task(self._arrival.wait())
        try:
            while True:
                others_wait = any(job.group.key != group.key for job in self._waiting)
                if not (running and others_wait):
                    for job in self._pop(group):
                        running.add(asyncio.create_task(self._finish(engine, job)))
                if not running:
                    return
                if arrival.done():
                    self._arrival.clear()
                    arrival = asyncio.create_task(self._arrival.wait())
                done, _ = await asyncio.wait(
                    {*running, arrival}, return_when=asyncio.FIRST_COMPLETED
                )
                running -= done
                if group.key not in self._engines:  # it died; the rest of its jobs gets a new one
                    await asyncio.gather(*running)
                    return
        finally:
            for task in (arrival, *running):
                task.cancel()

    async def _finish(self, engine: Engine, job: Job) -> None:
        work = asyncio.create_task(self._work(engine, job))
        job.done.add_done_callback(lambda _: work.cancel())  # cancelled from outside
        try:
            replies = await work
        except asyncio.CancelledError:
            if not job.done.done():
                job.done.set_result(_refuse(job, CLOSED))
        except Exception as error:
            if not job.done.done():
                job.done.set_exception(error)
        else:
            if not job.done.done():
                job.done.set_result(replies)

    async def _work(self, engine: Engine, job: Job) -> list[Reply]:
        job.started = time.perf_counter()
        try:
            if job.on_chunk is None:
                replies = await engine.generate(job.requests, job.on_reply)
            else:
                replies = await _stream(engine, job.requests[0], job.on_chunk)
        finally:
            job.ended = time.perf_counter()
        # A local engine that fails like this is dead; a remote one has nothing to start anew.
        if job.group.local and any(r.failure and r.failure.kind == "engine" for r in replies):
            await self._unload(job.group.key)
        return replies

    async def _reach(self, group: Group) -> Engine:
        """The engine of a group that needs no memory here, started once however many ask."""
        if group.key not in self._engines:
            if group.key not in self._starting:
                self._starting[group.key] = asyncio.create_task(self._start(group))
            try:
                return await asyncio.shield(self._starting[group.key])
            finally:
                if group.key in self._starting and self._starting[group.key].done():
                    del self._starting[group.key]
        return self._engines[group.key]

    async def _bring_up(self, group: Group) -> Engine:
        """The engine of a local model, loaded if need be, after making room for it."""
        if group.key in self._engines:
            self._engines[group.key] = self._engines.pop(group.key)  # most recently used
            return self._engines[group.key]
        return await self._start(group)

    async def _start(self, group: Group) -> Engine:
        if group.key in self._broken:
            raise EngineError(self._broken[group.key])
        self._tell(PoolEvent(kind="loading", weights=group.name))
        try:
            prepared = await asyncio.to_thread(self.prepare, group)
            if group.local:
                await self._make_room(prepared)
            engine = build_engine(prepared, self._catalog, self._launch_with(), self._given)
            load = await _start_or_close(engine)
        except (EngineError, InputError) as error:
            failure = (
                error.failure
                if isinstance(error, EngineError)
                else Failure(kind="load", message=str(error))
            )
            if isinstance(error, _NoRoom) or failure.kind != "load" or failure.retryable:
                self._broken.pop(group.key, None)  # may go better the next time
            else:
                self._broken[group.key] = failure
            self._tell(PoolEvent(kind="failed", weights=group.name, message=failure.message))
            raise EngineError(failure) from None
        self._engines[group.key] = engine
        if group.local:
            self._memory[group.key] = max(load.memory_bytes, prepared.memory_bytes)
            self._note_load(
                LoadRecord(
                    weights=group.name,
                    key=group.key,
                    seconds=load.seconds,
                    memory_bytes=load.memory_bytes,
                )
            )
        self._tell(PoolEvent(kind="ready", weights=group.name, seconds=load.seconds))
        return engine

    async def _make_room(self, prepared: Prepared) -> None:
        """Unload least recently used models until this one fits.

        Raises:
            InputError: it would not fit even alone.
        """
        most = self._catalog.file.max_resident or (1 if on_cuda() else None)
        while most is not None and len(self._memory) >= most:
            await self._unload(next(iter(self._memory_in_use_order())))
        if on_cuda() and isinstance(prepared.group.specs[0], VllmExpert):
            return  # vLLM looks at the GPU's memory itself and says what is wrong
        while (available := self._available()) < prepared.memory_bytes:
            if not self._memory:
                raise _NoRoom(
                    f"{prepared.group.name} needs about {prepared.memory_bytes / 2**30:.1f} GiB of "
                    f"memory, {available / 2**30:.1f} GiB may be used; choose a smaller model or "
                    "dtype, or raise memory_gib"
                )
            await self._unload(next(iter(self._memory_in_use_order())))

    def _memory_in_use_order(self) -> list[str]:
        return [key for key in self._engines if key in self._memory]

    def _available(self) -> int:
        return usable_memory(self._catalog, taken=sum(self._memory.values()))

    async def _unload(self, key: str) -> None:
        engine = self._engines.pop(key, None)
        self._memory.pop(key, None)
        if engine is not None:
            # To its end, even if whoever asked for it has gone: half an engine still holds memory.
            await asyncio.shield(engine.close())
            self._tell(PoolEvent(kind="unloaded", weights=engine.name))

    def _launch_with(self) -> Launcher:
        """One launcher for all engines of the pool, so that vLLM is imported once (when one starts)."""
        if self._launcher is None:
            from ..engines.launcher import Launcher

            self._launcher = Launcher()
        return self._launcher

    def _pop(self, group: Group) -> list[Job]:
        popped = [job for job in self._waiting if job.group.key == group.key]
        self._waiting = [job for job in self._waiting if job.group.key != group.key]
        return popped


def usable_memory(catalog: Catalog, *, taken: int = 0) -> int:
    """Bytes of this machine's memory that further models may take, beside those that `taken` counts."""
    free = round(psutil.virtual_memory().available * FREE_MEMORY_SHARE)
    stated = catalog.file.memory_gib
    return free if stated is None else min(free, round(stated * 2**30) - taken)


class _NoRoom(InputError):
    """There is not enough memory now; later there may be."""


async def _start_or_close(engine: Engine) -> Load:
    """Start an engine; one that fails or is cancelled on the way leaves nothing behind."""
    try:
        return await engine.start()
    except BaseException:
        await engine.close()
        raise


async def _stream(
    engine: Engine, request: Request, on_chunk: Callable[[Chunk], None]
) -> list[Reply]:
    reply = Reply.failed(
        request, Failure(kind="engine", message="the stream ended without a reply")
    )
    async for chunk in engine.stream(request):
        on_chunk(chunk)
        reply = chunk.reply or reply
    return [reply]


def _refuse(job: Job, failure: Failure) -> list[Reply]:
    """Every request of a job that cannot be done, answered by why."""
    replies = [Reply.failed(request, failure) for request in job.requests]
    for reply in replies:
        if job.on_chunk is not None:
            job.on_chunk(Chunk(reply=reply))
        elif job.on_reply is not None:
            job.on_reply(reply)
    return replies
