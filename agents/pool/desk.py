"""Where a pool takes its calls: what was kept is given at once, the rest is asked, counted, kept and told."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence

from ...retrieval import InputError
from ..engines import Chunk, Reply, Request
from .broadcast import Broadcast
from .events import PoolEvent
from .groups import Group
from .host import Host
from .jobs import Job
from .ledger import Ledger
from .residency import Residency
from .shelf import Shelf
from .tracing import CallSpan

__all__ = ["Desk"]


class Desk:
    """Answers calls; its coroutines run in the pool's loop.

    Args:
        residency: Asks the engines.
        host: Knows the weights that answers are kept under.
        shelf: Where replies are kept; None asks everything anew.
        broadcast: Tells.
    """

    ledger: Ledger
    """Counts; another one may be put in its place."""

    def __init__(
        self,
        residency: Residency,
        host: Host,
        shelf: Shelf | None,
        broadcast: Broadcast,
    ) -> None:
        self._residency = residency
        self._host = host
        self._shelf = shelf
        self.ledger = Ledger()
        self._broadcast = broadcast

    async def answer(
        self,
        group: Group,
        alias: str,
        requests: Sequence[Request],
        *,
        stage: str,
        deliver: Callable[[Reply], None],
        call: CallSpan,
    ) -> list[Reply]:
        """Have requests answered, in their order; `deliver` gets each reply as soon as it is there and kept."""
        shelf = self._shelf
        identity = await self._identify(group)
        replies = {} if shelf is None else await shelf.find(identity, requests)
        call.reuse(replies)
        for reply in replies.values():
            deliver(reply)
        self.ledger.account(alias, stage).reused += len(replies)
        self._residency.fulfil(group.key, len(replies))
        rest = {request.id: request for request in requests if request.id not in replies}
        if rest:
            replies |= await self._ask(
                group, alias, rest, stage=stage, identity=identity, deliver=deliver
            )
        return [replies[request.id] for request in requests]

    async def _ask(
        self,
        group: Group,
        alias: str,
        requests: Mapping[str, Request],
        *,
        stage: str,
        identity: str | None,
        deliver: Callable[[Reply], None],
    ) -> dict[str, Reply]:
        """The engine's replies by the ids of their requests, kept under the weights' identity."""
        shelf = self._shelf
        broken: list[Exception] = []

        def receive(reply: Reply) -> None:
            self.ledger.record(alias, stage, reply)
            then = functools.partial(hand_over, reply)
            if shelf is None:
                then()
            else:  # who has heard of an answer must find it again after a crash
                shelf.keep(identity, requests[reply.request_id], reply, then)

        def hand_over(reply: Reply) -> None:
            try:
                self._broadcast.count_finished(group.name, alias, stage)
                deliver(reply)
            except Exception as error:  # whoever asked gets it, once the others have theirs
                broken.append(error)

        self._broadcast.tell(
            PoolEvent(
                kind="queued", weights=group.name, alias=alias, stage=stage, number=len(requests)
            )
        )
        job = Job(group=group, requests=list(requests.values()), on_reply=receive)
        replies = await self._run(job, alias, stage)
        if shelf is not None:
            await shelf.settle()
            shelf.check()
        if broken:
            raise broken[0]
        return {reply.request_id: reply for reply in replies}

    async def stream(
        self,
        group: Group,
        alias: str,
        request: Request,
        *,
        put: Callable[[Chunk], None],
        call: CallSpan,
    ) -> None:
        """Have one request answered piece by piece; nothing is kept, and nothing found again."""
        job = Job(group=group, requests=[request], on_chunk=put)
        with call:
            call.replies = await self._run(job, alias, "stream")
            for reply in call.replies:
                self.ledger.record(alias, "stream", reply)
                call.hear(reply)

    async def _run(self, job: Job, alias: str, stage: str) -> list[Reply]:
        try:
            return await self._residency.run(job)
        finally:
            self.ledger.account(alias, stage).seconds += job.seconds

    async def _identify(self, group: Group) -> str | None:
        """What stored answers are found by; None without a store or without weights."""
        if self._shelf is None or self._shelf.store is None:
            return None
        try:
            return (await asyncio.to_thread(self._host.prepare, group)).identity
        except InputError:
            return None  # the engine's own reply will say what is wrong with the weights
