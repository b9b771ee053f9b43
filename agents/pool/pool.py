"""The face of the pool: ask an expert by its alias, and the right model is there.

One event loop in a thread of its own owns everything that is loaded, so the pool can be used from any
loop, from several at once, and from plain code; nothing else touches the engines and nothing is locked.
Local models take turns: what is asked of the loaded weights runs as one continuous batch, then the next
weights come. A model stays loaded as long as the memory allows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, Literal, TypeVar

from ...retrieval import InputError
from ..engines import Chunk, Engine, Message, Reply, Request
from .catalog import Catalog
from .events import PoolEvent
from .ledger import Ledger, LoadRecord
from .plan import Group, LoadPlan, group_experts, make_plan
from .residency import Job, Residency
from .specs import VllmExpert
from .store import AnswerStore

__all__ = ["Pool"]

T = TypeVar("T")


class Pool:
    """Experts that can be asked. Use it as a context manager (plain or async), or call `close`.

    Args:
        catalog: The experts.
        store: Where finished replies are kept and found again; None asks everything anew.
        on_event: Called from the pool's thread with every `PoolEvent`; it must not block.
        engines: Engines by alias, for experts whose `engine` is `given`. The pool starts and closes them.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        store: AnswerStore | None = None,
        on_event: Callable[[PoolEvent], None] | None = None,
        engines: Mapping[str, Engine] | None = None,
    ) -> None:
        self.catalog = catalog
        self.store = store
        self.on_event = on_event
        self.ledger = Ledger()
        self._groups: dict[str, Group] = {
            alias: group for group in group_experts(catalog) for alias in group.aliases
        }
        self._residency = Residency(catalog, self._note_load, self._tell, engines)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def from_file(cls, path: str, **settings: Any) -> Pool:
        """A pool of the experts in a pool file. See `Catalog.load` and the constructor."""
        return cls(Catalog.load(path), **settings)

    @classmethod
    def from_engines(cls, engines: Mapping[str, Engine], **settings: Any) -> Pool:
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
        caller = asyncio.get_running_loop()

        def deliver(reply: Reply) -> None:
            if on_reply is not None:
                caller.call_soon_threadsafe(on_reply, reply)

        return await self._in_loop(self._serve(spec.alias, asked, stage, deliver))

    async def stream(self, alias: str, request: Request) -> AsyncIterator[Chunk]:
        """Ask one expert one thing and get the answer piece by piece; the last chunk has the reply."""
        group = self._groups[self.catalog[alias].alias]
        asked = self._dress(request, alias)
        caller = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk] = asyncio.Queue()

        async def pump() -> None:
            def put(chunk: Chunk) -> None:
                caller.call_soon_threadsafe(chunks.put_nowait, chunk)

            job = Job(group=group, requests=[asked], on_chunk=put)
            try:
                for reply in await self._residency.run(job):
                    self.ledger.record(alias, "stream", reply)
            finally:
                self.ledger.account(alias, "stream").seconds += job.seconds

        task = asyncio.ensure_future(self._in_loop(pump()))
        task.add_done_callback(lambda _: chunks.put_nowait(Chunk()))
        try:
            while True:
                chunk = await chunks.get()
                yield chunk
                if chunk.reply is not None or task.done():
                    break
            await task
        finally:
            task.cancel()

    def plan(
        self,
        calls: Mapping[str, int],
        *,
        last: Collection[str] = (),
        tokens_per_call: Mapping[str, float] | None = None,
        seconds_per_call: Mapping[str, float] | None = None,
    ) -> LoadPlan:
        """What these calls would load, in which order; nothing is loaded. See `make_plan`."""
        used = group_experts(self.catalog, [alias for alias, number in calls.items() if number])
        # The whole group is prepared, not only who is used: its engine has to serve everyone.
        whole = {group.key: self._groups[group.aliases[0]] for group in used}
        memory = {key: self._residency.prepare(group).memory_bytes for key, group in whole.items()}
        return make_plan(
            self.catalog,
            calls,
            memory=memory,
            last=last,
            tokens_per_call=tokens_per_call,
            seconds_per_call=seconds_per_call,
        )

    def order(self, aliases: Collection[str], *, last: Collection[str] = ()) -> list[str]:
        """Aliases as a plan would ask them: those with the same weights together, `last` at the end."""
        plan = make_plan(self.catalog, dict.fromkeys(aliases, 1), last=last)
        return [alias for planned in plan.groups for alias in planned.calls]

    def identity(self, alias: str) -> str:
        """What the expert's answers depend on besides the request: revisions, dtype, persona.

        Raises:
            InputError: its weights or files are not there.
        """
        spec = self.catalog[alias]
        prepared = self._residency.prepare(self._groups[alias])
        adapter = getattr(spec, "adapter", None)
        return f"{prepared.identity}:{adapter}:{spec.persona}:{spec.style}:{spec.sampling}"

    def check(self, aliases: Iterable[str] | None = None) -> None:
        """Find the weights and files of experts (all by default) before anything is asked.

        Blocks: packaged weights are converted and hub weights fetched if that was never done.

        Raises:
            InputError: an expert's weights, adapter, recordings or script are not there.
        """
        for alias in self.catalog if aliases is None else aliases:
            try:
                self._residency.prepare(self._groups[self.catalog[alias].alias])
            except InputError as error:
                raise InputError(f'expert "{alias}": {error}') from None

    def open(self) -> Pool:
        """Start the pool's thread. Nothing is loaded before it is needed.

        Raises:
            InputError: the answer store cannot be used.
        """
        if self._loop is None:
            if self.store is not None:
                self.store.open()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="expertmix-pool", daemon=True
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Unload everything and end the thread. Safe to call twice; the pool can be opened again."""
        if self._loop is None or self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop).result()
        finally:
            if self.store is not None:
                self.store.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def __enter__(self) -> Pool:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Pool:
        return self.open()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    async def _wind_up(self) -> None:
        """Close what is loaded, then let every caller have its answer before the loop ends."""
        await self._residency.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            _, late = await asyncio.wait(rest, timeout=5)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _serve(
        self, alias: str, requests: list[Request], stage: str, deliver: Callable[[Reply], None]
    ) -> list[Reply]:
        """In the pool's loop: what the store knows from there, the rest from the engine."""
        group = self._groups[alias]
        identity = await self._identify(group)
        replies = self._recall(identity, requests)
        for reply in replies.values():
            deliver(reply)
        self.ledger.account(alias, stage).reused += len(replies)
        rest = {request.id: request for request in requests if request.id not in replies}
        if rest:

            def tell(kind: Literal["asked", "replied"], number: int) -> None:
                self._tell(
                    PoolEvent(
                        kind=kind, weights=group.name, alias=alias, stage=stage, number=number
                    )
                )

            def receive(reply: Reply) -> None:
                self._keep(identity, rest[reply.request_id], reply)
                self.ledger.record(alias, stage, reply)
                tell("replied", 1)
                deliver(reply)

            tell("asked", len(rest))
            job = Job(group=group, requests=list(rest.values()), on_reply=receive)
            try:
                fresh = await self._residency.run(job)
            finally:
                self.ledger.account(alias, stage).seconds += job.seconds
            replies |= {reply.request_id: reply for reply in fresh}
        return [replies[request.id] for request in requests]

    def _keep(self, identity: str | None, request: Request, reply: Reply) -> None:
        if identity is None or self.store is None:
            return
        try:
            self.store.keep(identity, request, reply)
        except InputError as error:
            # A full disk must not cost the answers that are still to come: go on without the store.
            self.store.close()
            self.store = None
            self._tell(PoolEvent(kind="failed", weights="answer store", message=str(error)))

    async def _identify(self, group: Group) -> str | None:
        """What stored answers are found by; None without a store or without weights."""
        if self.store is None:
            return None
        try:
            return (await asyncio.to_thread(self._residency.prepare, group)).identity
        except InputError:
            return None  # the engine's own reply will say what is wrong with the weights

    def _recall(self, identity: str | None, requests: Iterable[Request]) -> dict[str, Reply]:
        if identity is None or self.store is None:
            return {}
        found = {request.id: self.store.find(identity, request) for request in requests}
        return {key: reply for key, reply in found.items() if reply is not None}

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

    def _tell(self, event: PoolEvent) -> None:
        if self.on_event is not None:
            self.on_event(event)

    async def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the pool's loop from whichever loop we are in; cancelling reaches it."""
        if self._loop is None:
            work.close()
            raise RuntimeError("the pool is not open: use it in a `with` block, or call open()")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
