"""A machine that is none: devices, engines and time are simulated, the residency loop is the real one."""

from __future__ import annotations

import asyncio
import itertools
import math
import selectors
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from expertmix.agents import Catalog, PoolEvent
from expertmix.agents.engines import Chunk, EngineError, Failure, Load, Reply, Request
from expertmix.agents.pool.assembly import Prepared
from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.groups import Group, group_experts
from expertmix.agents.pool.jobs import Job
from expertmix.agents.pool.ledger import LoadRecord
from expertmix.agents.pool.measurements import Measurements
from expertmix.agents.pool.residency import Residency
from expertmix.agents.pool.workshop import Workshop

__all__ = ["GIB", "SimEngine", "SimHost", "Simulate", "Simulation", "VirtualLoop"]

GIB = 2**30


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.virtual_time = 0.0
        self.set_default_executor(_Inline())

    def time(self) -> float:
        return self.virtual_time

    def step(self, seconds: float) -> None:
        """Let so much time pass."""
        self.run_until_complete(asyncio.sleep(seconds))


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits, and nothing will ever happen"
            self._loop.virtual_time += max(0.0, timeout)
        return ready


class _Inline(ThreadPoolExecutor):
    """Runs what belongs into a thread at once: a thread's time is not virtual."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@dataclass
class SimEngine:
    """Loads in `load_seconds`, answers a batch in `batch_seconds`, and fails as it was told."""

    host: SimHost
    group: Group
    device: Device
    memory: int
    name: str = ""
    started: bool = False
    closed: bool = False
    swaps: int = 0
    can_sleep: bool = False
    end: asyncio.Event = field(default_factory=asyncio.Event)
    is_asleep: bool = False

    async def start(self) -> Load:
        self.host.take(self)
        await asyncio.sleep(self.host.load_seconds)
        fault = self.host.take_fault("load", self.group)
        if fault:
            raise EngineError(Failure(kind="load", message=fault, retryable="later" in fault))
        self.started = True
        return Load(seconds=self.host.load_seconds, memory_bytes=self.memory, probe=(0.0,))

    async def swap(self, model: str, name: str) -> Load:
        self.host.demand(self.started and not self.closed, "what does not run is swapped")
        self.group = next(g for g in self.host.groups.values() if g.name == name)
        await asyncio.sleep(self.host.swap_seconds)
        if self.host.take_fault("swap", self.group):
            raise EngineError(Failure(kind="load", message="the swap went wrong"))
        self.swaps += 1
        return Load(seconds=self.host.swap_seconds, memory_bytes=self.memory, probe=(0.0,))

    async def sleep(self, level: Literal[1, 2]) -> None:
        await asyncio.sleep(0.2)
        if self.host.take_fault("sleep", self.group):
            raise EngineError(Failure(kind="load", message="it could not sleep"))
        self.host.give(self)
        self.is_asleep = True

    async def wake(self) -> Load:
        self.host.take(self)
        self.is_asleep = False
        await asyncio.sleep(0.2)
        if self.host.take_fault("wake", self.group):
            raise EngineError(Failure(kind="load", message="it could not wake"))
        return Load(seconds=0.2, memory_bytes=self.memory, probe=(0.0,))

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        self.host.demand(self.started and not self.is_asleep, "what does not run is asked")
        self.host.demand(bool(requests), "an engine is given nothing to do")
        self.host.begin_work(self)
        replies: list[Reply] = []
        try:
            for request in requests:
                fault = self.host.take_fault("answer", self.group)
                if fault == "hang":
                    await self._wait(math.inf)
                if fault == "die":
                    self.end.set()
                if self.end.is_set():
                    gone = Failure(kind="engine", message="it died", retryable=True)
                    replies.append(Reply.failed(request, gone))
                    continue
                replies.append(Reply(request_id=request.id, text=self._say(request, fault)))
            await self._wait(self.host.batch_seconds)
            if self.end.is_set():
                gone = Failure(kind="engine", message="it died", retryable=True)
                return [
                    r if r.failure else Reply.failed(q, gone)
                    for q, r in zip(requests, replies, strict=True)
                ]
            for reply in replies:
                self.host.calls[self.group.aliases[0], reply.request_id] += 1
                if on_reply is not None:
                    on_reply(reply)
            return replies
        finally:
            self.host.end_work(self)

    def _say(self, request: Request, fault: str) -> str:
        return {"empty": "", "garbage": "\x00<|im_end|>"}.get(
            fault, f"{self.group.aliases[0]} says {request.id}"
        )

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self.end.wait()
        except TimeoutError:
            return

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        raise NotImplementedError
        yield Chunk()

    async def close(self) -> None:
        self.end.set()
        if not self.closed:
            self.closed = True
            await asyncio.sleep(self.host.unload_seconds)
            self.host.give(self)


class SimHost:
    """Devices with budgets that may never be passed, and engines that count themselves."""

    def __init__(self, catalog: Catalog, devices: Sequence[Device], *, families: bool) -> None:
        self.groups = {group.aliases[0]: group for group in group_experts(catalog)}
        self.devices = tuple(devices)
        self.families = families
        self.load_seconds, self.swap_seconds, self.unload_seconds = 4.0, 0.3, 0.1
        self.batch_seconds = 1.0
        self.in_reach = 1 << 60
        self.can_sleep = False
        self.is_measured = False
        """Whether loads are remembered, and a swap needs an earlier load to be compared with."""
        self.engines: list[SimEngine] = []
        self.held: dict[str, dict[int, int]] = {device.name: {} for device in devices}
        self.at_work: dict[str, Counter[int]] = {device.name: Counter() for device in devices}
        self.faults: dict[tuple[str, str], list[str]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.violations: list[str] = []
        """What an engine saw that must not be. It cannot raise it: the loop forgives engines everything."""

    def demand(self, holds: bool, what: str) -> None:
        if not holds:
            self.violations.append(what)

    def prepare(self, group: Group) -> Prepared:
        memory = round((getattr(group.specs[0], "memory_gib", 0) or 0) * GIB)
        family = "all" if self.families else None
        return Prepared(
            group=group,
            identity=group.key,
            memory_bytes=memory,
            family=family,
            measured_as=group.key if self.is_measured else None,
        )

    def build(
        self, prepared: Prepared, device: Device | None, *, kv_cache_bytes: int | None = None
    ) -> SimEngine:
        assert device is not None
        engine = SimEngine(self, prepared.group, device, prepared.memory_bytes, prepared.group.name)
        engine.can_sleep = self.can_sleep
        self.engines.append(engine)
        return engine

    def memory_in_reach(self, device: Device) -> int:
        return self.in_reach

    async def close(self) -> None:
        pass

    def plan_fault(self, where: str, alias: str, what: str) -> None:
        self.faults.setdefault((where, alias), []).append(what)

    def take_fault(self, where: str, group: Group) -> str:
        waiting = self.faults.get((where, group.aliases[0]), [])
        return waiting.pop(0) if waiting else ""

    def take(self, engine: SimEngine) -> None:
        held = self.held[engine.device.name]
        held[id(engine)] = engine.memory
        budget = engine.device.memory_bytes
        self.demand(sum(held.values()) <= budget, "more than the budget is held")

    def give(self, engine: SimEngine) -> None:
        self.held[engine.device.name].pop(id(engine), None)

    def begin_work(self, engine: SimEngine) -> None:
        work = self.at_work[engine.device.name]
        work[id(engine)] += 1
        self.demand(len(+work) <= engine.device.lanes, "more engines work than there are lanes")

    def end_work(self, engine: SimEngine) -> None:
        self.at_work[engine.device.name][id(engine)] -= 1


class Simulation:
    """A residency loop on a simulated machine."""

    def __init__(
        self,
        memories: Mapping[str, float],
        devices: Sequence[Device],
        *,
        families: bool = False,
        patience: float = math.inf,
        can_sleep: bool = False,
        **file: Any,
    ) -> None:
        experts = [{"alias": a, "engine": "given", "memory_gib": m} for a, m in memories.items()]
        catalog = Catalog.from_dict({"experts": experts, **file})
        self.loop = VirtualLoop()
        self.host = SimHost(catalog, devices, families=families)
        self.host.can_sleep = can_sleep
        self.loads: list[LoadRecord] = []
        self.events: list[tuple[float, PoolEvent]] = []
        self.replies: Counter[tuple[int, str]] = Counter()
        self.jobs: list[tuple[Job, asyncio.Task[list[Reply]]]] = []
        self.ends: dict[int, float] = {}
        workshop = Workshop(self.host, Measurements(None), self._warn)
        self.residency = Residency(
            self.host,
            workshop,
            catalog.file,
            patience=patience,
            note_load=self.loads.append,
            tell=lambda event: self.events.append((self.loop.time(), event)),
        )

    def _warn(self, weights: str, message: str) -> None:
        event = PoolEvent(kind="warning", weights=weights, message=message)
        self.events.append((self.loop.time(), event))

    def submit(self, alias: str, number: int) -> int:
        """Ask an expert so much; gives the job's place."""
        place = len(self.jobs)
        requests = [
            Request(id=f"{place}-{i}", messages=({"role": "user", "content": "x"},))
            for i in range(number)
        ]

        async def ask() -> tuple[Job, asyncio.Task[list[Reply]]]:
            job = Job(
                group=self.host.groups[alias],
                requests=requests,
                on_reply=lambda reply: self.replies.update([(place, reply.request_id)]),
            )
            return job, asyncio.create_task(self.residency.run(job))

        job, task = self.loop.run_until_complete(ask())

        def note_end(_: asyncio.Task[list[Reply]]) -> None:
            self.ends[job.number] = self.loop.time()

        task.add_done_callback(note_end)
        self.jobs.append((job, task))
        self.loop.step(0.0)
        return place

    def finish(self, *, within: float = 100_000.0) -> None:
        """Let everything end."""
        tasks = [task for _, task in self.jobs]
        if tasks:
            waiting = asyncio.wait(tasks, timeout=within)
            _, late = self.loop.run_until_complete(waiting)
            assert not late, f"{len(late)} jobs never ended"
        assert not self.host.violations, self.host.violations

    def close(self) -> None:
        self.loop.run_until_complete(self.residency.close())
        for engine in self.host.engines:
            assert engine.closed, "an engine was left behind"
        assert not self.host.violations, self.host.violations
        self.discard()

    def discard(self) -> None:
        """End the loop, also after a failed check."""
        if not self.loop.is_closed():
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.step(10.0)
            self.loop.close()

    def unserved(self, alias: str) -> list[tuple[float, float]]:
        """The times in which a group had requests that arrived and no engine worked for it.

        Its jobs tell when they arrived and ended, the loop's events when engines worked.
        """
        group = self.host.groups[alias]
        wanted = [
            (j.arrived, self.ends[j.number]) for j, _ in self.jobs if j.group is group and j.number
        ]
        worked = self._working_times(group.name)
        edges = sorted({t for span in (*wanted, *worked) for t in span})
        gaps: list[tuple[float, float]] = []
        for start, end in itertools.pairwise(edges):
            is_wanted = any(a <= start and end <= b for a, b in wanted)
            is_served = any(a <= start and end <= b for a, b in worked)
            if is_wanted and not is_served:
                if gaps and gaps[-1][1] == start:
                    gaps[-1] = (gaps[-1][0], end)
                else:
                    gaps.append((start, end))
        return gaps

    def _working_times(self, weights: str) -> list[tuple[float, float]]:
        begun: dict[int, float] = {}
        spans: list[tuple[float, float]] = []
        for at, event in self.events:
            if event.weights == weights and event.kind == "working":
                begun[event.engine] = at
            elif event.engine in begun and event.kind in ("resting", "died", "unloaded"):
                spans.append((begun.pop(event.engine), at))
        return spans


Simulate: TypeAlias = Callable[..., Simulation]
"""The fixture that makes simulations."""
