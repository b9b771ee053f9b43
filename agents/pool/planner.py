"""What a pool would load for which calls: makes plans for the experts that a pool has, where they can run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ...retrieval import InputError
from .catalog import Catalog
from .groups import Group, group_experts
from .host import Host
from .needs import find_need
from .plan import Forecast, LoadPlan, make_plan
from .workshop import Workshop

__all__ = ["Planner"]

PLANNING_SECONDS = 5.0
"""What asking OR-tools for a better plan may cost, its import included."""


class Planner:
    """Plans, and never loads.

    Args:
        catalog: The experts.
        groups: By alias, each with everyone that shares its weights.
        host: Where engines run.
        workshop: Knows what earlier loads took.
    """

    def __init__(
        self, catalog: Catalog, groups: Mapping[str, Group], host: Host, workshop: Workshop
    ) -> None:
        self._catalog = catalog
        self._groups = groups
        self._host = host
        self._workshop = workshop

    def plan(
        self,
        calls: Mapping[str, int],
        *,
        last: Collection[str] = (),
        tokens_per_call: Mapping[str, float] | None = None,
        seconds_per_call: Mapping[str, float] | None = None,
        least_gain: float = 0.0,
    ) -> LoadPlan:
        """What these calls would load, where and in which order. See `make_plan`.

        Raises:
            InputError: an unknown alias, weights that are not there, or that fit no device.
        """
        used = group_experts(self._catalog, [alias for alias, number in calls.items() if number])
        # The whole group is prepared, not only who is used: its engine has to serve everyone.
        whole = [self._groups[group.aliases[0]] for group in used if group.local]
        forecast = Forecast(
            needs={g.key: find_need(g, self._host, self._workshop) for g in whole},
            tokens_per_call=tokens_per_call,
            seconds_per_call=seconds_per_call,
            devices=tuple(self._host.devices) if whole else (),
            startup_seconds=self._workshop.predict_startup() if whole else 0.0,
        )
        return make_plan(self._catalog, calls, forecast, last=last, least_gain=least_gain)

    def plan_possible(
        self,
        calls: Mapping[str, int],
        *,
        seconds_per_call: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> LoadPlan:
        """The plan for those calls that can be planned with, others left out: their questions will say why.

        While it is planned nothing runs, and without a profile the times are guessed: only a plan that may
        gain more than planning costs is searched for.
        """
        settings["seconds_per_call"] = seconds_per_call
        settings["least_gain"] = PLANNING_SECONDS if seconds_per_call else math.inf
        try:
            return self.plan(calls, **settings)
        except InputError:
            able = {alias: calls[alias] for alias in filter(self._can_plan, calls)}
            return self.plan(able, **settings)

    def order(self, aliases: Iterable[str], *, last: Collection[str] = ()) -> list[str]:
        """Aliases as a plan would ask them: those with the same weights together, `last` at the end."""
        plan = make_plan(self._catalog, dict.fromkeys(aliases, 1), last=last)
        return [alias for planned in plan.groups for alias in planned.calls]

    def _can_plan(self, alias: str) -> bool:
        try:
            self.plan({alias: 1})
        except InputError:
            return False
        return True
