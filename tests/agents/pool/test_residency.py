"""The residency loop on a simulated machine: every request is answered once, whatever happens."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulation import GIB, Simulation

from expertmix.agents.pool.devices import Device

MEMORY = {"a": 2.0, "b": 3.0, "c": 2.0, "d": 5.0}


def device(name: str = "cuda:0", gib: float = 6, lanes: int = 1) -> Device:
    return Device(name=name, memory_bytes=round(gib * GIB), lanes=lanes)


class Machine(RuleBasedStateMachine):
    """Any order of questions, pauses, withdrawals and faults."""

    sim: Simulation
    faulty = True

    @initialize(
        lanes=st.integers(1, 2),
        number=st.integers(1, 2),
        families=st.booleans(),
        can_sleep=st.booleans(),
        patience=st.sampled_from([math.inf, 5.0, 0.5]),
        most=st.sampled_from([None, 1, 2]),
    )
    def begin(
        self, lanes: int, number: int, families: bool, can_sleep: bool, patience: float, most: Any
    ) -> None:
        devices = [device(f"cuda:{i}", lanes=lanes) for i in range(number)]
        self.sim = Simulation(
            MEMORY,
            devices,
            families=families,
            can_sleep=can_sleep,
            patience=patience,
            max_resident=most,
            min_residency=1.0,
            stall_seconds=20,
        )
        self.sim.host.batch_seconds = 1.0
        self.patience = patience
        self.faults = 0
        self.withdrawn: set[int] = set()

    @rule(alias=st.sampled_from(sorted(MEMORY)), number=st.sampled_from([1, 3, 40, 200]))
    def ask(self, alias: str, number: int) -> None:
        self.sim.submit(alias, number)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.7, 3.0, 9.0]))
    def wait(self, seconds: float) -> None:
        self.sim.loop.step(seconds)

    @precondition(lambda self: bool(self.sim.jobs))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.sim.jobs) - 1))
        if self.sim.jobs[place][1].cancel():
            self.withdrawn.add(place)
        self.sim.loop.step(0.0)

    @precondition(lambda self: self.faulty)
    @rule(
        alias=st.sampled_from(sorted(MEMORY)),
        fault=st.sampled_from(
            [
                ("load", "no such file"),
                ("load", "later: out of memory"),
                ("swap", "broken"),
                ("answer", "die"),
                ("answer", "hang"),
                ("answer", "empty"),
                ("answer", "garbage"),
            ]
        ),
    )
    def break_something(self, alias: str, fault: tuple[str, str]) -> None:
        where, what = fault
        self.faults += what not in ("empty", "garbage")
        self.sim.host.plan_fault(where, alias, what)

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        if hasattr(self, "sim"):
            assert all(count == 1 for count in self.sim.replies.values())

    def teardown(self) -> None:
        if hasattr(self, "sim"):
            try:
                self.check_all()
            finally:
                self.sim.discard()

    def check_all(self) -> None:
        self.sim.finish()
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
        if not self.faults:
            self.check_waiting()
            assert max(self.sim.host.calls.values(), default=1) == 1, "asked again for nothing"
        self.sim.close()

    def check_waiting(self) -> None:
        """See `turns.py`: patience, then for each group one residency, what is in flight, one load."""
        if math.isinf(self.patience):
            return
        host = self.sim.host
        one = 1.0 + host.batch_seconds + host.load_seconds + host.unload_seconds + 0.5
        for alias in MEMORY:
            for start, end in self.sim.unserved(alias):
                assert end - start <= self.patience + len(MEMORY) * one, (alias, start, end)


class Faultless(Machine):
    """The same without faults: then nothing may fail, and nobody waits longer than promised."""

    faulty = False


QUIET = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
TestMachine.settings = QUIET
TestFaultless = Faultless.TestCase
TestFaultless.settings = QUIET


def load_all(sim: Simulation, number: int = 10) -> list[str]:
    for alias in MEMORY:
        sim.submit(alias, number)
    sim.finish()
    return [load.weights for load in sim.loads]


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("families", [False, True])
def test_in_batch_mode_each_model_is_loaded_once(lanes: int, families: bool) -> None:
    sim = Simulation(MEMORY, [device(lanes=lanes)], families=families)
    assert sorted(load_all(sim, 500)) == sorted(MEMORY)
    sim.close()
