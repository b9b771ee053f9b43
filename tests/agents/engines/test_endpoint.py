"""Whatever arrives at an endpoint, its bounds hold, everyone is served, and nobody is overlooked."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.engines import Request, Sampling
from expertmix.agents.engines.endpoint import Endpoint, Line, RateLimited
from expertmix.agents.engines.patience import Patience

T = TypeVar("T")
HAIR = 1e-6
"""Seconds by which sums of floats may be off."""


class JumpingSelector(selectors.DefaultSelector):
    """Lets time pass instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everyone waits for something that will not happen"
        self.now += max(0.0, timeout)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing is ready."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def play(scene: Coroutine[Any, Any, T]) -> T:
    """Run in virtual time."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(scene)


def now() -> float:
    """Virtual seconds since the beginning."""
    return asyncio.get_running_loop().time() - 1000.0


def ask(characters: int = 0, *, most: int = 1) -> Request:
    """A request that is expected to cost `characters / 4 + most` tokens."""
    content = "x" * characters
    return Request(
        id="r",
        messages=({"role": "user", "content": content},),
        sampling=Sampling(max_tokens=most),
    )


async def hold(
    line: Line,
    seconds: float = 0.0,
    request: Request | None = None,
    *,
    patience: float = 1e9,
    spent: int | None = None,
) -> float:
    """Wait for a turn, hold it for a time; tells when it began."""
    async with line.turn(request or ask(), Patience(patience)) as turn:
        began = now()
        await asyncio.sleep(seconds)
        turn.spent = spent
    return began


@dataclass(frozen=True)
class Arrival:
    """A request of one of three engines."""

    gap: float
    """Seconds after the arrival before it."""
    engine: int
    seconds: float
    tokens: int
    gives_up: float | None
    """Seconds after which it is cancelled."""


@dataclass(frozen=True)
class Served:
    """What became of an arrival."""

    arrival: Arrival
    came: float
    ahead: int
    """Of its own engine, when it came."""
    began: float | None = None
    ended: float = math.inf


@dataclass(frozen=True)
class Pause:
    """The server wants to be left alone."""

    at: float
    seconds: float


SHORT = st.floats(0, 20, allow_subnormal=False)
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        gap=st.one_of(st.just(0.0), SHORT),
        engine=st.integers(0, 2),
        seconds=st.one_of(st.just(0.0), SHORT),
        tokens=st.integers(1, 400),
        gives_up=st.one_of(st.none(), st.none(), st.none(), SHORT),
    ),
    min_size=1,
    max_size=50,
)
PAUSES = st.lists(st.builds(Pause, at=st.floats(0, 200), seconds=st.floats(0.1, 60)), max_size=3)
RATES = st.one_of(st.none(), st.integers(1, 60).map(float), st.floats(0.5, 60))


async def serve(
    endpoint: Endpoint, arrivals: Iterable[Arrival], pauses: Iterable[Pause] = ()
) -> list[Served]:
    """Let everyone arrive and wait until all have gone."""
    lines = [endpoint.line() for _ in range(3)]
    queued = [0, 0, 0]

    async def be_served(arrival: Arrival) -> Served:
        served = Served(arrival, now(), queued[arrival.engine])
        queued[arrival.engine] += 1
        waits = True
        try:
            async with (
                asyncio.timeout(arrival.gives_up),
                lines[arrival.engine].turn(ask(most=arrival.tokens), Patience(1e9)),
            ):
                queued[arrival.engine] -= 1
                waits = False
                served = Served(arrival, served.came, served.ahead, now())
                await asyncio.sleep(arrival.seconds)
        except TimeoutError:
            pass
        queued[arrival.engine] -= waits
        return Served(arrival, served.came, served.ahead, served.began, now())

    async def pause(pause: Pause) -> None:
        await asyncio.sleep(pause.at)
        endpoint.pause(pause.seconds, "busy")

    async with asyncio.TaskGroup() as group:
        for each in pauses:
            group.create_task(pause(each))
        tasks: list[asyncio.Task[Served]] = []
        for arrival in arrivals:
            await asyncio.sleep(arrival.gap)
            tasks.append(group.create_task(be_served(arrival)))
    return [task.result() for task in tasks]


async def free_places(endpoint: Endpoint, concurrency: int) -> int:
    """How many get in at once after a long silence; the rate allows one of them for sure."""
    await asyncio.sleep(1e6)
    line = endpoint.line()
    tasks = [asyncio.create_task(hold(line, 1e6)) for _ in range(concurrency + 1)]
    done, waiting = await asyncio.wait(tasks, timeout=9e5)
    assert not done
    await asyncio.wait(waiting)
    return sum(task.result() - min(t.result() for t in tasks) < 9e5 for task in tasks)


@settings(max_examples=150, deadline=None)
@given(ARRIVALS, st.integers(1, 4), RATES, st.one_of(st.none(), st.just(600.0)), PAUSES)
def test_bounds_hold_everyone_is_served_and_engines_take_turns(
    arrivals: list[Arrival],
    concurrency: int,
    requests: float | None,
    tokens: float | None,
    pauses: list[Pause],
) -> None:
    async def scene() -> tuple[list[Served], int]:
        endpoint = Endpoint(
            concurrency=concurrency, requests_per_minute=requests, tokens_per_minute=tokens
        )
        served = await serve(endpoint, arrivals, pauses)
        return served, await free_places(endpoint, concurrency)

    everyone, places = play(scene())
    began = sorted(each.began for each in everyone if each.began is not None)
    starts = [each for each in everyone if each.began is not None]
    assert all(each.began is not None or each.arrival.gives_up is not None for each in everyone)
    assert places == concurrency
    for start in began:
        inside = [each for each in starts if (each.began or 0) <= start < each.ended]
        assert len(inside) <= concurrency
        if requests is not None:
            minute = [other for other in began if start <= other < start + 60 - HAIR]
            assert len(minute) <= math.ceil(requests)
        assert not any(p.at + HAIR < start < p.at + p.seconds - HAIR for p in pauses)
    if tokens is not None:
        largest = max(each.arrival.tokens for each in everyone)
        for start in began:
            minute = [s for s in starts if start <= (s.began or 0) < start + 60 - HAIR]
            assert sum(s.arrival.tokens for s in minute) <= tokens + max(0, largest - tokens / 10)
    for each in starts:
        for engine in range(3):
            between = [
                s
                for s in starts
                if s.arrival.engine == engine and each.came < (s.began or 0) < (each.began or 0)
            ]
            assert len(between) <= each.ahead + (engine != each.arrival.engine)


def test_a_single_question_waits_for_one_of_another_engines_thousands() -> None:
    async def scene() -> tuple[float, list[float]]:
        endpoint = Endpoint(concurrency=1)
        many, one = endpoint.line(), endpoint.line()
        batch = [asyncio.create_task(hold(many, 1.0)) for _ in range(2000)]
        await asyncio.sleep(0.5)
        single = await hold(one, 1.0)
        return single, [await each for each in batch]

    single, batch = play(scene())
    assert single == pytest.approx(2.0)
    assert batch == sorted(batch)


def test_a_tenth_of_a_minute_may_go_at_once_and_no_minute_has_more_than_it_may() -> None:
    async def scene() -> list[float]:
        line = Endpoint(concurrency=99, requests_per_minute=60).line()
        return list(await asyncio.gather(*(hold(line) for _ in range(600))))

    began = play(scene())
    assert sum(at < HAIR for at in began) == 6
    assert sum(at < 60 - HAIR for at in began) == 60
    assert began[-1] == pytest.approx((600 - 6) / 55 * 60)


@pytest.mark.parametrize(("rate", "seconds"), [(0.5, 120), (1, 60), (10, 6), (19, 60 / 19)])
def test_low_rates_are_an_even_distance(rate: float, seconds: float) -> None:
    async def scene() -> list[float]:
        line = Endpoint(requests_per_minute=rate).line()
        return [await hold(line) for _ in range(4)]

    assert play(scene()) == pytest.approx([0, seconds, 2 * seconds, 3 * seconds])


def test_what_is_larger_than_the_bucket_goes_when_it_is_full_and_delays_the_next() -> None:
    async def scene() -> list[float]:
        line = Endpoint(tokens_per_minute=600).line()  # 60 at once, then 541 a minute
        sizes = [30, 2000, 1]
        return list(await asyncio.gather(*(hold(line, 0, ask(most=size)) for size in sizes)))

    small, large, next_one = play(scene())
    assert small == 0
    assert large == pytest.approx(30 / 541 * 60)
    assert next_one - large == pytest.approx((2000 - 59) / 541 * 60)


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    async def scene() -> tuple[float, list[float]]:
        endpoint = Endpoint(tokens_per_minute=600)
        first, other = endpoint.line(), endpoint.line()
        await hold(first, 0, ask(most=60))
        large = asyncio.create_task(hold(first, 0, ask(most=60)))
        await asyncio.sleep(0)
        small = await asyncio.gather(*(hold(other, 0, ask(most=1)) for _ in range(50)))
        return await large, small

    large, small = play(scene())
    assert large < min(small)


@pytest.mark.parametrize(("spent", "second"), [(None, 30), (0, 0), (20, 0), (90, 60)])
def test_what_a_request_really_cost_replaces_its_estimate(spent: int | None, second: float) -> None:
    async def scene() -> tuple[float, float]:
        line = Endpoint(tokens_per_minute=600).line()
        await hold(line, 0, ask(120, most=30), spent=spent)
        return now(), await hold(line, 0, ask(0, most=30) if spent is None else ask())

    ended, began = play(scene())
    tokens = {None: 60 + 30 - 60, 0: 0, 20: 0, 90: 90 + 1 - 60}[spent]
    assert ended == 0
    assert began == pytest.approx(tokens / 541 * 60)
    assert (began > 0) == (second > 0)


def test_estimates_follow_what_replies_cost() -> None:
    async def scene() -> list[float]:
        line = Endpoint(tokens_per_minute=60_000).line()  # 6000 at once
        first = await hold(line, 1.0, ask(400, most=5000), spent=150)
        later = await asyncio.gather(
            *(hold(line, 1.0, ask(400, most=5000), spent=150) for _ in range(8))
        )
        return [first, *later]

    assert play(scene()) == [0, *[1.0] * 8]


def test_a_pause_holds_for_every_engine_and_ends() -> None:
    async def scene() -> list[float]:
        endpoint = Endpoint(concurrency=2)
        lines = [endpoint.line() for _ in range(3)]
        inside = asyncio.create_task(hold(lines[0], 5.0))
        await asyncio.sleep(1)
        endpoint.pause(10, "busy")
        endpoint.pause(2, "busy")  # a shorter one does not end a longer one
        began = await asyncio.gather(*(hold(line) for line in lines))
        assert inside.done()
        return began

    assert play(scene()) == pytest.approx([11, 11, 11])


def test_who_has_no_time_for_a_pause_fails_at_once_with_what_the_server_said() -> None:
    async def scene() -> None:
        endpoint = Endpoint(concurrency=1)
        line = endpoint.line()
        inside = asyncio.create_task(hold(line, 5.0))
        await asyncio.sleep(1)
        waiting = [asyncio.create_task(hold(line, patience=each)) for each in (30.0, 90.0)]
        await asyncio.sleep(1)
        endpoint.pause(60, "http://h/v1 answered 429: slow down")
        with pytest.raises(RateLimited) as caught:
            await waiting[0]
        assert now() == 2
        assert caught.value.failure.kind == "address"
        assert caught.value.failure.retryable
        assert str(caught.value) == (
            "http://h/v1 answered 429: slow down; the address is rate limited for 60 s more, and this "
            "request may take 30 s"
        )
        with pytest.raises(RateLimited, match=r"for 60 s more, .* may take 20.5 s"):
            await hold(endpoint.line(), patience=20.5)
        with pytest.raises(RateLimited):
            await endpoint.rest(Patience(60))
        assert await waiting[1] == 62
        assert await inside == 0
        assert await hold(line, patience=1.0) == 62

    play(scene())


def test_pauses_add_up_and_queues_cost_nothing() -> None:
    async def scene() -> None:
        endpoint = Endpoint(concurrency=1, requests_per_minute=1)
        line = endpoint.line()
        await hold(line)
        patience = Patience(10.0)
        async with line.turn(ask(), patience):
            assert now() == 60
            assert (patience.left, patience.paused) == (10.0, 0.0)
        waiting = asyncio.create_task(hold(line, patience=10.0))
        for _ in range(2):
            await asyncio.sleep(10)
            endpoint.pause(4, "busy")
        assert not waiting.done()
        await asyncio.sleep(10)
        endpoint.pause(4, "busy")
        with pytest.raises(RateLimited, match=r"for 4 s more, and this request may take 2 s"):
            await waiting

    play(scene())


def test_a_pause_that_was_waited_for_is_counted() -> None:
    async def scene() -> None:
        endpoint = Endpoint()
        endpoint.pause(4, "busy")
        asyncio.get_running_loop().call_later(3, endpoint.pause, 5, "busy")  # until 8, not 4 + 5
        await asyncio.sleep(2)
        patience, resting = Patience(10.0), Patience(10.0)
        rest = asyncio.create_task(endpoint.rest(resting))
        async with endpoint.line().turn(ask(), patience):
            assert now() == pytest.approx(8)
        await rest
        for each in (patience, resting):
            assert each.left == pytest.approx(4)
            assert each.paused == pytest.approx(6)
        await endpoint.rest(resting)
        assert resting.paused == pytest.approx(6)

    play(scene())


def test_no_server_can_ask_never_to_be_asked_again() -> None:
    async def scene() -> float:
        endpoint = Endpoint()
        endpoint.pause(1e12, "busy")
        return await hold(endpoint.line())

    assert play(scene()) == pytest.approx(3600)


def test_who_is_cancelled_on_the_way_in_takes_nothing_along() -> None:
    async def scene() -> float:
        endpoint = Endpoint(concurrency=1, requests_per_minute=10, tokens_per_minute=600)
        line = endpoint.line()
        async with line.turn(ask(), Patience(9)):
            waiting = [asyncio.create_task(hold(line, 0, ask(most=60))) for _ in range(3)]
            await asyncio.sleep(1)
            waiting[1].cancel()  # in the queue
            await asyncio.sleep(6)
        waiting[0].cancel()  # let in already, but it does not know it yet
        waiting[2].cancel()
        await asyncio.wait(waiting)
        assert all(each.cancelled() for each in waiting)
        return await hold(line, 0, ask(most=60))

    assert play(scene()) == pytest.approx(7.0)


def test_a_request_behind_one_that_gave_up_takes_its_chance() -> None:
    async def scene() -> float:
        endpoint = Endpoint(tokens_per_minute=600)
        line = endpoint.line()
        await hold(line, 0, ask(most=55))
        large = asyncio.create_task(hold(line, 0, ask(most=60)))
        small = asyncio.create_task(hold(line, 0, ask(most=1)))
        await asyncio.sleep(0.1)
        large.cancel()
        return await small

    assert play(scene()) == pytest.approx(0.1)


def test_an_endpoint_can_be_used_in_another_loop() -> None:
    endpoint = Endpoint(requests_per_minute=1)
    line = endpoint.line()

    async def give_up() -> None:
        await hold(line)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await hold(line)

    play(give_up())
    assert play(hold(line)) == pytest.approx(60)


def test_patience_runs_out_while_something_is_done() -> None:
    async def scene() -> None:
        patience = Patience(3.0)
        async with patience.running():
            await asyncio.sleep(2)
        assert patience.left == pytest.approx(1)
        with pytest.raises(TimeoutError):
            async with patience.running():
                await asyncio.sleep(2)
        assert now() == pytest.approx(3)

    play(scene())


def test_settings_that_allow_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Endpoint(concurrency=0)
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0 and finite"):
            Endpoint(requests_per_minute=rate)
        with pytest.raises(ValueError, match="above 0 and finite"):
            Endpoint(tokens_per_minute=rate)
