"""Metrics count what the pool did, in Prometheus's words, on this machine only unless told otherwise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("prometheus_client", reason='pip install "expertmix[serve]"')
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from expertmix.agents import PoolEvent
from expertmix.agents.pool.events import EventKind
from expertmix.agents.pool.metrics import PoolMetrics
from expertmix.retrieval import InputError


def read(text: str) -> dict[str, float]:
    """`name{label=value}` to value, without the times at which counters were made."""
    families = list(text_string_to_metric_families(text))
    return {
        f"{s.name}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value
        for family in families
        for s in family.samples
        if not s.name.endswith("_created")
    }


def count(*events: tuple[Any, ...]) -> dict[str, float]:
    """What is counted after events given as (at, kind, {more})."""
    metrics = PoolMetrics()
    for at, kind, *more in events:
        given: dict[str, Any] = {"weights": "w", "device": "cpu", "engine": 1}
        metrics.show(PoolEvent(kind=kind, at=at, **(given | (more[0] if more else {}))))
    return read(metrics.render())


def test_requests_are_counted_by_expert_and_stage() -> None:
    asked = {"alias": "ada", "stage": "reason", "device": ""}
    seen = count(
        (0, "queued", {**asked, "number": 5}),
        (1, "finished", {**asked, "number": 2}),
        (1, "queued", {**asked, "stage": "aggregate", "number": 1}),
    )
    assert seen["expertmix_requests_queued_total{expert=ada,stage=reason}"] == 5
    assert seen["expertmix_requests_finished_total{expert=ada,stage=reason}"] == 2
    assert seen["expertmix_requests_waiting{expert=ada,stage=reason}"] == 3
    assert seen["expertmix_requests_waiting{expert=ada,stage=aggregate}"] == 1


def test_loads_are_counted_by_how_they_came_about_and_swaps_by_device() -> None:
    reload = {"way": "reload", "previous": "other", "seconds": 0.3}
    seen = count(
        (0, "loading"),
        (4, "ready", {"seconds": 4.0}),
        (5, "loading", reload),
        (5.3, "ready", reload),
    )
    assert seen["expertmix_loads_total{device=cpu,way=fresh,weights=w}"] == 1
    assert seen["expertmix_loads_total{device=cpu,way=reload,weights=w}"] == 1
    assert seen["expertmix_swaps_total{device=cpu}"] == 1
    assert seen["expertmix_load_seconds_sum{way=fresh}"] == 4.0
    assert seen["expertmix_load_seconds_bucket{le=0.25,way=reload}"] == 0
    assert seen["expertmix_load_seconds_bucket{le=0.5,way=reload}"] == 1


def test_working_time_counts_once_however_many_work_and_before_they_end() -> None:
    seen = count(
        (1, "working"),
        (2, "working", {"engine": 2}),
        (4, "resting"),
        (6, "tokens", {"engine": 2, "number": 70}),
    )
    assert seen["expertmix_working_seconds_total{device=cpu}"] == 5.0
    assert seen["expertmix_generated_tokens_total{device=cpu,weights=w}"] == 70


def test_time_goes_on_in_a_pool_that_was_opened_again() -> None:
    run = ((50, "working"), (60, "resting"), (60, "unloaded"))
    seen = count(*run, *((at - 49, kind) for at, kind in run))
    assert seen["expertmix_working_seconds_total{device=cpu}"] == 20.0


@pytest.mark.parametrize("end", ["asleep", "unloaded", "died", "loading"])
def test_an_engine_is_resident_until_it_gives_its_memory_back(end: str) -> None:
    key = "expertmix_engines_resident{device=cpu}"
    assert count((0, "ready"), (1, "ready", {"engine": 2}))[key] == 2
    assert count((0, "ready"), (1, "ready", {"engine": 2}), (2, end))[key] == 1


def test_failures_are_counted_and_their_messages_are_no_labels() -> None:
    said = "a model said: </script>"
    metrics = PoolMetrics()
    for kind in ("failed", "died", "warning"):
        metrics.show(PoolEvent(kind=kind, weights="w", device="cpu", message=said))
    seen = read(metrics.render())
    assert seen["expertmix_failures_total{kind=failed,weights=w}"] == 1
    assert seen["expertmix_failures_total{kind=died,weights=w}"] == 1
    assert seen["expertmix_warnings_total{}"] == 1
    assert "script" not in metrics.render()


def test_what_runs_elsewhere_is_called_remote() -> None:
    far = {"device": "", "engine": 0}
    seen = count((0, "ready", far), (0, "ready", {**far, "weights": "v"}))
    assert seen["expertmix_engines_resident{device=remote}"] == 2


def test_two_pools_do_not_add_up_and_a_given_registry_is_used() -> None:
    registry = CollectorRegistry()
    Counter("mine", "Of the program.", registry=registry).inc()
    one, other = PoolMetrics(registry), PoolMetrics()
    one.show(PoolEvent(kind="warning", weights=""))
    assert read(other.render())["expertmix_warnings_total{}"] == 0
    assert read(one.render())["expertmix_warnings_total{}"] == 1
    assert "mine_total{}" in read(one.render())


def test_prometheus_can_scrape_until_the_server_is_closed() -> None:
    metrics = PoolMetrics()
    metrics.show(PoolEvent(kind="warning", weights="w"))
    with metrics.serve(0) as server:
        assert server.url.startswith("http://127.0.0.1:")
        with urlopen(server.url, timeout=5) as page:
            seen = read(page.read().decode())
        assert seen["expertmix_warnings_total{}"] == 1
    server.close()  # twice is fine
    with pytest.raises(URLError):
        urlopen(server.url, timeout=5)


def test_an_address_in_use_or_out_of_range_is_refused_in_one_sentence() -> None:
    metrics = PoolMetrics()
    with metrics.serve(0) as server, pytest.raises(InputError, match="cannot be served on 127"):
        metrics.serve(server.server.server_port)
    with pytest.raises(InputError, match="cannot be served on"):
        metrics.serve(70_000)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    metrics = PoolMetrics()
    metrics.write(tmp_path / "pool.prom")
    assert (tmp_path / "pool.prom").read_text(encoding="utf-8") == metrics.render()
    assert [path.name for path in tmp_path.iterdir()] == ["pool.prom"]
    with pytest.raises(InputError, match=r"cannot be written to .*No such file"):
        metrics.write(tmp_path / "nowhere" / "pool.prom")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r'pip install "expertmix\[serve\]"'):
        PoolMetrics()


@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(
        st.builds(
            PoolEvent,
            kind=st.sampled_from(get_args(EventKind)),
            weights=st.text(max_size=6) | st.sampled_from(["\ud800", 'a"b\\n', "</script>\x00"]),
            at=st.floats(-1, 50),
            device=st.sampled_from(["", "cpu"]),
            engine=st.integers(0, 2),
            alias=st.none() | st.text(max_size=3),
            number=st.integers(-1, 5),
            seconds=st.floats(0, 60),
        ),
        max_size=20,
    )
)
def test_whatever_is_told_the_page_can_be_read(events: list[PoolEvent]) -> None:
    metrics = PoolMetrics()
    for event in events:
        metrics.show(event)
    seen = read(metrics.render())
    assert all(value >= 0 for value in seen.values())
