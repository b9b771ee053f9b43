"""A timeline tells who loaded, who generated and who waited, whatever order the events come in."""

from __future__ import annotations

import json
import threading
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents import PoolEvent
from expertmix.agents.pool.events import EventKind
from expertmix.agents.pool.timeline import Span, Timeline
from expertmix.retrieval import InputError


def tell(timeline: Timeline, *events: tuple[Any, ...], device: str = "cpu") -> Timeline:
    """Add events given as (at, kind, weights, engine, {more})."""
    for at, kind, weights, engine, *more in events:
        given: dict[str, Any] = {"device": device, **(more[0] if more else {})}
        timeline.add(PoolEvent(kind=kind, at=at, weights=weights, engine=engine, **given))
    return timeline


def span(start: float, end: float, engine: int = 1, kind: str = "generate", **more: Any) -> Span:
    given: dict[str, Any] = {"device": "cpu", "weights": f"w{engine}", "kind": kind, **more}
    return Span(start=start, end=end, engine=engine, **given)


def describe(timeline: Timeline) -> list[tuple[str, str, float, float, str]]:
    return [(s.weights, s.kind, s.start, s.end, s.note) for s in timeline.spans]


def lanes(timeline: Timeline) -> list[tuple[str, list[int]]]:
    return [(row.name, [s.engine for s in row.spans]) for row in timeline.rows()]


def test_a_load_and_what_was_generated_become_spans() -> None:
    timeline = tell(
        Timeline(),
        (1.0, "loading", "a", 1),
        (3.0, "ready", "a", 1, {"seconds": 2.0}),
        (3.5, "working", "a", 1),
        (4.0, "tokens", "a", 1, {"number": 30}),
        (5.0, "tokens", "a", 1, {"number": 12}),
        (5.5, "resting", "a", 1),
        (9.0, "unloaded", "a", 1),
    )
    assert describe(timeline) == [
        ("a", "load", 1.0, 3.0, "fresh"),
        ("a", "generate", 3.5, 5.5, ""),
    ]
    assert [s.tokens for s in timeline.spans] == [0, 42]
    assert timeline.makespan == 5.5
    assert (timeline.loading("cpu"), timeline.busy("cpu")) == (2.0, 2.0)


def test_tokens_that_are_told_while_the_engine_rests_still_count() -> None:
    timeline = tell(
        Timeline(),
        (0.0, "working", "a", 1),
        (1.0, "resting", "a", 1),
        (1.1, "tokens", "a", 1, {"number": 5}),
    )
    assert [s.tokens for s in timeline.spans] == [5]


@pytest.mark.parametrize(("end", "failed"), [("failed", True), ("died", True), ("unloaded", False)])
def test_a_load_that_does_not_end_well_says_how(end: str, failed: bool) -> None:
    timeline = tell(Timeline(), (0, "loading", "a", 1, {"way": "reload"}), (2, end, "a", 1))
    assert describe(timeline) == [("a", "load", 0.0, 2.0, f"reload, {end}")]
    assert timeline.spans[0].failed is failed


def test_an_engine_that_sleeps_is_woken_by_a_load() -> None:
    timeline = tell(
        Timeline(),
        (1, "asleep", "a", 1),
        (4, "loading", "a", 1, {"way": "wake"}),
        (5, "ready", "a", 1, {"way": "wake"}),
    )
    assert describe(timeline) == [("a", "sleep", 1.0, 4.0, ""), ("a", "load", 4.0, 5.0, "wake")]


def test_what_is_still_going_on_ends_at_the_last_event_or_now() -> None:
    timeline = tell(Timeline(), (1, "working", "a", 1), (2, "warning", "b", 0))
    assert timeline.makespan == 2.0
    timeline.advance(7.0)
    timeline.advance(3.0)  # an older clock turns nothing back
    assert timeline.makespan == 7.0


def test_a_load_whose_beginning_was_missed_is_known_by_its_seconds() -> None:
    timeline = tell(Timeline(), (5, "ready", "a", 1, {"seconds": 2.0, "way": "reload"}))
    assert describe(timeline) == [("a", "load", 3.0, 5.0, "reload")]


def test_engines_without_a_number_are_told_apart_by_their_weights() -> None:
    timeline = tell(
        Timeline(),
        (0, "loading", "a", 0),
        (1, "loading", "b", 0),
        (2, "failed", "answer store", 0),
        (3, "ready", "a", 0),
        (4, "ready", "b", 0),
        device="",
    )
    assert describe(timeline) == [("a", "load", 0, 3, "fresh"), ("b", "load", 1, 4, "fresh")]
    assert [row.name for row in timeline.rows()] == ["remote/0", "remote/1"]


def test_events_told_twice_change_nothing() -> None:
    events = [(0, "loading", "a", 1), (2, "ready", "a", 1), (2, "working", "a", 1)]
    events += [(5, "resting", "a", 1), (6, "unloaded", "a", 1)]
    once = tell(Timeline(), *events)
    twice = tell(Timeline(), *(event for event in events for _ in range(2)))
    assert [s for s in twice.spans if s.seconds] == list(once.spans)


