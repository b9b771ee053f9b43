"""What all engines of one address share: its places, its rates, and the pauses it asks for."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .base import Failure, Request
from .bucket import Bucket
from .patience import Patience

__all__ = ["Endpoint", "Line", "RateLimited", "Turn"]

CHARACTERS_PER_TOKEN = 4  # of English; what it really was is known after the reply
NEWEST_SHARE = 0.1  # of the newest reply in a running mean
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 3600.0
"""Seconds. What a server can ask for is neither a stampede nor never to be asked again."""


class RateLimited(Exception):
    """The server wants a pause that is longer than a request can wait."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind="address", message=message, retryable=True)


@dataclass(slots=True, eq=False)
class Turn:
    """One request's place at an endpoint."""

    spent: int | None = None
    """Tokens that it has cost; None where nobody knows, and then the estimate stands."""


class Line:
    """The requests of one engine at an endpoint: first come, first served."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._beyond_prompt: float | None = None  # running mean of what replies cost

    @asynccontextmanager
    async def turn(self, request: Request, patience: Patience) -> AsyncGenerator[Turn]:
        """Wait for this request's turn and hold its place inside the block.

        Args:
            request: What it may cost is taken from the token rate before, and corrected after the
                block: its prompt's length, and what others cost before it or at first `max_tokens`.
            patience: Waiting for places and rates costs none of it; pauses of the server do.

        Raises:
            RateLimited: the server wants a longer pause than patience is left.
        """
        prompt = sum(len(turn["content"]) for turn in request.messages) // CHARACTERS_PER_TOKEN
        expected = prompt + self._expect(request.sampling.max_tokens)
        turn = Turn()
        await self._endpoint.enter(self, expected, patience)
        try:
            yield turn
        finally:
            if turn.spent:
                self._learn(max(0, turn.spent - prompt))
            self._endpoint.leave(0 if turn.spent is None else turn.spent - expected)

    def _expect(self, most: int) -> int:
        return most if self._beyond_prompt is None else min(most, round(self._beyond_prompt))

    def _learn(self, tokens: int) -> None:
        old = tokens if self._beyond_prompt is None else self._beyond_prompt
        self._beyond_prompt = old + NEWEST_SHARE * (tokens - old)


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request that waits for its turn."""

    tokens: int
    patience: Patience
    paused_before: float
    """Seconds that the endpoint had been paused when it came."""
    admitted: asyncio.Future[None]


