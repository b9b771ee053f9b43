"""What is in flight keeps its order and its bounds, and ends when it is told to."""

import asyncio

import pytest

from expertmix.agents.engines import Reply, Request
from expertmix.agents.engines.in_flight import InFlight, OnText


def ask(id: str) -> Request:
    return Request(id=id, messages=())


class Desk:
    """Answers when told to, and counts who is waiting at it."""

    def __init__(self) -> None:
        self.busy = 0
        self.peak = 0
        self.order: list[str] = []
        self.bell = asyncio.Semaphore(0)

    async def answer(self, request: Request, on_text: OnText | None) -> Reply:
        self.order.append(request.id)
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            if on_text is not None:
                on_text("so")
            await self.bell.acquire()
        finally:
            self.busy -= 1
        return Reply(request_id=request.id)

    async def ring(self, times: int) -> None:
        """Let that many answers go, one after another."""
        for _ in range(times):
            self.bell.release()
            for _ in range(10):
                await asyncio.sleep(0)


def open_desk(concurrency: int) -> tuple[Desk, InFlight]:
    desk = Desk()
    in_flight = InFlight("desk", desk.answer, concurrency=concurrency)
    in_flight.open()
    return desk, in_flight


async def test_all_calls_together_stay_within_the_bound() -> None:
    desk, in_flight = open_desk(2)
    batches = [[ask(f"{name}{n}") for n in range(5)] for name in "abc"]
    calls = [asyncio.create_task(in_flight.answer_all(batch, None)) for batch in batches]
    await desk.ring(15)
    for batch, call in zip(batches, calls, strict=True):
        assert [reply.request_id for reply in await call] == [request.id for request in batch]
    assert desk.peak == 2


async def test_a_single_request_does_not_wait_for_a_whole_batch() -> None:
    desk, in_flight = open_desk(2)
    batch = asyncio.create_task(in_flight.answer_all([ask(f"b{n}") for n in range(50)], None))
    await desk.ring(1)
    single = asyncio.create_task(in_flight.answer_all([ask("single")], None))
    await desk.ring(8)
    assert single.done()
    assert desk.order.index("single") < 8
    batch.cancel()
    await asyncio.wait({batch})


async def test_a_cancelled_call_frees_its_places_for_others() -> None:
    desk, in_flight = open_desk(1)
    call = asyncio.create_task(in_flight.answer_all([ask("a"), ask("b")], None))
    await desk.ring(0)
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert desk.busy == 0
    other = asyncio.create_task(in_flight.answer_all([ask("c")], None))
    await asyncio.sleep(0.01)
    await desk.ring(1)
    assert [reply.failure for reply in await other] == [None]


async def test_closing_fails_what_is_answered_and_what_still_waits() -> None:
    desk, in_flight = open_desk(1)
    call = asyncio.create_task(in_flight.answer_all([ask("a")], None))
    waiting = asyncio.create_task(in_flight.answer_all([ask("b"), ask("c")], None))
    await asyncio.sleep(0.01)
    await in_flight.close()
    for reply in [*await call, *await waiting]:
        assert reply.failure is not None
        assert reply.failure.kind == "engine"
    assert desk.order == ["a"]
    assert desk.busy == 0


async def test_closing_ends_a_stream_in_a_failure() -> None:
    desk, in_flight = open_desk(1)
    stream = in_flight.stream(ask("a"))
    assert (await anext(stream)).text == "so"
    await in_flight.close()
    last = await anext(stream)
    assert last.reply is not None
    assert last.reply.failure is not None
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert desk.busy == 0


def test_no_concurrency_is_no_concurrency() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        InFlight("desk", Desk().answer, concurrency=0)
