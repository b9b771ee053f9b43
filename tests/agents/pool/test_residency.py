"""The residency loop on a simulated machine: every request is answered once, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation import GIB, Simulate, Simulation

from expertmix.agents.pool.devices import Device

MEMORY = {"a": 2.0, "b": 3.0, "c": 2.0, "d": 5.0}
FAULTS = [
    ("load", "no such file"),
    ("load", "later: out of memory"),
    ("swap", "broken"),
    ("sleep", "broken"),
    ("wake", "broken"),
    ("answer", "die"),
    ("answer", "hang"),
    ("answer", "empty"),
    ("answer", "garbage"),
]
NUMBERS = [1, 3, 40, 200]
PAUSES = [0.0, 0.1, 0.7, 3.0, 9.0]
SCHEDULES = int(os.environ.get("EXPERTMIX_SCHEDULES", "50"))
"""Random schedules of faults; nightly runs take 1000."""


def device(name: str = "cuda:0", gib: float = 6, lanes: int = 1) -> Device:
    return Device(name=name, memory_bytes=round(gib * GIB), lanes=lanes)


class Story:
    """Any order of questions, pauses, withdrawals and faults, and what has to be true at its end."""

    def __init__(
        self,
        *,
        lanes: int,
        number: int,
        families: bool,
        measured: bool,
        can_sleep: bool,
        patience: float,
        most: int | None,
    ) -> None:
        self.sim = Simulation(
            MEMORY,
            [device(f"cuda:{i}", lanes=lanes) for i in range(number)],
            families=families,
            can_sleep=can_sleep,
            patience=patience,
            max_resident=most,
            min_residency=1.0,
            stall_seconds=20,
        )
        self.sim.host.is_measured = measured
        self.patience = patience
        self.faults = 0
        self.withdrawn: set[int] = set()

    def withdraw(self, place: int) -> None:
        if self.sim.jobs[place][1].cancel():
            self.withdrawn.add(place)
        self.sim.loop.step(0.0)

    def break_something(self, alias: str, where: str, what: str) -> None:
        self.faults += what not in ("empty", "garbage")
        self.sim.host.plan_fault(where, alias, what)

    def end(self) -> None:
        """Let everything end, and close."""
        self.sim.finish()
        self.check_replies()
        if not self.faults:
            self.check_waiting()
            assert max(self.sim.host.calls.values(), default=1) == 1, "asked again for nothing"
        self.sim.close()

    def break_off(self) -> None:
        """Close in the middle of it."""
        self.faults += 1
        self.sim.loop.run_until_complete(asyncio.wait_for(self.sim.residency.close(), 30))
        self.sim.finish(within=0.1)
        self.check_replies()
        self.sim.close()

    def check_replies(self) -> None:
        for place, (job, task) in enumerate(self.sim.jobs):
            if task.cancelled():
                assert place in self.withdrawn
                continue
            replies = task.result()
            assert [r.request_id for r in replies] == [r.id for r in job.requests]
            for reply in replies:
                assert self.sim.replies[place, reply.request_id] == 1
                if not self.faults:
                    assert reply.failure is None
                if reply.failure is None and reply.text.isprintable() and reply.text:
                    assert reply.text == f"{job.group.aliases[0]} says {reply.request_id}"

    def check_waiting(self) -> None:
        """See `turns.py`: patience, then for each group one residency, what is in flight, one load."""
        if math.isinf(self.patience):
            return
        host = self.sim.host
        one = 1.0 + host.batch_seconds + host.load_seconds + host.unload_seconds + 0.5
        for alias in MEMORY:
            for start, end in self.sim.unserved(alias):
                assert end - start <= self.patience + len(MEMORY) * one, (alias, start, end)


class Machine(RuleBasedStateMachine):
    """Hypothesis tells the story."""

    story: Story
    faulty = True

    @initialize(
        lanes=st.integers(1, 2),
        number=st.integers(1, 2),
        families=st.booleans(),
        measured=st.booleans(),
        can_sleep=st.booleans(),
        patience=st.sampled_from([math.inf, 5.0, 0.5]),
        most=st.sampled_from([None, 1, 2]),
    )
    def begin(self, **how: Any) -> None:
        self.story = Story(**how)

    @rule(alias=st.sampled_from(sorted(MEMORY)), number=st.sampled_from(NUMBERS))
    def ask(self, alias: str, number: int) -> None:
        self.story.sim.submit(alias, number)

    @rule(seconds=st.sampled_from(PAUSES))
    def wait(self, seconds: float) -> None:
        self.story.sim.loop.step(seconds)

    @precondition(lambda self: bool(self.story.sim.jobs))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.story.withdraw(data.draw(st.integers(0, len(self.story.sim.jobs) - 1)))

    @precondition(lambda self: self.faulty)
    @rule(alias=st.sampled_from(sorted(MEMORY)), fault=st.sampled_from(FAULTS))
    def break_something(self, alias: str, fault: tuple[str, str]) -> None:
        self.story.break_something(alias, *fault)

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        if hasattr(self, "story"):
            assert all(count == 1 for count in self.story.sim.replies.values())

    def teardown(self) -> None:
        if hasattr(self, "story"):
            try:
                self.story.end()
            finally:
                self.story.sim.discard()


class Faultless(Machine):
    """The same without faults: then nothing may fail, and nobody waits longer than promised."""

    faulty = False


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
QUIET = settings(max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=SLOW)
TestMachine = Machine.TestCase
TestMachine.settings = QUIET
TestFaultless = Faultless.TestCase
TestFaultless.settings = QUIET


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_a_random_schedule_of_faults_loses_nothing(seed: int) -> None:
    chance = random.Random(seed)
    story = Story(
        lanes=chance.choice([1, 2, 3]),
        number=chance.choice([1, 2]),
        families=chance.random() < 0.5,
        measured=chance.random() < 0.5,
        can_sleep=chance.random() < 0.5,
        patience=chance.choice([math.inf, 5.0, 0.5]),
        most=chance.choice([None, 1, 2]),
    )
    story.sim.host.batch_seconds = chance.choice([0.2, 1.0, 5.0])
    try:
        for _ in range(chance.randint(10, 40)):
            act = chance.random()
            if act < 0.4:
                story.sim.submit(chance.choice("abcd"), chance.choice(NUMBERS))
            elif act < 0.6:
                story.sim.loop.step(chance.choice(PAUSES))
            elif act < 0.7 and story.sim.jobs:
                story.withdraw(chance.randrange(len(story.sim.jobs)))
            else:
                story.break_something(chance.choice("abcd"), *chance.choice(FAULTS))
        (story.break_off if chance.random() < 0.3 else story.end)()
    finally:
        story.sim.discard()


# One rule of `turns.py` after the other


def load_all(sim: Simulation, number: int = 10) -> list[str]:
    for alias in MEMORY:
        sim.submit(alias, number)
    sim.finish()
    return loaded(sim)


def loaded(sim: Simulation) -> list[str]:
    return [load.weights for load in sim.loads]


def ways(sim: Simulation) -> list[tuple[str, str]]:
    return [(load.weights, load.way) for load in sim.loads]


def moments(sim: Simulation, kind: str, weights: str) -> list[float]:
    """When events of a kind were told of a model."""
    return [at for at, event in sim.events if (event.kind, event.weights) == (kind, weights)]


def ended(sim: Simulation, place: int) -> float:
    return sim.ends[sim.jobs[place][0].number]


def expect(sim: Simulation, calls: Mapping[str, int], devices: Mapping[str, str]) -> None:
    """Announce a plan, in the order of its calls."""
    keys = {alias: sim.host.groups[alias].key for alias in calls}

    async def tell() -> None:
        sim.residency.expect(
            {keys[alias]: number for alias, number in calls.items()},
            {keys[alias]: rank for rank, alias in enumerate(calls)},
            {keys[alias]: name for alias, name in devices.items()},
        )

    sim.loop.run_until_complete(tell())
    sim.loop.step(0.0)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("families", [False, True])
def test_in_batch_mode_each_model_is_loaded_once(
    simulate: Simulate, lanes: int, families: bool
) -> None:
    sim = simulate(MEMORY, [device(lanes=lanes)], families=families)
    assert sorted(load_all(sim, 500)) == sorted(MEMORY)


def test_in_batch_mode_a_model_stays_as_long_as_it_has_requests(simulate: Simulate) -> None:
    sim = simulate({"a": 2, "b": 3}, [device(gib=4)])
    first = sim.submit("a", 500)
    sim.loop.step(4.5)
    second = sim.submit("b", 1)
    third = sim.submit("a", 500)  # came later, and goes first all the same
    sim.finish()
    assert loaded(sim) == ["a", "b"]
    assert ended(sim, first) <= ended(sim, third) <= moments(sim, "loading", "b")[0]
    assert ended(sim, second) == pytest.approx(ended(sim, third) + 0.1 + 4 + 1)


def test_a_model_that_has_made_others_wait_too_long_gives_way_and_comes_back(
    simulate: Simulate,
) -> None:
    sim = simulate({"a": 2, "b": 3}, [device(gib=4)], patience=5)
    first = sim.submit("a", 2000)
    sim.loop.step(4.5)
    second = sim.submit("b", 1)
    sim.finish()
    assert loaded(sim) == ["a", "b", "a"]
    waited = (
        5 + 1 + 0.1 + 4 + 1
    )  # its patience, what is in flight, the unloading, its load, its answer
    assert ended(sim, second) == pytest.approx(4.5 + waited, abs=1)
    assert ended(sim, first) > ended(sim, second)


def test_models_that_cannot_all_be_pleased_take_turns_and_do_not_thrash(simulate: Simulate) -> None:
    sim = simulate({"a": 2, "b": 3}, [device(gib=4)], patience=5)
    for _ in range(100):
        for alias in "ab":
            sim.submit(alias, 96)
        sim.loop.step(1)
    sim.finish()
    turns = [load for load, _ in itertools.groupby(loaded(sim))]
    assert turns == loaded(sim), "nothing is loaded that was loaded already"
    assert len(turns) <= 2 + sim.loop.time() / (2 + 4), "each has its turn, and a load between two"
    assert len(turns) < 200 / 1.9, "nobody sits idle in his turn: two batches fit into it"


def test_small_jobs_pass_large_ones_of_the_same_model(simulate: Simulate) -> None:
    sim = simulate({"a": 2}, [device()])
    large = sim.submit("a", 1000)
    sim.loop.step(4.5)
    small = sim.submit("a", 3)
    sim.finish()
    assert ended(sim, small) < 4.5 + 2 * 1.0 + 0.1 < ended(sim, large)


def test_models_are_loaded_in_the_order_of_their_arrival_or_of_a_plan(simulate: Simulate) -> None:
    for plan, order in ((None, ["a", "b", "c", "d"]), ("dcba", ["d", "c", "b", "a"])):
        sim = simulate(dict.fromkeys("abcd", 4.0), [device()])
        if plan is not None:
            expect(sim, dict.fromkeys(plan, 10), {})
        assert load_all(sim) == order


def test_models_go_to_the_devices_of_a_plan_or_to_the_emptiest(simulate: Simulate) -> None:
    both = [device("cuda:0", lanes=2), device("cuda:1", lanes=2)]
    for places in ({}, {"a": "cuda:1", "b": "cuda:0"}, {"a": "cuda:1", "b": "cuda:1"}):
        sim = simulate({"a": 2, "b": 2}, both)
        expect(sim, {"a": 10, "b": 10}, places)
        for alias in "ab":
            sim.submit(alias, 10)
        sim.finish()
        found = {load.weights: load.device for load in sim.loads}
        assert found == (places or {"a": "cuda:0", "b": "cuda:1"})


def test_weights_are_replaced_in_place_only_by_those_of_the_same_shape(simulate: Simulate) -> None:
    for families, way in ((True, "reload"), (False, "fresh")):
        sim = simulate({"a": 4, "b": 4}, [device()], families=families)
        for alias in "ab":
            sim.submit(alias, 1)
        sim.finish()
        assert ways(sim) == [("a", "fresh"), ("b", way)]


def test_weights_are_replaced_in_place_only_where_the_result_can_be_checked(
    simulate: Simulate,
) -> None:
    sim = simulate({"a": 4, "b": 4}, [device()], families=True)
    sim.host.is_measured = True
    for alias in "abab":
        sim.submit(alias, 1)
        sim.finish()
    assert [way for _, way in ways(sim)] == ["fresh", "fresh", "reload", "reload"]


@pytest.mark.parametrize(
    ("memory", "calls", "way"),
    [
        (2.0, None, "fresh"),  # there is room, and nobody knows whether `a` is asked again
        (2.0, {"a": 20, "b": 1}, "fresh"),  # it will be
        (2.0, {"a": 10, "b": 1}, "reload"),  # it will not
        (4.0, {"a": 20, "b": 1}, "reload"),  # there is no room
    ],
)
def test_weights_are_replaced_in_place_where_they_are_done_with_or_memory_is_short(
    simulate: Simulate, memory: float, calls: dict[str, int] | None, way: str
) -> None:
    sim = simulate({"a": memory, "b": memory}, [device()], families=True)
    if calls is not None:
        expect(sim, calls, {})
    for alias, number in (("a", 10), ("b", 1)):
        sim.submit(alias, number)
        sim.finish()
    assert ways(sim) == [("a", "fresh"), ("b", way)]


def test_the_switch_of_the_pool_file_turns_swaps_in_place_off(simulate: Simulate) -> None:
    sim = simulate({"a": 4, "b": 4}, [device()], families=True, swap_in_place=False)
    for alias in "ab":
        sim.submit(alias, 1)
    sim.finish()
    assert ways(sim) == [("a", "fresh"), ("b", "fresh")]


def test_the_least_recently_used_of_the_idle_models_goes_and_only_as_many_as_must(
    simulate: Simulate,
) -> None:
    sim = simulate({"a": 2, "b": 2, "c": 2, "d": 4}, [device()])
    for alias in "abca":
        sim.submit(alias, 1)
        sim.finish()
    sim.submit("d", 1)
    sim.finish()
    gone = [event.weights for _, event in sim.events if event.kind == "unloaded"]
    assert gone == ["b", "c"]


def test_what_sleeps_is_woken_and_not_loaded_again(simulate: Simulate) -> None:
    for can_sleep, way in ((True, "wake"), (False, "fresh")):
        sim = simulate({"a": 4, "b": 4}, [device()], can_sleep=can_sleep)
        for alias in "aba":
            sim.submit(alias, 1)
            sim.finish()
        assert ways(sim) == [("a", "fresh"), ("b", "fresh"), ("a", way)]


def test_what_sleeps_is_woken_where_it_sleeps_although_another_device_is_emptier(
    simulate: Simulate,
) -> None:
    devices = [device("cuda:0", gib=6), device("cuda:1", gib=8)]
    sim = simulate({"a": 4, "b": 7, "c": 4}, devices, can_sleep=True)
    for alias in "bac":
        sim.submit(alias, 1)
        sim.finish()
    for alias in "bc":  # both devices are empty then
        for _ in range(2):
            sim.host.plan_fault("answer", alias, "die")
        sim.submit(alias, 1)
        sim.finish()
    sim.loop.step(1)
    sim.submit("a", 1)
    sim.finish()
    last = sim.loads[-1]
    assert (last.weights, last.way, last.device) == ("a", "wake", "cuda:0")


@pytest.mark.parametrize("lanes", [1, 2])
def test_as_many_models_work_at_once_as_there_are_lanes(simulate: Simulate, lanes: int) -> None:
    sim = simulate({"a": 2, "b": 2}, [device(lanes=lanes)])
    places = [sim.submit(alias, 96) for alias in "ab"]
    sim.finish()
    one_after_the_other = 2 * (4 + 1)
    assert max(ended(sim, p) for p in places) == pytest.approx(one_after_the_other / lanes)


@pytest.mark.parametrize(("number", "replicas"), [(96 * 5, 0), (96 * 40, 1)])
def test_a_second_engine_is_started_only_where_it_pays(
    simulate: Simulate, number: int, replicas: int
) -> None:
    sim = simulate({"a": 2}, [device(lanes=2)])
    sim.host.is_measured = True
    place = sim.submit("a", number)
    sim.finish()
    assert [load.replica for load in sim.loads] == [False] + [True] * replicas
    if replicas:
        alone = 4 + number / 96
        assert ended(sim, place) < alone - 10, "about half of what was left after its load"


def test_a_second_engine_waits_until_nobody_waits(simulate: Simulate) -> None:
    sim = simulate({"a": 2, "b": 3}, [device(gib=8, lanes=2)])
    sim.host.is_measured = True
    sim.submit("a", 96 * 40)
    sim.loop.step(4.5)
    place = sim.submit("b", 96)
    sim.finish()
    found = [(load.weights, load.replica) for load in sim.loads]
    assert found == [("a", False), ("b", False), ("a", True)]
    assert moments(sim, "loading", "a")[1] >= ended(sim, place)


def test_a_second_engine_drives_nobody_out(simulate: Simulate) -> None:
    sim = simulate({"a": 2, "b": 3}, [device(gib=6, lanes=2)])
    sim.host.is_measured = True
    for alias in "ba":
        sim.submit(alias, 96 * 40 if alias == "a" else 1)
        sim.finish()
    assert [(load.weights, load.replica) for load in sim.loads] == [("b", False), ("a", False)]


def test_a_second_engine_works_on_another_device(simulate: Simulate) -> None:
    sim = simulate({"a": 4}, [device("cuda:0"), device("cuda:1")])
    sim.host.is_measured = True
    place = sim.submit("a", 96 * 40)
    sim.finish()
    assert {load.device for load in sim.loads} == {"cuda:0", "cuda:1"}
    assert ended(sim, place) == pytest.approx(4 + 5 + (96 * 40 - 5 * 96) / (2 * 96), abs=3)


def test_the_order_of_arrival_changes_no_text(simulate: Simulate) -> None:
    asked = [(alias, number) for alias in MEMORY for number in (1, 40, 200)]
    found: list[dict[tuple[str, int], list[str]]] = []
    for seed in range(6):
        order = random.Random(seed).sample(asked, len(asked))
        sim = simulate(MEMORY, [device(lanes=2)], families=True, patience=[math.inf, 2][seed % 2])
        places = {what: sim.submit(*what) for what in order}
        sim.finish()
        found.append({what: texts(sim, place) for what, place in places.items()})
    assert all(texts == found[0] for texts in found)


def texts(sim: Simulation, place: int) -> list[str]:
    """The texts of a job's replies, without its own number."""
    replies = sim.jobs[place][1].result()
    return [reply.text.replace(f"{place}-", "") for reply in replies]


