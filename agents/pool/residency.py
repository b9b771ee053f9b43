"""The loop that owns what is loaded.

Whatever happens (a job arrives, an engine is ready, answers, dies, is gone) is a message; one task takes the
messages one after the other, changes the state, asks `Turns` what is to be done now, and starts doing it.
Nothing else touches the state, so nothing is locked. A model is absent, loading, ready, asleep or leaving
(`residents.py`), drains while it has to give way (`turns.py`), and has failed while `health.py` says why.

Engines that need no memory here (addresses, recordings) have no turns: they are started once and asked at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..engines import Engine, Failure, Load, Reply, Request, Sleeper
from .actions import Refuse
from .announcer import Announcer
from .deeds import Deeds
from .events import LoadWay, PoolEvent
from .gate import Gate
from .groups import Group
from .health import Health
from .host import Host
from .jobs import CLOSED, Job
from .ledger import LoadRecord
from .needs import count_held, find_need, tell_lack
from .plain_engines import PlainEngines, failure_of
from .queues import IN_FLIGHT, SLICE
from .residents import Need, Resident, Slice
from .specs import PoolFile
from .turns import Turns, TurnSettings
from .workshop import Workshop, close_quietly

__all__ = ["Residency"]

DRAIN_STEP = 0.05
PULSE_SECONDS = 1.0
"""How often working engines are looked at."""


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
        self._deeds = Deeds(self._host, self._workshop, self._announcer, self, self._post)
        self._health = Health()
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
        inside = len(job.requests)
        await self._gate.enter(inside)

        def leave_one() -> None:
            nonlocal inside
            inside -= 1
            self._gate.leave(1)

        job.on_settled = leave_one
        try:
            if not job.done.done():  # not closed while it waited
                await self._hand_in(job)
            return await job.done
        except asyncio.CancelledError:
            self._post(lambda _: self._withdraw(job))
            raise
        finally:
            job.on_settled = None
            self._gate.leave(inside)

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

        def take(now: float) -> None:
            self._turns.expected.clear()
            self._turns.expected.update(calls)
            self._turns.follow(ranks, devices, now)

        self._enter_loop()
        self._post(take)

    def fulfil(self, key: str, number: int) -> None:
        """So many announced requests of a group are answered."""
        if key in self._turns.expected:
            self._turns.expected[key] -= number

    async def drain(self, seconds: float) -> None:
        """Begin nothing further, and let engines finish what they work on, for so long at most."""
        self._enter_loop()
        self._is_draining = self._plain.is_draining = True
        deadline = self._now() + seconds
        while self._is_at_work() and self._now() < deadline:
            await asyncio.sleep(DRAIN_STEP)

    def _is_at_work(self) -> bool:
        return self._plain.is_at_work or any(r.slices for r in self._turns.residents.values())

    async def close(self) -> None:
        """Stop everything, whatever is still running; who waits gets a failure."""
        self._enter_loop()
        self._ended = CLOSED
        tasks = [task for task in (self._actor, *self._deeds.tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._inbox:  # what finished meanwhile counts, and who came last is told
            self._inbox.popleft()(self._now())
        for job in list(self._open):
            job.end(CLOSED)
        residents = self._turns.residents.values()
        engines = [r.engine for r in residents if r.engine is not None]
        await asyncio.gather(
            *map(close_quietly, engines), *self._deeds.tasks, return_exceptions=True
        )
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
                if isinstance(action, Refuse):
                    self._tell_lack(action.group)
                else:
                    self._deeds.do(action, now)
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
        self.finished(resident, slice_, lost, failure, now)
        if slice_.task is not None:
            slice_.task.cancel()

    def _post(self, message: Callable[[float], None]) -> None:
        self._inbox.append(message)
        self._arrival.set()
        if self._actor is None and self._ended is None:
            # It outlives whoever asked first, and is no part of that one's trace.
            self._actor = asyncio.create_task(self._live(), context=contextvars.Context())
            self._actor.add_done_callback(self._fail_all)

    def _tell_lack(self, group: Group) -> None:
        failure = tell_lack(group, self._turns.needs[group.key], self._host)
        assert failure is not None
        self._announcer.tell_of(group, "failed", message=failure.message)
        self._refuse_queue(group.key, failure)

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
        failure = self._ended or self._health.why_broken(key, now) or lack
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

    def heard(self, resident: Resident, slice_: Slice, reply: Reply) -> None:
        """A reply that counts, as soon as it is there."""
        slice_.answered += 1
        resident.answered += 1
        resident.heard_at = self._now()
        if reply.failure is None:
            self._health.note_answer(resident.group.key)
        self.fulfil(resident.group.key, 1)
        slice_.job.settle(reply)
        if resident.in_flight in (IN_FLIGHT - SLICE, 0):  # it could take more
            self._arrival.set()

    def next_to_load(self) -> Group | None:
        """The group that will be loaded next, as far as anybody can tell now."""
        return self._turns.next_to_load()

    def finished(
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
        broken = self._health.why_broken(job.group.key, now)
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
        deaths = self._health.note_death(key, failure, now, born=resident.born_at)
        if deaths is not None:
            told = f"{failure.message} ({deaths} times in a row)"
            self._announcer.tell("failed", resident, message=told)
            self._refuse_queue(key, failure)
        resident.state = "leaving"
        self._deeds.end(resident, failure)

    def _refuse_queue(self, key: str, failure: Failure) -> None:
        for job in self._turns.queues.take_all(key):
            job.refuse(failure)

    def came_up(
        self, resident: Resident, engine: Engine, load: Load, way: LoadWay, now: float
    ) -> None:
        """An engine has its weights."""
        key = resident.group.key
        need = self._turns.needs[key]
        resident.engine, resident.state = engine, "ready"
        resident.can_sleep = isinstance(engine, Sleeper) and engine.can_sleep
        resident.family = need.family
        held = count_held(need, resident.device, load.memory_bytes)
        # A process that was swapped may still hold what its former weights needed.
        resident.memory_bytes = held if way == "fresh" else max(resident.memory_bytes, held)
        resident.born_at = resident.turn_at = resident.used_at = resident.told_at = now
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

    def came_down(self, resident: Resident, failure: Failure, now: float) -> None:
        """A load failed. As a replica's it costs nobody; else the group's questions fail."""
        key = resident.group.key
        self._turns.residents.pop(resident.number, None)
        self._announcer.tell("failed", resident, message=failure.message)
        if resident.replica:
            self._turns.solitary.add(key)
            return
        need = self._turns.needs[key]
        others = tuple(device for device in need.devices if device != resident.device)
        if failure.retryable and any(d.memory_bytes >= need.memory_bytes for d in others):
            self._turns.needs[key] = replace(need, devices=others)  # a node may be lost
            return
        self._health.note_load_failure(key, failure)
        self._refuse_queue(key, failure)

    def gone(self, resident: Resident, failure: Failure, now: float) -> None:
        """An engine has ended; what it still had in flight is lost."""
        self._turns.residents.pop(resident.number, None)
        for slice_ in list(resident.slices):
            self._abandon(resident, slice_, failure, now)
        self._announcer.tell("unloaded", resident)

    def swap_failed(self, resident: Resident) -> None:
        """A swap in place went wrong: that family is loaded afresh from now on."""
        self._turns.unswappable.add(self._turns.needs[resident.group.key].family)

    def slept(self, resident: Resident) -> None:
        """An engine sleeps."""
        resident.state, resident.memory_bytes = "asleep", 0
        self._announcer.tell("asleep", resident)
