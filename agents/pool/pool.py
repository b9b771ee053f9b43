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
import functools
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
from .events import PoolEvent
from .groups import Group, group_experts
from .host import Host
from .jobs import Job
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
from .tracing import CallSpan, PoolTracing
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
        self.ledger = Ledger()
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
        self._residency: Residency | None = None
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
        spec = self.catalog[alias]
        if len({request.id for request in requests}) != len(requests):
            raise ValueError("two requests of one call have the same id")
        asked = [self._dress(request, alias) for request in requests]
        delivery = on_reply and Delivery(asyncio.get_running_loop(), on_reply)

        def deliver(reply: Reply) -> None:
            call.hear(reply)
            if delivery is not None:
                delivery.deliver(reply)

        call = self._tracing.begin(alias, self._groups[spec.alias], asked, stage)
        with call, call.current():
            call.replies = await self._thread.run(
                self._serve(spec.alias, asked, stage, deliver, call)
            )
            return call.replies

    async def stream(self, alias: str, request: Request) -> AsyncIterator[Chunk]:
        """Ask one expert one thing and get the answer piece by piece; the last chunk has the reply."""
        group = self._groups[self.catalog[alias].alias]
        asked = self._dress(request, alias)
        caller = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()

        async def pump() -> None:
            def put(chunk: Chunk) -> None:
                with contextlib.suppress(RuntimeError):  # its loop was closed: nobody listens
                    caller.call_soon_threadsafe(chunks.put_nowait, chunk)

            job = Job(group=group, requests=[asked], on_chunk=put)
            with call:
                try:
                    call.replies = await self._loaded.run(job)
                    for reply in call.replies:
                        self.ledger.record(alias, "stream", reply)
                        call.hear(reply)
                finally:
                    self.ledger.account(alias, "stream").seconds += job.seconds

        call = self._tracing.begin(alias, group, [asked], "stream")
        with call.current():
            task = asyncio.ensure_future(self._thread.run(pump()))
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
        if self._residency is not None:
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
            self._loaded.expect(calls, ranks, places)

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
        if not self._thread.is_running:
            if self._shelf is not None:
                self._shelf.open()
            self._broadcast.begin(self._thread.start(), at=self.timeline.makespan)
        return self

    def close(self) -> None:
        """Unload everything and end the thread. Safe to call twice; the pool can be opened again."""
        if self._thread.is_running:
            self._thread.stop(self._unload(), self._close_files)

    def __enter__(self) -> Pool:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        return await asyncio.to_thread(self.open)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    async def _unload(self) -> None:
        if self._residency is not None:
            await self._residency.close()

    def _close_files(self) -> None:
        if self._shelf is not None:
            self._shelf.close()
        self._tracing.close()

    async def _serve(
        self,
        alias: str,
        requests: list[Request],
        stage: str,
        deliver: Callable[[Reply], None],
        call: CallSpan,
    ) -> list[Reply]:
        """In the pool's loop: what the store knows from there, the rest from the engine."""
        group = self._groups[alias]
        identity = await self._identify(group)
        shelf = self._shelf
        replies = {} if shelf is None else await shelf.find(identity, requests)
        call.reuse(replies)
        for reply in replies.values():
            deliver(reply)
        self.ledger.account(alias, stage).reused += len(replies)
        self._loaded.fulfil(group.key, len(replies))
        rest = {request.id: request for request in requests if request.id not in replies}
        if rest:

            def receive(reply: Reply) -> None:
                self.ledger.record(alias, stage, reply)
                if shelf is None:
                    hand_over(reply)
                else:  # who has heard of an answer must find it again after a crash
                    then = functools.partial(hand_over, reply)
                    shelf.keep(identity, rest[reply.request_id], reply, then)

            def hand_over(reply: Reply) -> None:
                self._broadcast.count_finished(group.name, alias, stage)
                deliver(reply)

            self._broadcast.tell(
                PoolEvent(
                    kind="queued", weights=group.name, alias=alias, stage=stage, number=len(rest)
                )
            )
            job = Job(group=group, requests=list(rest.values()), on_reply=receive)
            try:
                fresh = await self._loaded.run(job)
                if shelf is not None:
                    await shelf.settle()
            finally:
                self.ledger.account(alias, stage).seconds += job.seconds
            replies |= {reply.request_id: reply for reply in fresh}
        return [replies[request.id] for request in requests]

    def _warn_of_store(self, reason: str) -> None:
        self._broadcast.tell(PoolEvent(kind="failed", weights="answer store", message=reason))

    @property
    def store(self) -> AnswerStore | None:
        """Where finished replies are kept; None without one, or from when it could not be written."""
        return None if self._shelf is None else self._shelf.store

    async def _identify(self, group: Group) -> str | None:
        """What stored answers are found by; None without a store or without weights."""
        if self.store is None:
            return None
        try:
            return (await asyncio.to_thread(self._host.prepare, group)).identity
        except InputError:
            return None  # the engine's own reply will say what is wrong with the weights

    def _dress(self, request: Request, alias: str) -> Request:
        """Add what makes an alias more than its weights."""
        spec = self.catalog[alias]
        messages = request.messages
        if spec.persona and not (messages and messages[0]["role"] == "system"):
            turn: Message = {"role": "system", "content": spec.persona}
            messages = (turn, *messages)
        adapter = alias if isinstance(spec, VllmExpert) and spec.adapter else None
        return dataclasses.replace(request, messages=messages, adapter=adapter)

    @property
    def _loaded(self) -> Residency:
        """The loop that owns what is loaded; made in the pool's own event loop, when first needed."""
        if self._residency is None:
            self._residency = Residency(
                self._host,
                self._workshop,
                self.catalog.file,
                patience=self._patience,
                note_load=self._note_load,
                tell=self._broadcast.tell,
            )
        return self._residency

    def _note_load(self, load: LoadRecord) -> None:
        self.ledger.loads.append(load)
