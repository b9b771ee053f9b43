"""Whatever goes wrong with an engine, every request is answered once or says why not, and no other suffers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from simulation import GIB, Simulate

from expertmix.agents import AnswerStore, Catalog, Pool, PoolEvent
from expertmix.agents.engines import Chunk, Engine, Load, Reply, Request
from expertmix.agents.engines.scripted import GARBAGE, Faults, ScriptedEngine
from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.gate import Gate
from expertmix.agents.pool.store import Kept

FINE = Faults()
CARD = Device(name="cuda:0", memory_bytes=6 * GIB)


def ask(*ids: object) -> list[Request]:
    return [
        Request(id=f"{i}#0", question_id=f"{i}", messages=({"role": "user", "content": f"{i}"},))
        for i in ids
    ]


class Maker:
    """Makes an expert's engines, one life after the other; the last kind of life goes on for ever."""

    def __init__(self, alias: str, *lives: Faults, **options: Any) -> None:
        self.alias = alias
        self.made: list[ScriptedEngine] = []
        self._lives = lives or (FINE,)
        self._options = options

    def __call__(self) -> Engine:
        faults = self._lives[min(len(self.made), len(self._lives) - 1)]
        self.made.append(
            ScriptedEngine(
                self.alias,
                lambda request: f"{self.alias} {request.question_id}",
                faults=faults,
                **self._options,
            )
        )
        return self.made[-1]

    @property
    def asked(self) -> list[list[str | None]]:
        """The questions that each life was asked."""
        return [[request.question_id for request in engine.requests] for engine in self.made]

    @property
    def repeats(self) -> dict[str | None, int]:
        """Questions that were asked more than once, and how often."""
        counts = Counter(qid for asked in self.asked for qid in asked)
        return {qid: count for qid, count in counts.items() if count > 1}


def make_pool(*makers: Callable[[], Engine], parallel: int = 2, **settings: Any) -> Pool:
    """A pool of models that take memory and turns: `a`, `b`, … by the makers' order."""
    keys = ("store", "on_event", "patience")
    of_pool = {key: settings.pop(key) for key in keys if key in settings}
    aliases = "abcdefgh"[: len(makers)]
    content: dict[str, Any] = {
        "devices": [{"name": "cpu", "memory_gib": 0.08, "parallel": parallel}],
        "experts": [{"alias": a, "engine": "given", "memory_gib": 0.01} for a in aliases],
        **settings,
    }
    engines = dict(zip(aliases, makers, strict=True))
    return Pool(Catalog.from_dict(content), engines=engines, **of_pool)


