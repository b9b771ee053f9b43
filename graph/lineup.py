"""Which methods are compared, at which sizes, and which cannot be and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..agents import Catalog
from ..retrieval import InputError
from .methods import KINDS, METHODS, Method, fit_method
from .verdicts import count

__all__ = ["ALL", "YARDSTICK", "Lineup"]

ALL = "all"
YARDSTICK = "single_best"
"""What every method's gain is measured against: the strongest expert alone. It always takes part."""


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """Methods at the sizes that the budgets allow, in the order of `METHODS`, the small ones first."""

    methods: tuple[Method, ...]
    budgets: tuple[int, ...]
    """Calls per question, ascending."""
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def choose(cls, names: Sequence[str], budgets: Sequence[int], catalog: Catalog) -> Lineup:
        """Fit methods to budgets.

        Args:
            names: Of `METHODS`, or `all`: whatever works with this pool.
            budgets: Calls per question; each method takes part in its largest form within each of them.
            catalog: The pool's.

        Raises:
            InputError: an unknown method or one that cannot work here was asked for by its name, or no
                budget is a number of calls.
        """
        if not budgets or min(budgets) < 1:
            told = ", ".join(map(str, budgets)) or "none"
            raise InputError(f"calls per question are {told}; give one or more numbers from 1 on")
        unknown = [name for name in names if name not in (*METHODS, ALL)]
        if unknown or not names:
            what = f'no method "{unknown[0]}"' if unknown else "no method named"
            raise InputError(f"there is {what}; there are {', '.join(METHODS)}, or all")
        wanted = METHODS if ALL in names else tuple(names)
        chosen: dict[Method, None] = {}
        skipped: dict[str, str] = {}
        for kind in KINDS:
            if kind.name not in wanted and kind.name != YARDSTICK:
                continue
            why = _refuse(kind.name, kind.speaks, catalog)
            fitted = [
                fit_method(kind.name, calls=calls, experts=len(catalog))
                for calls in sorted(set(budgets))
            ]
            forms = [method for method in fitted if method is not None]
            if why is None and not forms:
                calls, experts = count(max(budgets), "call"), count(len(catalog), "expert")
                why = f"has no form for {calls} per question and {experts}"
            if why is None:
                chosen |= dict.fromkeys(forms)
            elif kind.name in names:
                raise InputError(f"the method {kind.name} cannot take part: it {why}")
            else:
                skipped[kind.name] = why
        return cls(methods=tuple(chosen), budgets=tuple(sorted(set(budgets))), skipped=skipped)


def _refuse(name: str, speaks: bool, catalog: Catalog) -> str | None:
    """Why a method cannot work with this pool."""
    recorded = [alias for alias, spec in catalog.items() if spec.engine == "replay"]
    if recorded and speaks:
        return "asks more than the plain question, and recorded answers do not answer that"
    if recorded and name == "self_consistency":
        return "asks one expert several times, and a recording holds one answer of each"
    return None
