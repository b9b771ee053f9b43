"""From "who answers what" to what is loaded where, in which order, at what cost: printed before it runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .catalog import Catalog
from .devices import Device
from .groups import Group, group_experts
from .residents import Need
from .schedule import make_schedule
from .tasks import Placement, Schedule, Task
from .timeline import Span, Timeline

__all__ = ["Forecast", "LoadPlan", "PlannedGroup", "make_plan"]

ASSUMED_CALL_SECONDS = 0.5
"""What a call is taken to last where no profile tells, so that the order and the devices make some sense."""
ASSUMED_LOAD_SECONDS = 5.0
ASSUMED_LOAD_RATE = 500e6
"""Bytes a second beyond that; both where these weights were never loaded here."""
ASSUMED_SWAP_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGroup:
    """One load, and what it will be used for."""

    group: Group
    calls: Mapping[str, int]
    """Calls per alias."""
    memory_bytes: int | None
    """Estimated or measured need; None when the weights run elsewhere."""
    tokens: int | None
    """Predicted generated tokens; None without a profile to predict from."""
    seconds: float | None
    """Predicted seconds of generation, likewise."""
    placements: tuple[Placement, ...] = ()
    """Where and when; several where its work is shared. None where weights run elsewhere."""

    @property
    def load_seconds(self) -> float:
        """Predicted seconds of all its loads."""
        return sum(placement.load_seconds for placement in self.placements)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Every load of a run, in order."""

    groups: tuple[PlannedGroup, ...]
    devices: tuple[Device, ...] = ()
    schedule: Schedule | None = None
    """When what is where; None without devices to place it on."""
    startup_seconds: float = 0.0
    """What passes before the first load begins."""

    @property
    def loads(self) -> int:
        """How many models are loaded: one per distinct weights that run on this machine."""
        return sum(planned.group.local for planned in self.groups)

    @property
    def replicas(self) -> int:
        """Loads beyond the first of the same weights, to share their work."""
        return sum(max(0, len(planned.placements) - 1) for planned in self.groups)

    @property
    def calls(self) -> int:
        """Requests to all experts."""
        return sum(sum(planned.calls.values()) for planned in self.groups)

    @property
    def tokens(self) -> int | None:
        """Predicted generated tokens of all; None if one is unknown."""
        known = [planned.tokens for planned in self.groups]
        return None if None in known else sum(tokens or 0 for tokens in known)

    @property
    def is_predicted(self) -> bool:
        """Whether its seconds come from a profile; otherwise every call is taken to last as long."""
        return all(planned.seconds is not None for planned in self.groups)

    @property
    def makespan(self) -> float | None:
        """Predicted wall seconds; None without a profile to predict from."""
        if self.schedule is None or not self.is_predicted:
            return None
        return self.startup_seconds + self.schedule.makespan

    @property
    def memory_peaks(self) -> dict[str, int]:
        """Most bytes taken at a time, by device."""
        if self.schedule is None:
            return {}
        return {device.name: self.schedule.memory_peak(device.name) for device in self.devices}

    def draw(self) -> Timeline:
        """The plan as the picture of a run that has not been."""
        names = {planned.group.key: planned.group.name for planned in self.groups}
        spans: list[Span] = []
        for number, placed in enumerate(self.schedule.placements if self.schedule else (), 1):
            start = self.startup_seconds + placed.start
            load = Span(
                device=placed.device,
                weights=names[placed.key],
                kind="load",
                start=start,
                end=start + placed.load_seconds,
                engine=number,
                note="planned",
            )
            end = load.end + placed.work_seconds
            spans += [load, replace(load, kind="generate", start=load.end, end=end)]
        return Timeline(spans)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "loads": self.loads,
            "replicas": self.replicas,
            "calls": self.calls,
            "tokens": self.tokens,
            "seconds": self.makespan,
            "memory_peaks": self.memory_peaks,
            "method": None if self.schedule is None else self.schedule.method,
            "groups": [_group_to_json(planned) for planned in self.groups],
        }