def test_an_engine_keeps_its_row_and_rows_are_as_few_as_engines_at_work() -> None:
    timeline = Timeline(
        [span(0, 4, 1), span(0, 2, 2), span(3, 5, 3), span(6, 7, 1), span(6, 7, 3), span(8, 9, 2)]
    )
    assert lanes(timeline) == [("cpu/0", [1, 1]), ("cpu/1", [2, 3, 3, 2])]


def test_a_new_engine_takes_the_row_that_is_missed_latest() -> None:
    timeline = Timeline([span(0, 4, 1), span(0, 5, 2), span(6, 9, 3), span(8, 9, 1)])
    assert lanes(timeline) == [("cpu/0", [1, 1]), ("cpu/1", [2, 3])]


def test_a_sleeper_keeps_nobody_out_of_its_row() -> None:
    timeline = Timeline([span(0, 2, 1), span(2, 9, 1, "sleep"), span(3, 5, 2), span(9, 10, 1)])
    (row,) = timeline.rows()
    assert [(s.engine, s.start, s.end) for s in row.spans] == [
        (1, 0, 2),
        (1, 2, 3),
        (2, 3, 5),
        (1, 9, 10),
    ]


def test_devices_are_in_the_order_of_their_numbers_and_elsewhere_comes_first() -> None:
    names = ("cuda:10", "cuda:2", "", "cpu", "node-2/cuda:0", "node-10/cuda:0")
    timeline = Timeline([span(0, 1, device=name) for name in names])
    assert timeline.devices == ("", "cpu", "cuda:2", "cuda:10", "node-2/cuda:0", "node-10/cuda:0")
    assert timeline.rows()[0].name == "remote/0"


def ask(timeline: Timeline, at: float, kind: str, weights: str, number: int) -> None:
    more = {"alias": weights, "stage": "reason", "number": number}
    tell(timeline, (at, kind, weights, 0, more), device="")


def test_idle_is_what_a_device_could_have_used_and_did_not() -> None:
    timeline = Timeline()
    ask(timeline, 0.0, "queued", "a", 10)
    tell(timeline, (0, "loading", "a", 1), (4, "ready", "a", 1), (5, "working", "a", 1))
    assert timeline.waiting == {("a", "reason"): 10}
    tell(timeline, (8, "resting", "a", 1))
    ask(timeline, 10.0, "finished", "a", 10)
    tell(timeline, (20, "unloaded", "a", 1))
    assert timeline.idle_share("cpu") == pytest.approx(3 / 6)  # of 4 to 10, all but 5 to 8
    assert timeline.idle_share("cuda:0") == 1.0
    assert timeline.waiting == {}


def test_without_work_or_while_all_time_is_loading_nobody_is_idle() -> None:
    timeline = tell(Timeline(), (0, "loading", "a", 1), (4, "ready", "a", 1))
    assert timeline.idle_share("cpu") is None
    timeline = tell(Timeline(), (0, "loading", "a", 1))
    ask(timeline, 1.0, "queued", "a", 1)
    ask(timeline, 3.0, "finished", "a", 1)
    assert timeline.idle_share("cpu") is None


def test_waiting_for_a_remote_model_makes_no_device_idle() -> None:
    timeline = Timeline()
    ask(timeline, 0.0, "queued", "far", 1)
    tell(timeline, (0, "working", "far", 1), (9, "resting", "far", 1), device="")
    assert timeline.idle_share("cpu") is None
    assert timeline.idle_share("") is None


def test_a_reply_nobody_asked_for_hides_no_request() -> None:
    timeline = Timeline()
    ask(timeline, 0.0, "finished", "a", 5)
    ask(timeline, 1.0, "queued", "a", 2)
    assert timeline.waiting == {("a", "reason"): 2}


def test_a_resumed_run_comes_after_the_earlier_one() -> None:
    earlier = tell(Timeline(), (1, "loading", "a", 1), (3, "ready", "a", 1))
    ask(earlier, 1.0, "queued", "a", 1)
    ask(earlier, 4.0, "finished", "a", 1)
    events = [(0, "working", "a", 1), (2, "resting", "a", 1)]
    live = tell(Timeline().after(earlier), *events)
    put_together = tell(Timeline(), *events).after(earlier)
    for timeline in (live, put_together):
        assert describe(timeline) == [
            ("a", "load", 1.0, 3.0, "fresh"),
            ("a", "generate", 4.0, 6.0, ""),
        ]
        assert timeline.runs == (0.0, 4.0)
        assert timeline.wanted["a"] == [(1.0, 4.0)]
    assert tell(Timeline().after(live), (1, "working", "b", 1)).runs == (0.0, 4.0, 6.0)


