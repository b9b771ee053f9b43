"""What a pool did, and when: who loaded, who generated, and where a device waited."""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ...retrieval import InputError
from .events import PoolEvent

__all__ = ["Interval", "Row", "Span", "SpanKind", "Timeline"]

FORMAT = 1
SHORTEST = 1e-6  # seconds; less is what adding floats leaves over

SpanKind = Literal["load", "generate", "sleep"]
_Key = tuple[str, int, str]
Interval = tuple[float, float]
"""Seconds: from, to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that an engine did from one moment to another, in seconds since the pool was opened."""

    device: str
    """Empty for what runs elsewhere."""
    weights: str
    kind: SpanKind
    start: float
    end: float
    engine: int = 0
    note: str = ""
    """How a load came about (`fresh`, `reload`, `wake`), and what cut a span short: `fresh, failed`."""
    tokens: int = 0
    """Generated meanwhile."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start

    @property
    def failed(self) -> bool:
        """Whether it did not end as it should."""
        return self.note.endswith(("failed", "died"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Spans of one device that do not overlap, in order: a line of a picture."""

    device: str
    lane: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """What stands in front of the line."""
        return f"{self.device or 'remote'}/{self.lane}"


class Timeline:
    """Grows while a pool works: hand its `add` to the pool as `on_event`.

    Reading is safe from any thread. Events that come twice, late or without their partner bend the
    picture, and never raise.

    Args:
        spans: What is known already, of an earlier run or of a plan.
        wanted: For each weights, when requests for them were outstanding.
        runs: When each run began; events count from the last of them.
    """

    def __init__(
        self,
        spans: Iterable[Span] = (),
        *,
        wanted: Mapping[str, Sequence[Interval]] | None = None,
        runs: Sequence[float] = (0.0,),
    ) -> None:
        # A span that ends moves from one container to another; who reads must not see it in both.
        self._lock = threading.Lock()
        self._ended = list(spans)
        self._open: dict[_Key, Span] = {}
        self._latest: dict[_Key, Span] = {}  # each engine's last one, not in _ended yet
        self._wanted = {weights: list(times) for weights, times in (wanted or {}).items()}
        self._wanted_since: dict[str, float] = {}
        self._waiting: dict[tuple[str, str], int] = {}  # by alias and stage
        self._owed: dict[str, int] = {}  # the same by weights
        self._runs = tuple(runs)
        self._now = self._runs[-1]

    def add(self, event: PoolEvent) -> None:
        """Take in one event; costs the same however long the run is."""
        with self._lock:
            at = self._runs[-1] + max(0.0, event.at)
            self._now = max(self._now, at)
            match event.kind:
                case "queued" | "finished":
                    self._count(event, at)
                case "loading":
                    self._begin("load", event, at)
                case "working":
                    self._begin("generate", event, at)
                case "asleep":
                    self._begin("sleep", event, at)
                case "ready" | "resting" | "died" | "failed" | "unloaded":
                    self._finish(event, at)
                case "tokens":
                    self._credit(event)
                case "warning":
                    pass

    def advance(self, now: float) -> None:
        """Let what is still going on last until `now` (seconds since the pool was opened)."""
        with self._lock:
            self._now = max(self._now, self._runs[-1] + now)

    def after(self, earlier: Timeline) -> Timeline:
        """A copy that tells an earlier run first, for a run that was resumed.

        Call it when this run is over, or before it begins: events that are added to
        `Timeline().after(earlier)` count from where the earlier run ended.
        """
        spans, wanted = earlier.spans, earlier.wanted
        ends = [end for times in wanted.values() for _, end in times]
        shift = max([earlier.runs[-1], *ends, *(span.end for span in spans)])
        for weights, times in self.wanted.items():
            moved = [(start + shift, end + shift) for start, end in times]
            wanted[weights] = [*wanted.get(weights, ()), *moved]
        return Timeline(
            spans + tuple(replace(s, start=s.start + shift, end=s.end + shift) for s in self.spans),
            wanted=wanted,
            runs=earlier.runs + tuple(start + shift for start in self.runs),
        )

    @property
    def spans(self) -> tuple[Span, ...]:
        """Everything so far by start; what is still going on ends at the last event."""
        with self._lock:
            going_on = (replace(s, end=max(s.start, self._now)) for s in self._open.values())
            spans = [*self._ended, *self._latest.values(), *going_on]
        return tuple(sorted(spans, key=lambda s: (s.start, s.device, s.engine, s.end)))

    @property
    def wanted(self) -> dict[str, list[Interval]]:
        """For each weights, when requests for them were outstanding."""
        with self._lock:
            wanted = {weights: list(times) for weights, times in self._wanted.items()}
            for weights, since in self._wanted_since.items():
                wanted.setdefault(weights, []).append((since, max(since, self._now)))
        return wanted

    @property
    def waiting(self) -> dict[tuple[str, str], int]:
        """Requests without a reply, by alias and stage."""
        with self._lock:
            return {key: number for key, number in self._waiting.items() if number}

    @property
    def runs(self) -> tuple[float, ...]:
        """When each run began: more than one where runs were put together by `after`."""
        return self._runs

    @property
    def makespan(self) -> float:
        """Seconds until the last span ended."""
        return max((span.end for span in self.spans), default=0.0)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that anything happened on; `cuda:2` comes before `cuda:10`."""
        return tuple(sorted({span.device for span in self.spans}, key=_order_name))

    def rows(self) -> tuple[Row, ...]:
        """Lay the spans into as few rows per device as there were engines working at the same time.

        An engine keeps its row while that is free. One that sleeps does not keep others out of it.
        """
        spans = self.spans
        return tuple(
            Row(device=device, lane=lane, spans=tuple(row))
            for device in self.devices
            for lane, row in enumerate(_lay_out([s for s in spans if s.device == device]))
        )

    def busy(self, device: str) -> float:
        """Seconds in which at least one engine on the device generated."""
        return _cover(self._times(device, "generate"))

    def loading(self, device: str) -> float:
        """Seconds in which at least one engine on the device loaded."""
        return _cover(self._times(device, "load"))

    def idle_share(self, device: str) -> float | None:
        """How much of the time that a device could have generated in went by without.

        That is the time in which requests were outstanding and nothing loaded on the device.
        Requests to models that were seen only elsewhere (a remote address) do not count. None if
        there was no such time, and for elsewhere itself: nobody here knows what it could have done.
        """
        places: dict[str, set[str]] = {}
        for span in self.spans:
            places.setdefault(span.weights, set()).add(span.device)
        elsewhere = {weights for weights, devices in places.items() if devices == {""}}
        wanted = [t for weights, ts in self.wanted.items() if weights not in elsewhere for t in ts]
        loads, works = self._times(device, "load"), self._times(device, "generate")
        usable = _cover([*wanted, *loads]) - _cover(loads)
        idle = _cover([*wanted, *loads, *works]) - _cover([*loads, *works])
        return min(1.0, max(0.0, idle / usable)) if device and usable > SHORTEST else None

    def to_json(self) -> dict[str, Any]:
        """The timeline as plain JSON values."""
        return {
            "format": FORMAT,
            "runs": list(self.runs),
            "spans": [asdict(span) for span in self.spans],
            "wanted": {key: [list(time) for time in times] for key, times in self.wanted.items()},
        }

    @classmethod
    def from_json(cls, content: Any) -> Timeline:
        """Read what `to_json` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
            wanted = {key: [*map(_read_time, ts)] for key, ts in dict(content["wanted"]).items()}
            runs = [_read_time((start, start))[0] for start in content["runs"]]
            if not runs:
                raise ValueError("no run")
            return cls(map(_read_span, content["spans"]), wanted=wanted, runs=runs)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"the timeline is damaged ({reason}); leave it out") from None

    def _count(self, event: PoolEvent, at: float) -> None:
        """Follow what is outstanding; what was never queued cannot be finished."""
        key, weights = (event.alias or "", event.stage or ""), event.weights
        before = self._waiting.get(key, 0)
        change = event.number if event.kind == "queued" else -min(event.number, before)
        self._waiting[key] = before + change
        self._owed[weights] = max(0, self._owed.get(weights, 0) + change)
        times = self._wanted.setdefault(weights, [])
        if self._owed[weights] and weights not in self._wanted_since:
            self._wanted_since[weights] = max(at, times[-1][1]) if times else at
        elif not self._owed[weights] and weights in self._wanted_since:
            since = self._wanted_since.pop(weights)
            times.append((since, max(since, at)))

    def _begin(self, kind: SpanKind, event: PoolEvent, at: float) -> None:
        """An engine does one thing at a time: whatever it did before is over."""
        key = _identify(event)
        going_on = self._open.get(key)
        if going_on is not None and (going_on.kind, going_on.weights) == (kind, event.weights):
            return  # told twice
        self._close(key, at)
        start = max(at, self._latest[key].end if key in self._latest else self._runs[-1])
        self._open[key] = Span(
            device=event.device,
            weights=event.weights,
            kind=kind,
            start=start,
            end=start,
            engine=event.engine,
            note=event.way if kind == "load" else "",
        )

    def _finish(self, event: PoolEvent, at: float) -> None:
        key = _identify(event)
        kind = self._open[key].kind if key in self._open else None
        if event.kind == "ready" and kind != "load":
            # Nobody said that it began, but this one says how long it took.
            self._begin("load", event, at - event.seconds)
        if event.kind in ("failed", "died") or (event.kind == "unloaded" and kind == "load"):
            self._close(key, at, event.kind)
        elif event.kind != "resting" or kind == "generate":
            self._close(key, at)

    def _close(self, key: _Key, at: float, how: str = "") -> None:
        span = self._open.pop(key, None)
        if span is not None:
            note = ", ".join(filter(None, (span.note, how)))
            if key in self._latest:
                self._ended.append(self._latest[key])
            self._latest[key] = replace(span, end=max(span.start, at), note=note)

    def _credit(self, event: PoolEvent) -> None:
        """Count tokens where they were generated; an engine may tell the last ones while it rests."""
        key = _identify(event)
        spans = self._open if key in self._open else self._latest
        if key in spans and spans[key].kind == "generate":
            spans[key] = replace(spans[key], tokens=spans[key].tokens + event.number)

    def _times(self, device: str, kind: SpanKind) -> list[Interval]:
        return [(s.start, s.end) for s in self.spans if s.device == device and s.kind == kind]


