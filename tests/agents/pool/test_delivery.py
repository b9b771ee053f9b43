"""Replies that cross from one thread into another's loop: each once, in order, whatever the listener does."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.engines import Reply
from expertmix.agents.pool.delivery import Delivery


def deliver_from_a_thread(
    delivery: Delivery, numbers: list[int], pauses: dict[int, float]
) -> threading.Thread:
    def work() -> None:
        for number in numbers:
            if number in pauses:
                threading.Event().wait(pauses[number])
            delivery.deliver(Reply(request_id=str(number)))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.dictionaries(st.integers(0, 299), st.floats(0, 0.002), max_size=8))
def test_every_reply_comes_once_and_in_order(number: int, pauses: dict[int, float]) -> None:
    async def hear() -> list[int]:
        came: list[int] = []
        is_complete = asyncio.Event()

        def take(reply: Reply) -> None:
            came.append(int(reply.request_id))
            if len(came) == number:
                is_complete.set()

        delivery = Delivery(asyncio.get_running_loop(), take)
        thread = deliver_from_a_thread(delivery, list(range(number)), pauses)
        async with asyncio.timeout(10):
            await is_complete.wait()
        thread.join()
        await asyncio.sleep(0)
        return came

    assert asyncio.run(hear()) == list(range(number))


async def test_a_listener_that_fails_hears_the_rest_and_the_loop_is_told() -> None:
    told: list[dict[str, Any]] = []
    came: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))

    def take(reply: Reply) -> None:
        if reply.request_id == "1":
            raise ValueError("not this one")
        came.append(reply.request_id)

    deliver_from_a_thread(Delivery(loop, take), [0, 1, 2], {}).join()
    await asyncio.sleep(0.05)
    assert came == ["0", "2"]
    assert [str(context["exception"]) for context in told] == ["not this one"]


def test_a_loop_that_is_closed_hears_nothing_and_nobody_fails() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    came: list[Reply] = []
    delivery = Delivery(loop, came.append)
    for number in range(3):
        delivery.deliver(Reply(request_id=str(number)))
    assert came == []
