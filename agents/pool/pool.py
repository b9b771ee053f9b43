"""The face of the pool: ask an expert by its alias, and the right model is there.

One event loop in a thread of its own owns everything that is loaded, so the pool can be used from any
loop, from several at once, and from plain code; nothing else touches the engines and nothing is locked.
What is asked of the same weights runs as one continuous batch; which weights are loaded when is decided in
`turns.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any

from ...retrieval import InputError
from ..engines import Chunk, Message, Reply, Request
from .assembly import Given
from .broadcast import Broadcast
from .catalog import Catalog
from .conversion import cache_folder
from .delivery import Delivery
from .desk import Desk
from .events import PoolEvent
from .groups import Group, group_experts
from .host import Host
from .ledger import Ledger, LoadRecord
from .local_host import LocalHost
from .loop_thread import LoopThread
from .measurements import Measurements
from .plan import LoadPlan
from .planner import Planner
from .residency import Residency
from .shelf import Shelf
from .specs import VllmExpert
from .store import AnswerStore
from .timeline import Timeline
from .tracing import PoolTracing
from .workshop import Workshop

__all__ = ["Pool"]

NEVER_DONE = 1 << 40
"""Calls that are announced for weights which will be wanted again, nobody knows how often."""


class Pool:
    """Experts that can be asked. Use it as a context manager (plain or async), or call `close`.

    Args:
        catalog: The experts.
        store: Where finished replies are kept and found again; None asks everything anew.
        on_event: Called from the pool's thread with every `PoolEvent`; it must not block. See `watch`.
        engines: Engines by alias, or functions that make them, for experts whose `engine` is `given`. The
            pool starts and closes them. Only an engine that a function makes can be started anew.
        host: Where engines run: this machine, or a `RayHost`.
        patience: Seconds after which a waiting request makes loaded models give way; the pool file's
            `max_wait` by default. `math.inf` is the batch mode: no model goes that still has requests, so each
            is loaded once.
        measurements: What earlier loads took and gave; by default kept in the user's cache folder.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        store: AnswerStore | None = None,
        on_event: Callable[[PoolEvent], None] | None = None,
        engines: Mapping[str, Given] | None = None,
        host: Host | None = None,
        patience: float | None = None,
        measurements: Measurements | None = None,
    ) -> None:
        self.catalog = catalog
        self.timeline = Timeline()
        """What the devices did since the pool was made."""
        self.plans: list[LoadPlan] = []
        """What was announced, to be compared with what came of it."""
        self._tracing = PoolTracing()
        watchers = [self.timeline.add, self._tracing.hear]
        watchers += [on_event] if on_event is not None else []
        self._broadcast = Broadcast(watchers)
        self._shelf = None if store is None else Shelf(store, self._warn_of_store)
        self._groups: dict[str, Group] = {
            alias: group for group in group_experts(catalog) for alias in group.aliases
        }
        self._host = host or LocalHost(catalog, engines)
        if measurements is None:
            measurements = Measurements(cache_folder() / "measurements")
        self._workshop = Workshop(self._host, measurements, self._broadcast.warn)
        self._patience = catalog.file.max_wait if patience is None else patience
        self._residency = Residency(
            self._host,
            self._workshop,
            catalog.file,
            patience=self._patience,
            note_load=self._note_load,
            tell=self._broadcast.tell,
        )
        self._desk = Desk(self._residency, self._host, self._shelf, self._broadcast)
        self._planner = Planner(catalog, self._groups, self._host, self._workshop)
        self._thread = LoopThread("expertmix-pool")

    @classmethod
    def from_file(cls, path: str, **settings: Any) -> Pool:
        """A pool of the experts in a pool file. See `Catalog.load` and the constructor."""
        return cls(Catalog.load(path), **settings)

    @classmethod
    def from_engines(cls, engines: Mapping[str, Given], **settings: Any) -> Pool:
        """A pool of engines that the program built itself, by alias."""
        experts = [{"alias": alias, "engine": "given"} for alias in engines]
        return cls(Catalog.from_dict({"experts": experts}), engines=engines, **settings)

    @property
    def ledger(self) -> Ledger:
        """What was asked and loaded; that of an earlier run may be put in its place, to be gone on with."""
        return self._desk.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        self._desk.ledger = ledger

    @property
    def store(self) -> AnswerStore | None:
        """Where finished replies are kept; None without one, or from when it could not be used."""
        return None if self._shelf is None else self._shelf.store

    async def generate(
        self,
        alias: str,
        requests: Sequence[Request],
        *,
        stage: str = "reason",
        on_reply: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Ask one expert many things; replies come in the order of the requests.

        The expert's persona and adapter are added here. A request that cannot be answered (its model
        does not load, it is too long, …) has a reply with a `failure`; nothing is raised for it.

        Args:
            alias: An expert of the catalog.
            requests: With ids that differ.
            stage: What the calls are for; the ledger counts by it.
            on_reply: Called in the caller's event loop with each reply as soon as it is there.

        Raises:
            InputError: there is no such expert.
        """
        group = self._groups[self.catalog[alias].alias]
        if len({request.id for request in requests}) != len(requests):
            raise ValueError("two requests of one call have the same id")
        asked = [self._dress(request, alias) for request in requests]
        delivery = on_reply and Delivery(asyncio.get_running_loop(), on_reply)

        def deliver(reply: Reply) -> None:
            call.hear(reply)
            if delivery is not None:
                delivery.deliver(reply)

        call = self._tracing.begin(alias, group, asked, stage)
        with call, call.current():
            work = self._desk.answer(group, alias, asked, stage=stage, deliver=deliver, call=call)
            call.replies = await self._thread.run(work)
            return call.replies

    async def stream(self, alias: str, request: Request) -> AsyncIterator[Chunk]:
        """Ask one expert one thing and get the answer piece by piece; the last chunk has the reply."""
        group = self._groups[self.catalog[alias].alias]
        asked = self._dress(request, alias)
        caller = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()

        def put(chunk: Chunk) -> None:
            with contextlib.suppress(RuntimeError):  # its loop was closed: nobody listens
                caller.call_soon_threadsafe(chunks.put_nowait, chunk)

        call = self._tracing.begin(alias, group, [asked], "stream")
        with call.current():
            work = self._desk.stream(group, alias, asked, put=put, call=call)
            task = asyncio.ensure_future(self._thread.run(work))
        task.add_done_callback(lambda _: chunks.put_nowait(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
                if chunk.reply is not None:
                    break
            await task
        finally:
            task.cancel()

    def watch(self, watcher: Callable[[PoolEvent], None]) -> Callable[[], None]:
        """Call `watcher` with every event from now on, from the pool's thread; it must not block.

        Returns:
            What ends it.
        """
        return self._broadcast.add(watcher)

    async def drain(self, seconds: float = 5.0) -> None:
        """Begin nothing further, and let engines finish what they work on for so long: before an orderly end."""
        if self._thread.is_running:
            await self._thread.run(self._residency.drain(seconds))

    def plan(
        self,
        calls: Mapping[str, int],
        *,
        last: Collection[str] = (),
        tokens_per_call: Mapping[str, float] | None = None,
        seconds_per_call: Mapping[str, float] | None = None,
        least_gain: float = 0.0,
    ) -> LoadPlan:
        """What these calls would load, where and in which order; nothing is loaded. See `make_plan`.

        Raises:
            InputError: an unknown alias, weights that are not there, or that fit no device.
        """
        return self._planner.plan(
            calls,
            last=last,
            tokens_per_call=tokens_per_call,
            seconds_per_call=seconds_per_call,
            least_gain=least_gain,
        )

    def announce(
        self,
        calls: Mapping[str, int],
        *,
        last: Collection[str] = (),
        tokens_per_call: Mapping[str, float] | None = None,
        seconds_per_call: Mapping[str, float] | None = None,
    ) -> list[str]:
        """Tell the pool what will be asked next, so that it loads in a good order and knows what it may drop.

        In batch mode the plan is made and kept in `plans`. An expert that cannot be planned with (its
        weights are not there, or too large) is no reason to refuse the others: its questions will say so.

        Returns:
            The aliases in the order in which they had better be asked.
        """
        if not math.isinf(self._patience):  # online, others come between: no plan would hold
            return self.order([alias for alias in calls if calls[alias]], last=last)

        plan = self._planner.plan_possible(
            calls, last=last, tokens_per_call=tokens_per_call, seconds_per_call=seconds_per_call
        )
        self.plans.append(plan)
        self._expect(plan, last)
        order = [alias for planned in plan.groups for alias in planned.calls]
        return [*order, *(alias for alias in calls if calls[alias] and alias not in order)]

    def _expect(self, plan: LoadPlan, last: Collection[str]) -> None:
        """Have the residency loop follow a plan."""
        calls = {p.group.key: sum(p.calls.values()) for p in plan.groups if p.group.local}
        for planned in plan.groups:  # nobody knows how often they will be asked again
            if planned.group.key in calls and not set(last).isdisjoint(planned.group.aliases):
                calls[planned.group.key] += NEVER_DONE
        ranks = {planned.group.key: rank for rank, planned in enumerate(plan.groups)}
        places = {p.group.key: p.placements[0].device for p in plan.groups if p.placements}

        def tell() -> None:
            self._residency.expect(calls, ranks, places)

        self._thread.call_soon(tell)

    def order(self, aliases: Collection[str], *, last: Collection[str] = ()) -> list[str]:
        """Aliases as a plan would ask them: those with the same weights together, `last` at the end."""
        return self._planner.order(aliases, last=last)

    def weights_of(self, alias: str) -> str:
        """What events call the model that an expert runs on; experts may share one.

        Raises:
            InputError: there is no such expert.
        """
        return self._groups[self.catalog[alias].alias].name

    def identity(self, alias: str) -> str:
        """What the expert's answers depend on besides the request: revisions, dtype, persona.

        Raises:
            InputError: its weights or files are not there.
        """
        spec = self.catalog[alias]
        prepared = self._host.prepare(self._groups[alias])
        adapter = getattr(spec, "adapter", None)
        return f"{prepared.identity}:{adapter}:{spec.persona}:{spec.style}:{spec.sampling}"

    def check(self, aliases: Iterable[str] | None = None) -> None:
        """Find the weights and files of experts (all by default) before anything is asked.

        Blocks: packaged weights are converted and hub weights fetched if that was never done.

        Raises:
            InputError: an expert's weights, adapter, recordings or script are not there, or a device.
        """
        chosen = list(self.catalog if aliases is None else aliases)
        if any(self._groups[self.catalog[alias].alias].local for alias in chosen):
            _ = self._host.devices
        for alias in chosen:
            try:
                self._host.prepare(self._groups[self.catalog[alias].alias])
            except InputError as error:
                raise InputError(f'expert "{alias}": {error}') from None

    def open(self) -> Pool:
        """Start the pool's thread. Nothing is loaded before it is needed.

        Raises:
            InputError: the answer store cannot be used.
        """
        self._thread.start(self._prepare)
        return self

    def close(self) -> None:
        """Unload everything and end the thread. Safe to call twice; the pool can be opened again.

        Raises:
            RuntimeError: it is called in the pool's own thread (by a watcher, say), which cannot wait for itself.
        """
        self._thread.stop(self._wind_up, self._close_files)

    def __enter__(self) -> Pool:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        opening = asyncio.ensure_future(asyncio.to_thread(self.open))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:  # its thread goes on, and would leave an open pool behind
            await asyncio.wait([opening])
            if opening.exception() is None:
                await asyncio.to_thread(self.close)
            raise

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def _prepare(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._shelf is not None:
            self._shelf.open(loop)
        self._broadcast.begin(loop, at=self.timeline.makespan)

    async def _wind_up(self) -> None:
        await self._residency.close()
        if self._shelf is not None:
            await self._shelf.settle()  # however long the disk takes: these are answers

    def _close_files(self) -> None:
        if self._shelf is not None:
            self._shelf.close()
        self._tracing.close()

    def _warn_of_store(self, reason: str) -> None:
        self._broadcast.tell(PoolEvent(kind="failed", weights="answer store", message=reason))

    def _dress(self, request: Request, alias: str) -> Request:
        """Add what makes an alias more than its weights."""
        spec = self.catalog[alias]
        messages = request.messages
        if spec.persona and not (messages and messages[0]["role"] == "system"):
            turn: Message = {"role": "system", "content": spec.persona}
            messages = (turn, *messages)
        adapter = alias if isinstance(spec, VllmExpert) and spec.adapter else None
        return dataclasses.replace(request, messages=messages, adapter=adapter)

    def _note_load(self, load: LoadRecord) -> None:
        self.ledger.loads.append(load)