def _lay_out(spans: Sequence[Span]) -> list[list[Span]]:
    """Colour intervals; an engine takes its own row if it can, else the one that is missed latest."""
    starts: dict[_Key, list[float]] = {}
    for span in spans:
        starts.setdefault(_identify(span), []).append(span.start)
    rows: list[list[Span]] = []
    home: dict[_Key, int] = {}  # engine to its row

    def reluctance(lane: int, span: Span) -> tuple[bool, float, float, int]:
        owner = rows[lane][-1]
        mine = starts[_identify(owner)]
        returns = mine[bisect_left(mine, span.start) :]
        away = home.get(_identify(span)) != lane
        return (away, -min(returns, default=math.inf), owner.end, lane)

    for span in spans:
        free = [at for at, row in enumerate(rows) if _is_free(row[-1], span.start)]
        if span.kind == "sleep" and home.get(_identify(span)) not in free:
            continue
        lane = min(free, key=lambda at: reluctance(at, span), default=len(rows))
        if lane == len(rows):
            rows.append([])
        elif rows[lane][-1].kind == "sleep":
            rows[lane][-1] = replace(rows[lane][-1], end=min(rows[lane][-1].end, span.start))
        rows[lane].append(span)
        home[_identify(span)] = lane
    return [[span for span in row if span.kind != "sleep" or span.seconds] for row in rows]