def test_reading_while_events_come_in_sees_every_span_once() -> None:
    timeline = Timeline()

    def work() -> None:
        for at in range(3000):
            tell(timeline, (at, "working", "a", 1), (at + 0.5, "resting", "a", 1))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        starts = [s.start for s in timeline.spans]
        assert starts == [float(at) for at in range(len(starts))]
    thread.join()


GOOD = json.dumps(Timeline([span(0, 1, note="fresh")], wanted={"a": [(0.0, 1.0)]}).to_json())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (GOOD, "[]"),
        (GOOD, "null"),
        (GOOD, "{}"),
        ('"format": 1', '"format": 9'),
        ('"runs": [0.0]', '"runs": []'),
        ('"runs": [0.0]', '"runs": ["x"]'),
        ('"start": 0', '"start": 2'),
        ('"start": 0', '"start": -1'),
        ('"start": 0', '"start": true'),
        ('"end": 1', '"end": Infinity'),
        ('"end": 1', '"end": NaN'),
        ('"end": 1', '"end": 1' + "0" * 400),
        ('"engine": 1', '"engine": 1.5'),
        ('"tokens": 0', '"tokens": -1'),
        ('"kind": "generate"', '"kind": "dance"'),
        ('"weights": "w1"', '"weights": null'),
        ('"weights": "w1"', '"wheels": "w1"'),
        ('"note": "fresh"', '"note": "fresh", "more": 1'),
        ("[[0.0, 1.0]]", "[[0.0]]"),
        ("[[0.0, 1.0]]", "[[1.0, 0.0]]"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match="the timeline is damaged"):
        Timeline.from_json(json.loads(GOOD.replace(old, new)))


EVENTS = st.lists(
    st.builds(
        PoolEvent,
        kind=st.sampled_from(get_args(EventKind)),
        weights=st.sampled_from(["a", "b", "c"]),
        at=st.floats(-1, 50),
        device=st.sampled_from(["", "cpu", "cuda:0"]),
        engine=st.integers(0, 2),
        alias=st.sampled_from([None, "x", "y"]),
        stage=st.sampled_from([None, "reason"]),
        number=st.integers(0, 5),
        seconds=st.floats(0, 60),
        way=st.sampled_from(["fresh", "reload", "wake"]),
    ),
    max_size=40,
)


def record(events: list[PoolEvent]) -> Timeline:
    timeline = Timeline()
    for event in events:
        timeline.add(event)
    return timeline


@settings(max_examples=150, deadline=None)
@given(events=EVENTS)
def test_whatever_is_told_spans_of_an_engine_lie_in_the_run_and_apart(
    events: list[PoolEvent],
) -> None:
    timeline = record(events)
    last = max((event.at for event in events), default=0.0)
    reached: dict[tuple[str, int | str], float] = {}
    for s in timeline.spans:
        assert 0.0 <= s.start <= s.end <= max(0.0, last)
        engine = (s.device, s.engine or s.weights)
        assert reached.get(engine, 0.0) <= s.start
        reached[engine] = s.end
    for row in timeline.rows():
        ends = [s.end for s in row.spans]
        assert all(a <= s.start for a, s in zip(ends, row.spans[1:], strict=False))
    working = [s for s in timeline.spans if s.kind != "sleep"]
    assert sum(s.kind != "sleep" for row in timeline.rows() for s in row.spans) == len(working)
    for device in timeline.devices:
        assert 0.0 <= timeline.busy(device) <= timeline.makespan + 1e-9
        share = timeline.idle_share(device)
        assert share is None or 0.0 <= share <= 1.0


@settings(max_examples=50, deadline=None)
@given(first=EVENTS, second=EVENTS)
def test_a_timeline_survives_json(first: list[PoolEvent], second: list[PoolEvent]) -> None:
    timeline = record(second).after(record(first))
    again = Timeline.from_json(json.loads(json.dumps(timeline.to_json())))
    assert again.to_json() == timeline.to_json()
    assert again.rows() == timeline.rows()
    assert [again.idle_share(d) for d in again.devices] == [
        timeline.idle_share(d) for d in timeline.devices
    ]


@settings(max_examples=50, deadline=None)
@given(
    work=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=5),
    loads=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=3),
    asked=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=3),
)
def test_idle_share_agrees_with_counting_seconds(
    work: list[tuple[int, int]], loads: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    spans = [span(a, a + n, at) for at, (a, n) in enumerate(work)]
    spans += [span(a, a + n, at, "load") for at, (a, n) in enumerate(loads)]
    wanted = {str(at): [(float(a), float(a + n))] for at, (a, n) in enumerate(asked)}

    def inside(second: int, times: list[tuple[int, int]]) -> bool:
        return any(a <= second < a + n for a, n in times)

    usable = [s for s in range(40) if inside(s, asked) and not inside(s, loads)]
    idle = [s for s in usable if not inside(s, work)]
    expected = pytest.approx(len(idle) / len(usable)) if usable else None
    assert Timeline(spans, wanted=wanted).idle_share("cpu") == expected