def test_memory_that_others_take_is_told_and_not_waited_for(simulate: Simulate) -> None:
    sim = simulate({"a": 1, "b": 4}, [device(gib=8)])
    sim.submit("a", 1)
    sim.finish()  # an idle model of ours is there, and would not be enough
    sim.host.in_reach = 2 * GIB
    place = sim.submit("b", 3)
    sim.finish(within=60)
    replies = sim.jobs[place][1].result()
    assert {r.failure.kind for r in replies if r.failure} == {"load"}
    assert all("needs about 4.0 GiB" in r.failure.message for r in replies if r.failure)
    sim.host.in_reach = 1 << 60
    again = sim.submit("b", 1)
    sim.finish(within=60)
    assert sim.jobs[again][1].result()[0].failure is None


def test_a_swap_that_went_wrong_is_not_tried_again(simulate: Simulate) -> None:
    sim = simulate({"a": 4, "b": 4}, [device()], families=True)
    sim.host.plan_fault("swap", "b", "broken")
    for alias in "ababa":
        sim.submit(alias, 1)
        sim.finish()
    assert [way for _, way in ways(sim)].count("reload") == 0
    assert not any(reply.failure for _, task in sim.jobs for reply in task.result())


def test_who_arrives_first_does_not_take_the_place_of_who_is_planned_first(
    simulate: Simulate,
) -> None:
    sim = simulate({"a": 2, "judge": 3}, [device(gib=4)])
    expect(sim, {"a": 5, "judge": 1 << 40}, {})
    sim.submit("judge", 5)
    sim.submit("a", 5)
    sim.finish()
    sim.submit("judge", 2)  # it merges what the others drafted, and is still there
    sim.finish()
    assert loaded(sim) == ["a", "judge"]