def _is_free(latest: Span, start: float) -> bool:
    return latest.end <= start or latest.kind == "sleep"


def _identify(it: PoolEvent | Span) -> _Key:
    """Which engine; where engines have no numbers there is one for each weights."""
    return (it.device, it.engine, "" if it.engine else it.weights)


def _order_name(name: str) -> list[str | int]:
    """A key by which `cuda:2` comes before `cuda:10`."""
    # The pattern is kept as every second part, so that numbers only meet numbers.
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d{1,9})", name))]


def _cover(times: Iterable[Interval]) -> float:
    """Seconds that lie in at least one of the intervals."""
    total = 0.0
    reached = -math.inf
    for start, end in sorted(times):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _read_span(row: Any) -> Span:
    values: dict[str, Any] = dict(row)
    texts = all(isinstance(values[key], str) for key in ("device", "weights", "note"))
    counts = all(type(values[key]) is int and values[key] >= 0 for key in ("engine", "tokens"))
    if not texts or not counts or values["kind"] not in get_args(SpanKind):
        raise ValueError(f"no span: {str(row)[:100]}")
    values["start"], values["end"] = _read_time((values["start"], values["end"]))
    return Span(**values)


def _read_time(pair: Any) -> Interval:
    start, end = pair
    if not {type(start), type(end)} <= {int, float} or not 0 <= start <= end < math.inf:
        raise ValueError(f"no time: {str(pair)[:100]}")
    return (float(start), float(end))
