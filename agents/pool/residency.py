"""The loop that owns what is loaded.

Whatever happens (a job arrives, an engine is ready, answers, dies, is gone) is a message; one task takes the
messages one after the other, changes the state, asks `Turns` what is to be done now, and starts doing it.
Nothing else touches the state, so nothing is locked. A model is absent, loading, ready, asleep or leaving
(`residents.py`), drains while it has to give way (`turns.py`), and has failed while `_broken` says why.

Engines that need no memory here (addresses, recordings) have no turns: they are started once and asked at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from ...retrieval import InputError
from ..engines import Engine, Failure, Load, Reply, Request, Sleeper
from .actions import Action, Begin, End, Refuse, Rest, Start, Swap, Wake
from .announcer import Announcer
from .events import LoadWay, PoolEvent
from .gate import Gate
from .host import Host
from .jobs import CLOSED, Job
from .ledger import LoadRecord
from .local_host import read_ahead
from .needs import find_need, tell_lack
from .plain_engines import PlainEngines, failure_of
from .residents import Need, Resident, Slice
from .serving import serve_slice
from .specs import PoolFile
from .turns import Turns, TurnSettings
from .workshop import Workshop, close_quietly

__all__ = ["Residency"]

MOST_DEATHS = 2
"""Times in a row, without an answer in between, that a model may die before its questions fail."""
COOL_DOWN = 60.0
"""Seconds after which a model that kept dying may be tried again."""
DRAIN_STEP = 0.05
PULSE_SECONDS = 1.0
"""How often working engines are looked at."""
LAST_WORDS = 5.0
"""Seconds in which calls of an engine that was ended have to return."""


class Residency:
    """Starts, keeps and stops engines, and gives every job its turn.

    Args:
        host: Finds weights and builds engines.
        workshop: Does it.
        settings: The pool file's.
        patience: Seconds after which a waiting request makes others give way; infinite in batch mode.
        note_load: Called with every load that succeeded.
        tell: Called with what a watcher may want to see.
    """

    def __init__(
        self,
        host: Host,
        workshop: Workshop,
        settings: PoolFile,
        *,
        patience: float,
        note_load: Callable[[LoadRecord], None],
        tell: Callable[[PoolEvent], None],
    ) -> None:
        self._host = host
        self._workshop = workshop
        self._stall_seconds = settings.stall_seconds
        self._note_load = note_load
        self._announcer = Announcer(tell)
        self._plain = PlainEngines(host, workshop, tell)
        self._gate = Gate(settings.max_queued)
        self._turn_settings = TurnSettings(
            patience=patience,
            min_residency=settings.min_residency,
            max_resident=settings.max_resident,
            swap_in_place=settings.swap_in_place,
            sleep=settings.sleep,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._turns = Turns(self._turn_settings, self._host.memory_in_reach)
        self._inbox: deque[Callable[[float], None]] = deque()
        self._arrival = asyncio.Event()
        self._actor: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: dict[str, tuple[Failure, float]] = {}
        self._deaths: dict[str, int] = {}
        self._jobs = 0
        self._open: set[Job] = set()
        self._defect: BaseException | None = None
        self._ended: Failure | None = None
        self._is_draining = False

    async def run(self, job: Job) -> list[Reply]:
        """Do a job when its model's turn comes. Cancelling takes it out, running or not."""
        self._enter_loop()
        if self._defect is not None:
            raise self._defect
        if self._ended is not None:
            job.end(self._ended)
            return await job.done
        self._open.add(job)
        try:
            return await (self._take_turns if job.group.takes_turns else self._plain.run)(job)
        finally:
            self._open.discard(job)

    async def _take_turns(self, job: Job) -> list[Reply]:
        await self._gate.enter(len(job.requests))
        try:
            if not job.done.done():  # not closed while it waited
                await self._hand_in(job)
            return await job.done
        except asyncio.CancelledError:
            self._post(lambda _: self._withdraw(job))
            raise
        finally:
            self._gate.leave(len(job.requests))

    async def _hand_in(self, job: Job) -> None:
        try:
            need = await asyncio.to_thread(find_need, job.group, self._host, self._workshop)
        except Exception as error:  # damaged files may raise anything
            self._announcer.tell_of(job.group, "failed", message=failure_of(error).message)
            job.refuse(failure_of(error))
        else:
            self._post(lambda now: self._submit(job, need, now))

    def expect(
        self, calls: Mapping[str, int], ranks: Mapping[str, int], devices: Mapping[str, str]
    ) -> None:
        """Take a plan: requests to come by group, the order of the groups, their devices."""

        def take(_: float) -> None:
            self._turns.expected.clear()
            self._turns.expected.update(calls)
            self._turns.follow(ranks, devices)

        self._enter_loop()
        self._post(take)

    def fulfil(self, key: str, number: int) -> None:
        """So many announced requests of a group are answered."""
        if key in self._turns.expected:
            self._turns.expected[key] -= number

    async def drain(self, seconds: float) -> None:
        """Begin nothing further, and let engines finish what they work on, for so long at most."""
        self._is_draining = self._plain.is_draining = True
        deadline = self._now() + seconds
        while self._is_at_work() and self._now() < deadline:
            await asyncio.sleep(DRAIN_STEP)

    def _is_at_work(self) -> bool:
        return self._plain.is_at_work or any(r.slices for r in self._turns.residents.values())

    async def close(self) -> None:
        """Stop everything, whatever is still running; who waits gets a failure."""
        self._ended = CLOSED
        tasks = [task for task in (self._actor, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._inbox:  # what finished meanwhile counts, and who came last is told
            self._inbox.popleft()(self._now())
        for job in list(self._open):
            job.end(CLOSED)
        residents = self._turns.residents.values()
        engines = [r.engine for r in residents if r.engine is not None]
        await asyncio.gather(*map(close_quietly, engines), *self._tasks, return_exceptions=True)
        await self._plain.close()
        await self._host.close()

    def _enter_loop(self) -> None:
        """Begin anew where the pool, once closed, is opened again in another event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                self._begin_anew()
            self._loop = loop

    # The loop

    async def _live(self) -> None:
        while True:
            now = self._now()
            for resident in self._turns.residents.values():
                resident.charge(now)
            while self._inbox:
                self._inbox.popleft()(now)
            self._look_after(now)
            actions = [] if self._is_draining else self._turns.decide(now)
            self._announcer.tell_rests(self._turns.residents.values(), now)
            for action in actions:
                self._do(action, now)
            if not self._inbox:
                await self._pause(now)

    async def _pause(self, now: float) -> None:
        """Wait for a message, or until time alone changes something."""
        times = [self._turns.next_change(now)]
        if any(r.slices for r in self._turns.residents.values()):
            times.append(now + PULSE_SECONDS)
        self._arrival.clear()
        soonest = min((t for t in times if t is not None), default=None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(soonest):
                await self._arrival.wait()

    def _look_after(self, now: float) -> None:
        """Tell how fast engines are, and give up those that show no sign of life."""
        for resident in list(self._turns.residents.values()):
            if not resident.slices or resident.is_dead:
                continue
            self._announcer.tell_tokens(resident, now)
            silence = now - resident.last_sign
            if silence > self._stall_seconds:
                message = (
                    f"engine {resident.group.name!r} gave no sign of life for {silence:.0f} s "
                    "(stall_seconds)"
                )
                failure = Failure(kind="timeout", message=message, retryable=True)
                self._note_death(resident, failure, now)
                for slice_ in list(resident.slices):
                    self._abandon(resident, slice_, failure, now)

    def _abandon(self, resident: Resident, slice_: Slice, failure: Failure, now: float) -> None:
        lost = [r for r in slice_.requests if r.id not in slice_.job.replies]
        self._finished(resident, slice_, lost, failure, now)
        if slice_.task is not None:
            slice_.task.cancel()

    def _post(self, message: Callable[[float], None]) -> None:
        self._inbox.append(message)
        self._arrival.set()
        if self._actor is None and self._ended is None:
            self._actor = asyncio.create_task(self._live())
            self._actor.add_done_callback(self._fail_all)

    def _fail_all(self, actor: asyncio.Task[None]) -> None:
        """A defect of ours: whoever waits gets it as it is, instead of waiting for ever."""
        error = None if actor.cancelled() else actor.exception()
        if error is None:
            return
        self._defect = error
        for job in list(self._open):
            job.fail(error)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # Messages

    def _submit(self, job: Job, need: Need, now: float) -> None:
        key = job.group.key
        self._jobs += 1
        job.number, job.arrived = self._jobs, now
        lack = tell_lack(job.group, need)
        failure = self._ended or self._why_broken(key, now) or lack
        if failure is not None:
            if lack is not None and failure is lack:
                self._announcer.tell_of(job.group, "failed", message=lack.message)
            job.refuse(failure)
            return
        self._turns.needs[key] = need
        if job.pending:
            self._turns.queues.add(job)

    def _withdraw(self, job: Job) -> None:
        self._turns.queues.remove(job)
        job.pending.clear()
        for resident in self._turns.residents.values():
            for slice_ in resident.slices:
                if slice_.job is job and slice_.task is not None:
                    slice_.task.cancel()

    def _why_broken(self, key: str, now: float) -> Failure | None:
        failure, until = self._broken.get(key, (None, 0.0))
        return failure if now < until else None

    def _finished(
        self,
        resident: Resident,
        slice_: Slice,
        lost: list[Request],
        failure: Failure | None,
        now: float,
    ) -> None:
        """An engine is done with a slice; what it lost is asked again, of a new engine."""
        if slice_ not in resident.slices:
            return
        resident.slices.remove(slice_)
        resident.used_at = now
        self._turns.note_speed(resident, now)
        if failure is not None:
            self._note_death(resident, failure, now)
            self._give_back(slice_, lost, failure, now)

    def _give_back(self, slice_: Slice, lost: list[Request], failure: Failure, now: float) -> None:
        job = slice_.job
        if self._ended is not None or job.done.done():
            for request in lost:
                job.settle(Reply.failed(request, self._ended or failure))
            return
        job.give_back(lost, failure)
        broken = self._why_broken(job.group.key, now)
        if broken is not None:
            job.refuse(broken)
        if job.pending:
            self._turns.queues.add(job)

    def _note_death(self, resident: Resident, failure: Failure, now: float) -> None:
        """Once for each engine: it goes, and its model may be started anew unless it keeps dying."""
        if resident.is_dead:
            return
        resident.is_dead = True
        key = resident.group.key
        self._announcer.tell("died", resident, message=failure.message)
        deaths = self._deaths[key] = self._deaths.get(key, 0) + 1
        if deaths >= MOST_DEATHS:
            self._deaths[key] = 0
            self._broken[key] = (failure, now + COOL_DOWN)
            told = f"{failure.message} ({deaths} times in a row)"
            self._announcer.tell("failed", resident, message=told)
            self._refuse_queue(key, failure)
        resident.state = "leaving"
        self._spawn(self._end(resident, failure))

    def _refuse_queue(self, key: str, failure: Failure) -> None:
        for job in self._turns.queues.take_all(key):
            job.refuse(failure)

    def _came_up(
        self, resident: Resident, engine: Engine, load: Load, way: LoadWay, now: float
    ) -> None:
        key = resident.group.key
        need = self._turns.needs[key]
        resident.engine, resident.state = engine, "ready"
        resident.can_sleep = isinstance(engine, Sleeper) and engine.can_sleep
        resident.family = need.family
        resident.memory_bytes = max(need.memory_bytes, load.memory_bytes)
        resident.turn_at = resident.used_at = resident.told_at = now
        resident.answered = 0
        self._announcer.tell(
            "ready", resident, seconds=load.seconds, way=way, previous=resident.previous
        )
        measured = self._workshop.find_measurement(self._host.prepare(resident.group))
        if measured is not None:  # from now on a replica, or a swap, can be decided
            self._turns.needs[key] = replace(
                need, is_probed=bool(measured.probe), load_seconds=measured.seconds
            )
        if resident.group.local:
            self._note_load(
                LoadRecord(
                    weights=resident.group.name,
                    key=resident.group.key,
                    seconds=load.seconds,
                    memory_bytes=load.memory_bytes,
                    device=resident.device.name,
                    way=way,
                    replica=resident.replica,
                )
            )

    def _came_down(self, resident: Resident, failure: Failure, now: float) -> None:
        """A load failed. As a replica's it costs nobody; else the group's questions fail."""
        key = resident.group.key
        self._turns.residents.pop(resident.number, None)
        self._announcer.tell("failed", resident, message=failure.message)
        if resident.replica:
            self._turns.solitary.add(key)
            return
        if not failure.retryable:
            self._broken[key] = (failure, math.inf)
        self._refuse_queue(key, failure)

    def _gone(self, resident: Resident, failure: Failure, now: float) -> None:
        self._turns.residents.pop(resident.number, None)
        for slice_ in list(resident.slices):
            self._abandon(resident, slice_, failure, now)
        self._announcer.tell("unloaded", resident)

    def _slept(self, resident: Resident) -> None:
        resident.state, resident.memory_bytes = "asleep", 0
        self._announcer.tell("asleep", resident)

    # Actions

    def _do(self, action: Action, now: float) -> None:
        match action:
            case Begin(resident, slice_):
                self._begin(resident, slice_, now)
            case Start(resident):
                self._load(resident, "fresh")
            case Swap(resident):
                self._load(resident, "reload")
            case Wake(resident):
                self._load(resident, "wake")
            case Rest(resident):
                self._spawn(self._rest(resident))
            case End(resident):
                self._spawn(self._end(resident))
            case Refuse(group):
                failure = tell_lack(group, self._turns.needs[group.key], self._host)
                assert failure is not None
                self._announcer.tell_of(group, "failed", message=failure.message)
                self._refuse_queue(group.key, failure)

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
        prepared = self._host.prepare(resident.group)
        engine = resident.engine
        try:
            if way == "fresh" or engine is None:
                device = resident.device if resident.group.local else None
                engine, load = await self._workshop.start(prepared, device)
            elif way == "reload":
                load = await self._workshop.swap(engine, prepared)
            else:
                load = await self._workshop.wake(engine, prepared)
        except Exception as error:  # an engine of the user's own may raise anything
            failure = failure_of(error)
            if way == "fresh":
                self._post(lambda now: self._came_down(resident, failure, now))
            else:  # the short cut failed, and its engine with it; a new one may do
                self._announcer.tell_of(resident.group, "warning", message=failure.message)
                self._post(lambda now: self._gone(resident, failure, now))
            return
        ready = engine
        self._post(lambda now: self._came_up(resident, ready, load, way, now))

    async def _serve(self, resident: Resident, slice_: Slice) -> None:
        assert resident.engine is not None

        def hear(reply: Reply) -> None:
            slice_.answered += 1
            resident.answered += 1
            resident.heard_at = self._now()
            if reply.failure is None:
                self._deaths.pop(resident.group.key, None)
            self.fulfil(resident.group.key, 1)
            slice_.job.settle(reply)
            if resident.in_flight in (64, 0):
                self._arrival.set()

        lost: list[Request] = []
        failure: Failure | None = None
        try:
            lost, failure = await serve_slice(
                resident.engine, slice_, hear, is_mortal=resident.group.local
            )
        finally:  # also where the job was withdrawn
            self._post(lambda now: self._finished(resident, slice_, lost, failure, now))

    async def _read_ahead(self) -> None:
        """While a model works, read the next one's weights into memory that is free anyway."""
        group = self._turns.next_to_load()
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
            self._post(lambda now: self._gone(resident, failure, now))
        else:
            self._post(lambda _: self._slept(resident))

    async def _end(self, resident: Resident, failure: Failure = CLOSED) -> None:
        try:
            if resident.engine is not None:
                await close_quietly(resident.engine)
            calls = [slice_.task for slice_ in resident.slices if slice_.task is not None]
            if calls:  # of an engine that died: what they have heard from it counts
                await asyncio.wait(calls, timeout=LAST_WORDS)
        finally:
            self._post(lambda now: self._gone(resident, failure, now))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
