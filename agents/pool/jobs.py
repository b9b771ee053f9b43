"""Requests on their way through the pool: taken by engines in slices, answered each exactly once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..engines import Chunk, Failure, Reply, Request
from .groups import Group

__all__ = ["CLOSED", "Job"]

CLOSED = Failure(kind="engine", message="the pool was closed", retryable=True)

MOST_TRIES = 2
"""Times that a request is given to an engine: one that dies of it, or hangs, gets one more chance."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """What one caller asks of one group."""

    group: Group
    requests: list[Request]
    on_reply: Callable[[Reply], None] | None = None
    on_chunk: Callable[[Chunk], None] | None = None
    """If given, the only request is streamed."""
    on_settled: Callable[[], None] | None = None
    """Called once for each request that has its reply."""
    number: int = 0
    """In the order of arrival."""
    arrived: float = 0.0
    """Loop time; a job that gets back what an engine lost keeps it, and with it its turn."""
    pending: deque[Request] = field(default_factory=deque[Request])
    """Requests that no engine works on."""
    is_queued: bool = False
    """Whether it stands in the queue of its group."""
    replies: dict[str, Reply] = field(default_factory=dict[str, Reply])
    seconds: float = 0.0
    """Engine time that went into it: where several jobs share an engine, its time is shared out by their
    requests in flight, so that the seconds of all jobs add up to what engines worked."""
    done: asyncio.Future[list[Reply]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _tries: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        self.pending.extend(self.requests)

    @property
    def open_requests(self) -> int:
        """Requests that have no reply yet."""
        return len(self.requests) - len(self.replies)

    def take(self, most: int) -> list[Request]:
        """The next requests for an engine."""
        return [self.pending.popleft() for _ in range(min(most, len(self.pending)))]

    def give_back(self, lost: Iterable[Request], failure: Failure) -> None:
        """Ask again what an engine lost, first of all; what it has lost too often fails."""
        again: list[Request] = []
        for request in lost:
            if request.id in self.replies:
                continue
            tries = self._tries[request.id] = self._tries.get(request.id, 0) + 1
            if tries < MOST_TRIES and self.on_chunk is None:  # a stream cannot begin anew
                again.append(request)
            else:
                self.settle(Reply.failed(request, failure))
        self.pending.extendleft(reversed(again))

    def settle(self, reply: Reply) -> None:
        """Take a reply. A second one to the same request is ignored."""
        if reply.request_id in self.replies or self.done.done():
            return
        self.replies[reply.request_id] = reply
        try:
            self._tell(reply)
        except Exception as error:  # whoever asked cannot take it: no fault of the engine's
            self.fail(error)
            return
        if not self.open_requests:
            self.done.set_result([self.replies[request.id] for request in self.requests])

    def _tell(self, reply: Reply) -> None:
        if self.on_settled is not None:
            self.on_settled()
        if self.on_chunk is not None and reply.failure is not None:
            self.on_chunk(Chunk(reply=reply))
        elif self.on_reply is not None:
            self.on_reply(reply)

    def refuse(self, failure: Failure) -> None:
        """Answer everything that no engine works on by why it cannot be done."""
        while self.pending and not self.done.done():
            self.settle(Reply.failed(self.pending.popleft(), failure))

    def end(self, failure: Failure) -> None:
        """Answer everything that has no reply, worked on or not, by why it gets none."""
        self.pending.clear()
        for request in self.requests:
            self.settle(Reply.failed(request, failure))

    def fail(self, error: BaseException) -> None:
        """End it with a defect of ours, so that whoever waits does not wait for ever."""
        self.pending.clear()
        if not self.done.done():
            self.done.set_exception(error)