class Endpoint:
    """What all engines of one address share. Belongs to one event loop at a time.

    Engines take turns, each with its oldest request, so that one engine's batch of thousands does not
    starve another's single question. Nobody overtakes whoever is next, so that a large request has
    its turn however many small ones there are.

    Args:
        concurrency: Requests at the address at one time.
        requests_per_minute: No minute has more; a tenth of them may start at once.
        tokens_per_minute: The same for tokens of prompts and replies, as far as they can be told
            before a request.
    """

    def __init__(
        self,
        *,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        self._places = concurrency
        self._requests = None if requests_per_minute is None else Bucket(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else Bucket(tokens_per_minute)
        self._waiting: dict[Line, deque[_Ticket]] = {}  # in the order of the engines' turns
        self._alarm: asyncio.TimerHandle | None = None
        self._paused_until = -math.inf
        self._paused = 0.0  # seconds of all pauses so far, the present one in full
        self._reason = ""

    def line(self) -> Line:
        """A place to queue for one more engine."""
        return Line(self)

    def pause(self, seconds: float, reason: str) -> None:
        """Let nobody in for a time, whichever engine asks. What is in goes on.

        Args:
            seconds: As `Retry-After` names them; less than 0.1 or more than 3600 is not heeded.
            reason: What the server said, for those who cannot wait that long.
        """
        now = asyncio.get_running_loop().time()
        until = now + min(max(seconds, SHORTEST_PAUSE), LONGEST_PAUSE)
        if until <= self._paused_until:
            return
        self._paused += until - max(now, self._paused_until)
        self._paused_until, self._reason = until, reason
        for ticket in (ticket for tickets in self._waiting.values() for ticket in tickets):
            if not ticket.admitted.done() and not self._can_wait(ticket):
                ticket.admitted.set_exception(self._limit(self._left(ticket)))
        self._let_in()

    async def rest(self, patience: Patience) -> None:
        """Wait until there is no pause: for what needs neither place nor rate.

        Raises:
            RateLimited: the pause is longer than patience is left.
        """
        loop = asyncio.get_running_loop()
        while (seconds := self._paused_until - loop.time()) > 0:
            if seconds >= patience.left:
                raise self._limit(patience.left)
            await asyncio.sleep(seconds)
            patience.spend(seconds)

    async def enter(self, line: Line, tokens: int, patience: Patience) -> None:
        """Wait for a place; `leave` gives it back. `Line.turn` does both.

        Raises:
            RateLimited: the server wants a longer pause than patience is left.
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(tokens, patience, self._paused_at(loop.time()), loop.create_future())
        if not self._can_wait(ticket):
            raise self._limit(patience.left)
        self._waiting.setdefault(line, deque()).append(ticket)
        self._let_in()
        try:
            await ticket.admitted
        except asyncio.CancelledError:
            self._withdraw(ticket)
            raise
        patience.spend(self._paused_at(loop.time()) - ticket.paused_before)

    def leave(self, correction: int = 0) -> None:
        """Give a place back.

        Args:
            correction: Tokens that were spent beyond those that were entered with.
        """
        if self._tokens is not None:
            self._tokens.correct(correction)
        self._places += 1
        self._let_in()

    def _withdraw(self, ticket: _Ticket) -> None:
        """Undo what was done for a request that was cancelled before it could begin."""
        if ticket.admitted.cancelled() or ticket.admitted.exception() is not None:
            self._let_in()  # the next one may need less than it did
            return
        if self._requests is not None:
            self._requests.correct(-1)
        self.leave(-ticket.tokens)

    def _let_in(self) -> None:
        """Let in whoever is next, as long as there are places and the rates allow it."""
        loop = asyncio.get_running_loop()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._places and (line := self._next_line()) is not None:
            ready = self._ready_at(self._waiting[line][0])
            if ready > loop.time():
                self._alarm = loop.call_at(ready, self._let_in)
                return
            tickets = self._waiting.pop(line)
            self._admit(tickets.popleft(), loop.time())
            if tickets:
                self._waiting[line] = tickets  # behind all other engines

    def _next_line(self) -> Line | None:
        """Whose turn it is. Who no longer waits is taken out on the way."""
        for line, tickets in list(self._waiting.items()):
            while tickets and tickets[0].admitted.done():
                tickets.popleft()
            if tickets:
                return line
            del self._waiting[line]
        return None

    def _ready_at(self, ticket: _Ticket) -> float:
        moments = [self._paused_until]
        if self._requests is not None:
            moments.append(self._requests.ready_at(1))
        if self._tokens is not None:
            moments.append(self._tokens.ready_at(ticket.tokens))
        return max(moments)

    def _admit(self, ticket: _Ticket, now: float) -> None:
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(ticket.tokens, now)
        self._places -= 1
        ticket.admitted.set_result(None)

    def _paused_at(self, now: float) -> float:
        """Seconds of all pauses up to now."""
        return self._paused - max(0.0, self._paused_until - now)

    def _left(self, ticket: _Ticket) -> float:
        """Seconds of patience that a waiting request has after the pauses since it came."""
        now = asyncio.get_running_loop().time()
        return ticket.patience.left - (self._paused_at(now) - ticket.paused_before)

    def _can_wait(self, ticket: _Ticket) -> bool:
        """Whether a request has the patience for the present pause."""
        ahead = self._paused_until - asyncio.get_running_loop().time()
        return ahead <= 0 or ahead < self._left(ticket)

    def _limit(self, left: float) -> RateLimited:
        pause = self._paused_until - asyncio.get_running_loop().time()
        return RateLimited(
            f"{self._reason}; the address is rate limited for {_tell(pause)} more, and this request "
            f"may take {_tell(max(0.0, left))}"
        )


def _tell(seconds: float) -> str:
    return f"{round(seconds, 1):g} s"