def _group_to_json(planned: PlannedGroup) -> dict[str, Any]:
    return {
        "weights": planned.group.name,
        "engine": planned.group.specs[0].engine,
        "calls": dict(planned.calls),
        "memory_bytes": planned.memory_bytes,
        "tokens": planned.tokens,
        "seconds": planned.seconds,
        "load_seconds": round(planned.load_seconds, 3),
        "devices": [placement.device for placement in planned.placements],
        "start": min((placement.start for placement in planned.placements), default=None),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is known beforehand about experts and weights; whatever is missing is not predicted."""

    needs: Mapping[str, Need] = field(default_factory=dict[str, Need])
    """By group key."""
    tokens_per_call: Mapping[str, float] | None = None
    """Mean generated tokens per alias, from a profile."""
    seconds_per_call: Mapping[str, float] | None = None
    """Mean seconds per alias, likewise."""
    devices: tuple[Device, ...] = ()
    startup_seconds: float = 0.0


def make_plan(
    catalog: Catalog,
    calls: Mapping[str, int],
    forecast: Forecast | None = None,
    *,
    last: Collection[str] = (),
    least_gain: float = 0.0,
) -> LoadPlan:
    """Plan one load per distinct weights, and more only where sharing their work pays.

    Args:
        catalog: The pool's experts.
        calls: Requests per alias; aliases without any are left out.
        forecast: What is known beforehand. With devices, the groups are placed on them.
        last: Aliases that are asked again after the others (the aggregator): their weights are
            loaded last, so that they are still there when their second turn comes.
        least_gain: Seconds that a better plan must be able to save before OR-tools is asked for it.

    Raises:
        InputError: an unknown alias, or weights that fit no device.
    """
    known = forecast or Forecast()
    used = {alias: number for alias, number in calls.items() if number}
    groups = group_experts(catalog, used)
    groups.sort(key=lambda group: not set(last).isdisjoint(group.aliases))
    tasks = [_make_task(group, used, known, last) for group in groups if group.key in known.needs]
    schedule = None
    if tasks and known.devices:
        schedule = make_schedule(tasks, known.devices, least_gain=least_gain)
    placements: dict[str, list[Placement]] = {}
    for placement in schedule.placements if schedule is not None else ():
        placements.setdefault(placement.key, []).append(placement)
    if schedule is not None:
        groups.sort(key=lambda group: _rank(group, placements, last))
    need = known.needs
    return LoadPlan(
        devices=known.devices,
        schedule=schedule,
        startup_seconds=known.startup_seconds,
        groups=tuple(
            PlannedGroup(
                group=group,
                calls={alias: used[alias] for alias in group.aliases if alias in used},
                memory_bytes=need[group.key].memory_bytes if group.key in need else None,
                tokens=_predict_tokens(known.tokens_per_call, used, group),
                seconds=_predict(known.seconds_per_call, used, group),
                placements=tuple(placements.get(group.key, ())),
            )
            for group in groups
        ),
    )


def _rank(
    group: Group, placements: Mapping[str, list[Placement]], last: Collection[str]
) -> tuple[bool, float]:
    """The order in which weights are wanted: what runs elsewhere at once, the aggregator's last."""
    start = min((placement.start for placement in placements.get(group.key, ())), default=-1.0)
    return not set(last).isdisjoint(group.aliases), start


def _make_task(
    group: Group, used: Mapping[str, int], forecast: Forecast, last: Collection[str]
) -> Task:
    need = forecast.needs[group.key]
    predicted = _predict(forecast.seconds_per_call, used, group)
    work = predicted
    if work is None:
        work = ASSUMED_CALL_SECONDS * sum(used.get(alias, 0) for alias in group.aliases)
    load = need.load_seconds or ASSUMED_LOAD_SECONDS + need.memory_bytes / ASSUMED_LOAD_RATE
    return Task(
        key=group.key,
        load_seconds=load,
        work_seconds=work,
        memory_bytes=need.memory_bytes,
        family=need.family if need.is_probed else None,
        swap_seconds=min(load, ASSUMED_SWAP_SECONDS) if need.family is not None else None,
        splittable=predicted is not None,  # a guess is no reason to load anything twice
        last=not set(last).isdisjoint(group.aliases),
        name=group.name,
    )


def _predict_tokens(
    per_call: Mapping[str, float] | None, calls: Mapping[str, int], group: Group
) -> int | None:
    tokens = _predict(per_call, calls, group)
    return None if tokens is None else round(tokens)


def _predict(
    per_call: Mapping[str, float] | None, calls: Mapping[str, int], group: Group
) -> float | None:
    asked = [alias for alias in group.aliases if alias in calls]
    if per_call is None or not all(alias in per_call for alias in asked):
        return None
    return sum(per_call[alias] * calls[alias] for alias in asked)