async def soon(condition: Callable[[], bool], *, within: float = 5.0) -> None:
    """Wait until something is the case."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.005)


def texts(replies: Sequence[Reply]) -> list[str]:
    assert [r.failure for r in replies] == [None] * len(replies)
    return [r.text for r in replies]


def kinds(replies: Sequence[Reply]) -> list[str]:
    return [r.failure.kind if r.failure else "" for r in replies]


# Loading


async def test_weights_that_are_not_there_are_tried_once_and_cost_nobody_else() -> None:
    bad, good = Maker("a", Faults(load="no such file")), Maker("b")
    async with make_pool(bad, good) as pool:
        failed, fine = await asyncio.gather(
            pool.generate("a", ask(1, 2)), pool.generate("b", ask(1, 2))
        )
        again = await pool.generate("a", ask(3))
    assert kinds([*failed, *again]) == ["load"] * 3
    assert {r.failure.message for r in failed if r.failure} == {"no such file"}
    assert texts(fine) == ["b 1", "b 2"]
    assert len(bad.made) == 1
    assert bad.made[0].closed, "half an engine still holds memory"


@pytest.mark.parametrize("second", [FINE, Faults(load="out of memory, still")])
async def test_a_load_that_ran_out_of_memory_is_tried_exactly_once_more(second: Faults) -> None:
    events: list[PoolEvent] = []
    one = Maker("a", Faults(load="CUDA out of memory"), second)
    async with make_pool(one, on_event=events.append) as pool:
        replies = await pool.generate("a", ask(1, 2))
    assert kinds(replies) == ["load" if second.load else ""] * 2
    assert len(one.made) == 2
    assert all(engine.closed for engine in one.made)
    assert ["CUDA out of memory" in e.message for e in events if e.kind == "warning"] == [True]


async def test_an_engine_that_cannot_even_be_made_fails_its_requests_and_no_others() -> None:
    def make() -> Engine:
        raise OSError("no such device")

    good = Maker("b")
    async with make_pool(make, good) as pool, asyncio.timeout(5):
        failed = await pool.generate("a", ask(1, 2))
        assert texts(await pool.generate("b", ask(1))) == ["b 1"]
    assert kinds(failed) == ["load"] * 2
    assert failed[0].failure is not None
    assert "OSError: no such device" in failed[0].failure.message


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"\0" * 100, b"\xff" * 100])
async def test_weights_that_are_damaged_are_a_failure_and_no_crash(
    tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "torn"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(content)
    torn = {"alias": "a", "engine": "vllm", "weights": {"path": "torn"}}
    catalog = Catalog.from_dict({"experts": [torn]}, base=tmp_path)
    async with Pool(catalog) as pool, asyncio.timeout(10):
        replies = await pool.generate("a", ask(1, 2))
    assert kinds(replies) == ["load"] * 2


class Crashing(ScriptedEngine):
    """Raises what no engine should."""

    async def start(self) -> Load:
        raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("memory", [True, False])
async def test_an_engine_whose_start_raises_anything_fails_its_requests(memory: bool) -> None:
    engine = Crashing("a", {"*": "x"})
    pool = make_pool(lambda: engine) if memory else Pool.from_engines({"a": lambda: engine})
    async with pool, asyncio.timeout(5):
        replies = await pool.generate("a", ask(1, 2))
    assert kinds(replies) == ["load"] * 2
    assert replies[0].failure is not None
    assert "ZeroDivisionError: a bug" in replies[0].failure.message
    assert engine.closed


# Death


async def test_after_a_death_only_what_is_unfinished_is_asked_again() -> None:
    one = Maker("a", Faults(die_after=10), FINE)
    delivered: Counter[str] = Counter()
    async with make_pool(one) as pool:
        replies = await pool.generate(
            "a", ask(*range(150)), on_reply=lambda r: delivered.update([r.request_id])
        )
    assert texts(replies) == [f"a {i}" for i in range(150)]
    first, second = one.asked
    assert len(first) == 96, "an engine has no more than that at a time"
    assert sorted(map(str, second)) == sorted(map(str, range(10, 150)))
    assert set(delivered.values()) == {1}
    assert len(delivered) == 150
    assert pool.ledger.account("a", "reason").calls == 150


async def test_a_death_gives_every_caller_what_it_owes_him() -> None:
    one = Maker("a", Faults(die_after=3), FINE, latency=0.05)
    async with make_pool(one) as pool:
        several = await asyncio.gather(*(pool.generate("a", ask(i, f"{i}x")) for i in range(8)))
    assert [texts(replies) for replies in several] == [[f"a {i}", f"a {i}x"] for i in range(8)]
    assert len(one.made) == 2
    assert len(one.repeats) == 13
    assert one.made[0].closed


async def test_finished_answers_are_stored_though_the_engine_dies(tmp_path: Path) -> None:
    one = Maker("a", Faults(die_after=2))
    store = AnswerStore(tmp_path / "r.sqlite")
    async with make_pool(one, store=store) as pool:
        replies = await pool.generate("a", ask(1, 2, 3, 4, 5))
    assert kinds(replies) == ["", "", "", "", "engine"], "each life has given two"
    assert len(AnswerStore(tmp_path / "r.sqlite")) == 4


async def test_an_engine_that_always_dies_fails_its_requests_and_costs_no_other() -> None:
    events: list[PoolEvent] = []
    bad, good = Maker("a", Faults(die_after=0)), Maker("b")
    async with make_pool(bad, good, on_event=events.append) as pool, asyncio.timeout(10):
        failed, fine = await asyncio.gather(
            pool.generate("a", ask(*range(200))), pool.generate("b", ask(*range(200)))
        )
        refused = await pool.generate("a", ask(1))
    assert kinds([*failed, *refused]) == ["engine"] * 201
    assert len(texts(fine)) == 200
    assert len(bad.made) == 2, "after two deaths in a row there is a pause"
    assert [e.weights for e in events if e.kind == "died"] == ["a", "a"]
    assert [e.message for e in events if e.kind == "failed"] == [
        'engine "a" died after 0 replies (2 times in a row)'
    ]


async def test_an_engine_that_dies_now_and_then_goes_on() -> None:
    one = Maker("a", *[Faults(die_after=40)] * 3, FINE)
    async with make_pool(one) as pool:
        replies = await pool.generate("a", ask(*range(100)))
    assert Counter(kinds(replies)) == {"": 84, "engine": 16}, "those whom two deaths met"
    assert set(one.repeats.values()) == {2}, "nothing is asked a third time"


class Lingering(ScriptedEngine):
    """Dies of the first call; the others return what they have only some time after its end."""

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        first = not self.calls
        self._note(requests)
        if first:
            raise ConnectionResetError("gone")
        await asyncio.sleep(0.3)
        return [Reply(request_id=request.id, text="late") for request in requests[:1]]


async def test_calls_that_return_after_the_death_of_their_engine_lose_nothing() -> None:
    made: list[ScriptedEngine] = []

    def make() -> Engine:
        kind = ScriptedEngine if made else Lingering
        made.append(kind("a", {"*": "fresh"}, load_seconds=0.1))
        return made[-1]

    async with make_pool(make) as pool, asyncio.timeout(5):
        one, two = await asyncio.gather(
            pool.generate("a", ask(1, 2)), pool.generate("a", ask(3, 4))
        )
    assert sorted(texts([*one, *two])) == ["fresh", "fresh", "fresh", "late"]


class Stubborn(ScriptedEngine):
    """Cannot even be closed."""

    async def close(self) -> None:
        await super().close()
        raise OSError("no")


async def test_an_engine_that_cannot_be_closed_costs_nobody() -> None:
    made: list[ScriptedEngine] = []

    def make() -> Engine:
        faults = FINE if made else Faults(die_after=1)
        made.append(Stubborn("a", {"*": "x"}, faults=faults))
        return made[-1]

    async with make_pool(make, Maker("b"), max_resident=1) as pool, asyncio.timeout(5):
        assert texts(await pool.generate("a", ask(1, 2))) == ["x", "x"]
        assert texts(await pool.generate("b", ask(1))) == ["b 1"]
    assert [engine.closed for engine in made] == [True, True]


def test_a_model_that_keeps_dying_is_tried_again_after_a_pause(simulate: Simulate) -> None:
    sim = simulate({"a": 2}, [CARD])
    for _ in range(2):
        sim.host.plan_fault("answer", "a", "die")
    sim.submit("a", 1)
    sim.finish()
    sim.loop.step(50)
    sim.submit("a", 1)
    sim.finish()
    assert len(sim.host.engines) == 2, "refused at once, without a load"
    sim.loop.step(10)
    sim.submit("a", 1)
    sim.finish()
    failures = [kinds(task.result()) for _, task in sim.jobs]
    assert failures == [["engine"], ["engine"], [""]]


class Breaking(ScriptedEngine):
    """Dies in the middle of a stream."""

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        async for chunk in super().stream(request):
            yield chunk
            raise ConnectionResetError("gone")


async def test_a_stream_that_breaks_ends_in_a_failure_and_the_model_is_started_anew() -> None:
    made: list[ScriptedEngine] = []

    def make() -> Engine:
        made.append((ScriptedEngine if made else Breaking)("a", {"*": "one two"}))
        return made[-1]

    async with make_pool(make) as pool, asyncio.timeout(5):
        chunks = [chunk async for chunk in pool.stream("a", ask(1)[0])]
        again = [chunk async for chunk in pool.stream("a", ask(1)[0])]
    assert [chunk.text for chunk in chunks] == ["one", ""]
    assert chunks[-1].reply is not None
    assert kinds([chunks[-1].reply]) == ["engine"]
    assert "".join(chunk.text for chunk in again) == "one two"
    assert len(made) == 2


async def test_closing_ends_a_stream() -> None:
    one = Maker("a", Faults(hang_ids={"1"}))
    pool = make_pool(one).open()

    async def read() -> list[Chunk]:
        return [chunk async for chunk in pool.stream("a", ask(1)[0])]

    reading = asyncio.create_task(read())
    await soon(lambda: bool(one.made) and bool(one.made[0].requests))
    await asyncio.to_thread(pool.close)
    (last,) = await asyncio.wait_for(reading, 2)
    assert last.reply is not None
    assert kinds([last.reply]) == ["engine"]


# Swaps, sleep, replicas: on the simulated machine


@pytest.mark.parametrize(
    ("fault", "settings", "left"),
    [
        ("swap", {"families": True}, 1),
        ("wake", {"can_sleep": True}, 2),  # the other sleeps
        ("sleep", {"can_sleep": True}, 2),
    ],
)
def test_where_a_short_cut_fails_the_model_is_loaded_afresh(
    simulate: Simulate, fault: str, settings: dict[str, Any], left: int
) -> None:
    sim = simulate({"a": 4, "b": 4}, [CARD], **settings)
    for alias in "aab" if fault == "swap" else "a":
        sim.host.plan_fault(fault, alias, "broken")
    for alias in "aba":
        sim.submit(alias, 40)
        sim.finish()
    assert [load.way for load in sim.loads] == ["fresh"] * 3
    assert {kind for _, task in sim.jobs for kind in kinds(task.result())} == {""}
    assert max(sim.host.calls.values()) == 1
    assert sum(not engine.closed for engine in sim.host.engines) == left
    assert [event.message for _, event in sim.events if event.kind == "warning"]


def test_a_replica_that_does_not_load_costs_nobody_and_is_not_tried_again(
    simulate: Simulate,
) -> None:
    sim = simulate({"a": 2}, [Device(name="cuda:0", memory_bytes=6 * GIB, lanes=2)])
    sim.host.is_measured = True
    sim.host.plan_fault("load", "a", "")
    sim.host.plan_fault("load", "a", "no such device")
    sim.submit("a", 96 * 40)
    sim.finish()
    assert set(kinds(sim.jobs[0][1].result())) == {""}
    assert len(sim.host.engines) == 2
    assert sim.host.engines[1].closed


def test_a_replica_that_dies_gives_back_what_it_had(simulate: Simulate) -> None:
    sim = simulate({"a": 2}, [Device(name="cuda:0", memory_bytes=6 * GIB, lanes=2)])
    sim.host.is_measured = True
    sim.submit("a", 96 * 40)
    sim.loop.step(15)
    sim.host.plan_fault("answer", "a", "die")
    sim.finish()
    assert set(kinds(sim.jobs[0][1].result())) == {""}
    assert sum(sim.host.calls.values()) == 96 * 40
    assert sum(engine.closed for engine in sim.host.engines) == 1


# Hanging


async def test_what_hangs_is_asked_again_once_of_a_new_engine() -> None:
    one = Maker("a", Faults(hang_ids={"2"}), FINE)
    async with make_pool(one, stall_seconds=0.2) as pool:
        replies = await pool.generate("a", ask(1, 2, 3))
    assert texts(replies) == ["a 1", "a 2", "a 3"]
    assert one.asked == [["1", "2", "3"], ["2"]]
    assert one.made[0].closed


async def test_what_hangs_twice_has_timed_out_and_costs_no_other() -> None:
    bad, good = Maker("a", Faults(hang_ids={"2"})), Maker("b")
    async with make_pool(bad, good, stall_seconds=0.2) as pool, asyncio.timeout(10):
        hung, fine = await asyncio.gather(
            pool.generate("a", ask(1, 2, 3)), pool.generate("b", ask(1))
        )
    assert kinds(hung) == ["", "timeout", ""]
    assert hung[1].failure is not None
    assert "no sign of life" in hung[1].failure.message
    assert bad.asked == [["1", "2", "3"], ["2"]]
    assert texts(fine) == ["b 1"]


# Nonsense


async def test_garbage_and_silence_are_replies_like_any_other() -> None:
    one = Maker("a", Faults(garbage_ids={"1"}, empty_ids={"2"}))
    async with make_pool(one) as pool:
        replies = await pool.generate("a", ask(1, 2, 3))
    assert texts(replies) == [GARBAGE, "", "a 3"]
    assert len(one.made) == 1


class Raising(ScriptedEngine):
    """Answers one request, then raises."""

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        await super().generate(requests[:1], on_reply)
        raise ValueError("a bug")


class Forgetful(ScriptedEngine):
    """Answers all but the last request, and those twice."""

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        replies = await super().generate(requests, None)
        for reply in replies[:-1]:
            if on_reply is not None:
                on_reply(reply)
        return replies[:-1]


class Silent(ScriptedEngine):
    """Returns nothing that could be read."""

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        await super().generate(requests, None)
        return None  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("kind", "lost", "words"),
    [
        (Raising, 2, "raised ValueError: a bug"),
        (Forgetful, 1, "gave no reply"),
        (Silent, 3, "raised TypeError"),
    ],
)
@pytest.mark.parametrize("memory", [True, False])
async def test_an_engine_that_breaks_the_rules_loses_only_what_it_did_not_answer(
    kind: type[ScriptedEngine], lost: int, words: str, memory: bool
) -> None:
    made: list[ScriptedEngine] = []

    def make() -> Engine:
        sort = ScriptedEngine if made else kind
        made.append(sort("a", lambda request: f"a {request.question_id}"))
        return made[-1]

    pool = make_pool(make) if memory else Pool.from_engines({"a": make})
    async with pool, asyncio.timeout(5):
        replies = await pool.generate("a", ask(1, 2, 3))
    if memory:  # it is started anew
        assert texts(replies) == ["a 1", "a 2", "a 3"]
        assert len(made[1].requests) == lost
    else:  # an address is no engine of ours
        assert kinds(replies) == [""] * (3 - lost) + ["engine"] * lost
        assert replies[2].failure is not None
        assert words in replies[2].failure.message


# Cancelling


async def cancel(task: asyncio.Task[list[Reply]]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("when", ["loading", "running"])
async def test_cancelling_takes_a_caller_out_and_leaves_the_others(when: str) -> None:
    slow = {"load_seconds": 0.3} if when == "loading" else {"latency": 0.3}
    one = Maker("a", **slow)
    async with make_pool(one) as pool:
        gone = asyncio.create_task(pool.generate("a", ask(1)))
        stays = asyncio.create_task(pool.generate("a", ask(2)))
        await soon(lambda: bool(one.made) and (when == "loading" or bool(one.made[0].requests)))
        await cancel(gone)
        assert texts(await stays) == ["a 2"]
        assert texts(await pool.generate("a", ask(3))) == ["a 3"]
    assert len(one.made) == 1
    assert ("1" in one.asked[0]) == (when == "running")


async def test_cancelling_in_the_queue_costs_no_load() -> None:
    one, two = Maker("a", latency=0.3), Maker("b")
    async with make_pool(one, two, max_resident=1) as pool:
        first = asyncio.create_task(pool.generate("a", ask(1)))
        await soon(lambda: bool(one.made) and bool(one.made[0].requests))
        queued = asyncio.create_task(pool.generate("b", ask(1)))
        await asyncio.sleep(0.1)
        await cancel(queued)
        assert texts(await first) == ["a 1"]
        await asyncio.sleep(0.05)
    assert not two.made


# Closing


@pytest.mark.parametrize("when", ["loading", "running", "queued", "at the gate", "plain loading"])
async def test_closing_answers_whoever_waits_and_ends_every_engine(when: str) -> None:
    one, two = Maker("a", **{"load_seconds" if "loading" in when else "latency": 60.0}), Maker("b")
    if when == "plain loading":
        pool = Pool.from_engines({"a": one, "b": two}).open()
    else:
        most = 1 if when == "at the gate" else 100
        pool = make_pool(one, two, max_resident=1, max_queued=most).open()
    tasks = [asyncio.create_task(pool.generate("a", ask(1, 2)))]
    await soon(lambda: bool(one.made) and ("loading" in when or bool(one.made[0].requests)))
    if when in ("queued", "at the gate"):
        tasks.append(asyncio.create_task(pool.generate("b", ask(1, 2))))
        await asyncio.sleep(0.1)
    begun = time.monotonic()
    await asyncio.to_thread(pool.close)
    assert time.monotonic() - begun < 2
    for replies in await asyncio.wait_for(asyncio.gather(*tasks), 2):
        assert kinds(replies) == ["engine"] * 2
    assert all(engine.closed for engine in one.made)
    assert not two.made, "nothing is loaded by a pool that closes"


async def test_a_pool_that_was_closed_at_work_can_be_opened_again() -> None:
    one = Maker("a", Faults(hang_ids={"1"}), FINE)
    pool = make_pool(one, max_queued=1)
    found: list[list[str]] = []
    for _ in range(2):
        async with pool:
            tasks = [asyncio.create_task(pool.generate("a", ask(i))) for i in (1, 2)]
            await asyncio.sleep(0.2)
        found.append(
            kinds([reply for replies in await asyncio.gather(*tasks) for reply in replies])
        )
    assert found == [["engine", "engine"], ["", ""]]
    assert len(one.made) == 2


# Back-pressure


class Counting(ScriptedEngine):
    """Knows how many requests it had at most at a time."""

    now = most = 0

    async def generate(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None
    ) -> list[Reply]:
        self.now += len(requests)
        self.most = max(self.most, self.now)
        try:
            return await super().generate(requests, on_reply)
        finally:
            self.now -= len(requests)


async def test_no_more_requests_are_inside_than_the_pool_file_allows() -> None:
    engine = Counting("a", {"*": "x"}, latency=0.02)
    ended: list[int] = []
    async with make_pool(lambda: engine, max_queued=10) as pool:

        async def call(number: int) -> None:
            await pool.generate("a", ask(*(f"{number}-{i}" for i in range(4))))
            ended.append(number)

        await asyncio.gather(*(call(number) for number in range(12)))
    assert engine.most == 8, "two calls of four at a time"
    assert all(abs(place - number) <= 2 for place, number in enumerate(ended)), "in order"


async def test_a_call_larger_than_the_limit_goes_in_alone() -> None:
    one = Maker("a", latency=0.05)
    async with make_pool(one, max_queued=10) as pool:
        small = asyncio.create_task(pool.generate("a", ask("small")))
        await soon(lambda: bool(one.made) and bool(one.made[0].requests))
        big = asyncio.create_task(pool.generate("a", ask(*range(25))))
        await asyncio.sleep(0)
        last = asyncio.create_task(pool.generate("a", ask("last")))
        replies = await asyncio.gather(small, big, last)
    assert [len(texts(r)) for r in replies] == [1, 25, 1]
    assert one.asked[0] == ["small", *map(str, range(25)), "last"]


async def test_whoever_gives_up_at_the_gate_holds_up_nobody() -> None:
    one = Maker("a", Faults(hang_ids={"hang"}))
    async with make_pool(one, max_queued=10) as pool:
        inside = asyncio.create_task(pool.generate("a", ask("hang")))
        await soon(lambda: bool(one.made) and bool(one.made[0].requests))
        large = asyncio.create_task(pool.generate("a", ask(*range(10))))
        await asyncio.sleep(0.05)
        small = asyncio.create_task(pool.generate("a", ask("small")))
        await asyncio.sleep(0.05)
        assert len(one.made[0].requests) == 1, "order is kept"
        await cancel(large)
        assert texts(await asyncio.wait_for(small, 2)) == ["a small"]
        inside.cancel()


async def test_many_who_give_up_at_once_leave_the_gate_open() -> None:
    gate = Gate(1)
    await gate.enter(1)

    async def pass_through() -> None:
        await gate.enter(1)
        gate.leave(1)

    waiting = [asyncio.create_task(pass_through()) for _ in range(5)]
    await asyncio.sleep(0)
    for task in waiting[:3]:
        task.cancel()
    gate.leave(1)  # before those who were cancelled could tell
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in done] == [asyncio.CancelledError] * 3 + [type(None)] * 2
    await asyncio.wait_for(gate.enter(1), 1)


# Draining


@pytest.mark.parametrize("memory", [True, False])
async def test_draining_finishes_what_runs_and_begins_nothing(tmp_path: Path, memory: bool) -> None:
    one, two = Maker("a", latency=0.3), Maker("b", latency=0.3)
    store = AnswerStore(tmp_path / "r.sqlite")
    if memory:
        pool = make_pool(one, two, max_resident=1, store=store)
    else:
        pool = Pool.from_engines({"a": one, "b": two}, store=store)
    async with pool:
        running = asyncio.create_task(pool.generate("a", ask(*range(96 if memory else 5))))
        await soon(lambda: bool(one.made) and bool(one.made[0].requests))
        number = len(one.made[0].requests)
        draining = asyncio.create_task(pool.drain(5))
        await asyncio.sleep(0.05)
        later = asyncio.create_task(pool.generate("b", ask(1)))
        begun = time.monotonic()
        await draining
        assert time.monotonic() - begun < 2
        assert texts(await running)
        assert not later.done()
        await cancel(later)
    assert not two.made
    assert len(one.made[0].requests) == number
    assert len(AnswerStore(tmp_path / "r.sqlite")) == number


async def test_draining_gives_up_what_takes_longer_than_it_may() -> None:
    one = Maker("a", Faults(hang_ids={"1"}))
    async with make_pool(one) as pool:
        task = asyncio.create_task(pool.generate("a", ask(1)))
        await soon(lambda: bool(one.made) and bool(one.made[0].requests))
        begun = time.monotonic()
        await pool.drain(0.2)
        assert 0.2 <= time.monotonic() - begun < 1
        assert not task.done()
    assert kinds(await task) == ["engine"]


# Without a store, with a watcher that breaks


async def test_without_a_store_everything_is_asked_anew() -> None:
    one = Maker("a")
    async with make_pool(one) as pool:
        for _ in range(2):
            assert texts(await pool.generate("a", ask(1))) == ["a 1"]
        account = pool.ledger.account("a", "reason")
    assert (account.calls, account.reused) == (2, 0)


async def test_a_watcher_that_breaks_costs_no_answer_and_hears_of_nothing_further() -> None:
    told: list[str] = []
    others: list[str] = []

    def break_on(event: PoolEvent) -> None:
        told.append(event.kind)
        if event.kind == "loading":
            raise ArithmeticError("the watcher broke")

    async with make_pool(Maker("a"), Maker("b"), on_event=break_on) as pool, asyncio.timeout(5):
        pool.watch(lambda event: others.append(event.message))
        for alias in ("a", "b"):
            assert texts(await pool.generate(alias, ask(1))) == [f"{alias} 1"]
    assert told[-1] == "loading"
    assert any("the watcher broke" in message for message in others)


async def test_a_caller_that_cannot_take_its_reply_costs_the_engine_nothing(
    tmp_path: Path,
) -> None:
    class Broken(AnswerStore):
        def keep_all(self, kept: Iterable[Kept]) -> None:
            raise ValueError("a defect of ours")

    one = Maker("a")
    store = Broken(tmp_path / "r.sqlite")
    async with make_pool(one, store=store) as pool, asyncio.timeout(5):
        with pytest.raises(ValueError, match="a defect of ours"):
            await pool.generate("a", ask(1, 2))
    assert len(one.made) == 1


async def test_a_slow_reader_of_a_stream_loses_nothing() -> None:
    async with Pool.from_engines({"a": ScriptedEngine("a", {"*": "one two three"})}) as pool:
        pieces: list[str] = []
        ends: list[bool] = []
        async for chunk in pool.stream("a", ask(1)[0]):
            await asyncio.sleep(0.05)
            pieces.append(chunk.text)
            ends.append(chunk.reply is not None)
    assert "".join(pieces) == "one two three"
    assert ends == [False, False, False, True]
