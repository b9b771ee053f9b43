"""The pool gives every expert its model, counts what it costs, and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from expertmix.agents import AnswerStore, Catalog, Pool, PoolEvent
from expertmix.agents.engines import Reply, Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.agents.pool.store import Kept
from expertmix.retrieval import InputError


def ask(*ids: str) -> list[Request]:
    return [
        Request(id=f"{i}#0", question_id=i, messages=({"role": "user", "content": i},)) for i in ids
    ]


def engine(name: str = "e", **faults: object) -> ScriptedEngine:
    return ScriptedEngine(name, lambda r: f"{name} {r.question_id}", faults=Faults(**faults))  # pyright: ignore[reportArgumentType]


async def test_replies_come_in_the_order_of_the_requests() -> None:
    async with Pool.from_engines({"a": engine("a")}) as pool:
        replies = await pool.generate("a", ask("3", "1", "2"))
    assert [reply.text for reply in replies] == ["a 3", "a 1", "a 2"]


async def test_an_engine_is_started_once_however_many_ask_at_once() -> None:
    one = ScriptedEngine("a", {"*": "x"}, load_seconds=0.05)
    async with Pool.from_engines({"a": one}) as pool:
        await asyncio.gather(*(pool.generate("a", ask(str(i))) for i in range(5)))
    assert one.loads == 1
    assert one.closed


async def test_an_unknown_expert_is_refused_with_those_that_exist() -> None:
    async with Pool.from_engines({"a": engine(), "b": engine()}) as pool:
        with pytest.raises(InputError, match='no expert named "c"; the pool has a, b'):
            await pool.generate("c", ask("1"))


async def test_an_expert_that_does_not_load_fails_its_requests_and_no_others() -> None:
    events: list[PoolEvent] = []
    engines = {"bad": engine("bad", load="no such file"), "good": engine("good")}
    async with Pool.from_engines(engines, on_event=events.append) as pool:
        bad, good = await asyncio.gather(
            pool.generate("bad", ask("1", "2")), pool.generate("good", ask("1"))
        )
    assert [r.failure.message for r in bad if r.failure] == ["no such file"] * 2
    assert good[0].text == "good 1"
    assert pool.ledger.account("bad", "reason").failures == 2
    assert [e.message for e in events if e.kind == "failed"] == ["no such file"]


async def test_an_engine_that_dies_keeps_what_was_finished() -> None:
    async with Pool.from_engines({"a": engine("a", die_after=2)}) as pool:
        replies = await pool.generate("a", ask("1", "2", "3", "4"))
    assert [reply.failure is None for reply in replies] == [True, True, False, False]


async def test_what_the_store_knows_is_not_asked_again(tmp_path: Path) -> None:
    first, second = engine("a", die_after=2), engine("a")
    store = AnswerStore(tmp_path / "r.sqlite")
    async with Pool.from_engines({"a": first}, store=store) as pool:
        await pool.generate("a", ask("1", "2", "3"))
    async with Pool.from_engines({"a": second}, store=store) as pool:
        replies = await pool.generate("a", ask("3", "2", "1"))
        assert pool.ledger.account("a", "reason").reused == 2
        assert pool.ledger.account("a", "reason").calls == 1
    assert [r.question_id for r in second.requests] == ["3"]
    assert [r.text for r in replies] == ["a 3", "a 2", "a 1"]


async def test_replies_are_reported_in_the_callers_loop_as_they_come() -> None:
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    def note(reply: Reply) -> None:
        assert asyncio.get_running_loop() is loop
        seen.append(reply.request_id)

    async with Pool.from_engines({"a": engine()}) as pool:
        await pool.generate("a", ask("1", "2"), on_reply=note)
    assert sorted(seen) == ["1#0", "2#0"]


async def test_cancelling_reaches_the_engine_and_the_pool_goes_on() -> None:
    async with Pool.from_engines({"a": engine("a", hang_ids={"1"})}) as pool:
        task = asyncio.create_task(pool.generate("a", ask("1")))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await pool.generate("a", ask("2")))[0].text == "a 2"


async def test_closing_ends_what_hangs() -> None:
    pool = Pool.from_engines({"a": engine("a", hang_ids={"1"})}).open()
    task = asyncio.create_task(pool.generate("a", ask("1")))
    await asyncio.sleep(0.1)
    await asyncio.wait_for(asyncio.to_thread(pool.close), 5)
    (reply,) = await asyncio.wait_for(task, 5)
    assert reply.failure is not None


async def test_a_stream_ends_with_the_whole_reply() -> None:
    async with Pool.from_engines({"a": engine("a")}) as pool:
        chunks = [chunk async for chunk in pool.stream("a", ask("1")[0])]
    assert "".join(chunk.text for chunk in chunks) == "a 1"
    assert chunks[-1].reply is not None
    assert pool.ledger.account("a", "stream").calls == 1


async def test_a_stream_of_an_expert_that_does_not_load_ends_in_its_failure() -> None:
    async with Pool.from_engines({"a": engine("a", load="no memory")}) as pool:
        chunks = [chunk async for chunk in pool.stream("a", ask("1")[0])]
    assert chunks[-1].reply is not None
    assert chunks[-1].reply.failure is not None
    assert chunks[-1].reply.failure.message == "no memory"


def test_a_pool_serves_one_event_loop_after_another() -> None:
    with Pool.from_engines({"a": engine("a")}) as pool:
        texts = [asyncio.run(pool.generate("a", ask(i)))[0].text for i in ("1", "2")]
    assert texts == ["a 1", "a 2"]


def test_a_pool_can_be_closed_and_opened_again() -> None:
    for faults in ({}, {"load": "no such file"}):
        pool = Pool.from_engines({"a": engine("a", **faults)})
        for _ in range(2):
            with pool:
                reply = asyncio.run(pool.generate("a", ask("1")))[0]
                assert reply.request_id == "1#0"


async def test_closing_while_an_engine_starts_ends_the_wait() -> None:
    slow = ScriptedEngine("a", {"*": "x"}, load_seconds=60)
    pool = Pool.from_engines({"a": slow}).open()
    task = asyncio.create_task(pool.generate("a", ask("1")))
    await asyncio.sleep(0.2)
    await asyncio.wait_for(asyncio.to_thread(pool.close), 10)
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done
    assert slow.closed


async def test_one_failing_request_of_a_remote_engine_costs_no_other() -> None:
    one = engine("a", fail_ids={"2"})
    async with Pool.from_engines({"a": one}) as pool:
        first = await pool.generate("a", ask("1", "2"))
        again = await pool.generate("a", ask("3"))
    assert [r.failure is None for r in (*first, *again)] == [True, False, True]


async def test_requests_of_one_call_need_ids_that_differ() -> None:
    async with Pool.from_engines({"a": engine()}) as pool:
        with pytest.raises(ValueError, match="same id"):
            await pool.generate("a", ask("1", "1"))


async def test_a_full_disk_costs_no_answers(tmp_path: Path) -> None:
    class Full(AnswerStore):
        def keep_all(self, kept: Iterable[Kept]) -> None:
            raise InputError("disk full")

    events: list[PoolEvent] = []
    store = Full(tmp_path / "r.sqlite")
    async with Pool.from_engines({"a": engine("a")}, store=store, on_event=events.append) as pool:
        replies = await pool.generate("a", ask("1", "2"))
    assert [r.text for r in replies] == ["a 1", "a 2"]
    assert [e.message for e in events if e.kind == "failed"] == ["disk full"]


async def test_a_pool_that_was_never_asked_can_be_opened_again() -> None:
    pool = Pool.from_engines({"a": engine("a")})
    for _ in range(2):
        async with pool:
            await pool.drain(1)
    async with pool:
        assert [r.text for r in await pool.generate("a", ask("1"))] == ["a 1"]


async def test_a_closed_pool_says_so() -> None:
    pool = Pool.from_engines({"a": engine()})
    with pytest.raises(RuntimeError, match="not open"):
        await pool.generate("a", ask("1"))


async def test_a_persona_is_a_system_turn_and_never_a_second_one() -> None:
    catalog = Catalog.from_dict(
        {"experts": [{"alias": "a", "engine": "given", "persona": "You are brief."}]}
    )
    one = engine("a")
    async with Pool(catalog, engines={"a": one}) as pool:
        own = Request(
            id="2#0",
            messages=({"role": "system", "content": "Mine."}, {"role": "user", "content": "x"}),
        )
        await pool.generate("a", [*ask("1"), own])
    assert [r.messages[0] for r in one.requests] == [
        {"role": "system", "content": "You are brief."},
        {"role": "system", "content": "Mine."},
    ]


async def test_a_given_engine_that_was_not_given_is_a_failure_with_the_remedy() -> None:
    catalog = Catalog.from_dict({"experts": [{"alias": "a", "engine": "given"}]})
    async with Pool(catalog) as pool:
        replies = await pool.generate("a", ask("1"))
    assert replies[0].failure is not None
    assert "engines=" in replies[0].failure.message


async def test_not_enough_memory_is_one_sentence(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    save_file({}, folder / "model.safetensors")
    expert = {"alias": "a", "engine": "vllm", "weights": {"path": "big"}, "memory_gib": 4000}
    async with Pool(Catalog.from_dict({"experts": [expert]}, base=tmp_path)) as pool:
        replies = await pool.generate("a", ask("1"))
    assert replies[0].failure is not None
    assert replies[0].failure.kind == "load"
    assert "needs about 4000.0 GiB" in replies[0].failure.message
