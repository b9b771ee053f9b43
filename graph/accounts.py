"""What a method costs on its own, from its rows: calls, tokens, loads, and time at a measured pace.

Methods that are compared share an answer store, so the ledger charges a reply to whichever asked first.
Rows know what each method asked; from them every method is charged as if it had been alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..agents import Catalog, Ledger
from ..agents.pool.groups import group_experts
from .methods import AdaptivePanel, Method
from .result import Solution

__all__ = ["Pace", "Spending", "count_loads", "sum_costs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Means per question, and loads of the whole batch."""

    calls: float
    prompt_tokens: float
    tokens: float
    """Generated."""
    seconds: float | None
    """Engine time; None where nothing was measured."""
    loads: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Engine seconds per call of each expert, measured in each stage and over all of them."""

    by_stage: Mapping[tuple[str, str], float]
    by_expert: Mapping[str, float]

    @classmethod
    def of(cls, ledger: Ledger, *, least: int = 10) -> Pace:
        """From what a pool did.

        Args:
            ledger: Its own.
            least: Calls without which a stage's own pace is not taken.
        """
        calls: dict[str, int] = {}
        seconds: dict[str, float] = {}
        by_stage: dict[tuple[str, str], float] = {}
        for (alias, stage), account in ledger.accounts.items():
            calls[alias] = calls.get(alias, 0) + account.calls
            seconds[alias] = seconds.get(alias, 0.0) + account.seconds
            if account.calls >= least and account.seconds > 0:
                by_stage[alias, stage] = account.seconds / account.calls
        by_expert = {a: seconds[a] / calls[a] for a in calls if calls[a] and seconds[a] > 0}
        return cls(by_stage, by_expert)

    def seconds(self, alias: str, stage: str) -> float | None:
        """Per call; None if the expert was never measured."""
        return self.by_stage.get((alias, stage), self.by_expert.get(alias))


def sum_costs(
    method: Method,
    solutions: Sequence[Solution],
    catalog: Catalog,
    pace: Pace,
    *,
    extra_calls: float = 0.0,
) -> Spending:
    """What a method spent on these questions.

    Args:
        method: Which.
        solutions: Its rows.
        catalog: The pool's.
        pace: Measured seconds.
        extra_calls: Calls per question that no row shows, such as those that name skills.
    """
    number = max(1, len(solutions))
    calls = prompt = generated = 0
    seconds: float | None = 0.0
    for solution in solutions:
        row = solution.row
        experts = row["experts"]
        merged = bool(row["aggregation"]) and not any("round" in expert for expert in experts)
        calls += len(experts) + merged
        prompt += row["usage"]["prompt_tokens"]
        generated += row["usage"]["completion_tokens"]
        for expert in experts:
            stage = method.name if "round" in expert else "reason"
            per_call = pace.seconds(expert["expert"], stage)
            seconds = None if seconds is None or per_call is None else seconds + per_call
    return Spending(
        calls=calls / number + extra_calls,
        prompt_tokens=prompt / number,
        tokens=generated / number,
        seconds=None if seconds is None else seconds / number,
        loads=count_loads(_list_rounds(method, solutions), catalog),
    )


def count_loads(rounds: Sequence[set[str]], catalog: Catalog) -> int:
    """Loads on a device that holds one model at a time, as in the paper's setting.

    Args:
        rounds: Experts of each round. Within a round the weights come in the best order; a round begins with
            those that are loaded, if it needs them.
        catalog: Tells who shares weights; what runs elsewhere is not loaded.
    """
    key_of = {
        alias: group.key
        for group in group_experts(catalog)
        if group.takes_turns
        for alias in group.aliases
    }
    needed = [{key_of[alias] for alias in experts if alias in key_of} for experts in rounds]
    needed = [weights for weights in needed if weights]
    loads, loaded = 0, None
    for at, weights in enumerate(needed):
        loads += len(weights - {loaded})
        after = needed[at + 1] if at + 1 < len(needed) else set[str]()
        first = loaded if loaded in weights else None
        # Whoever comes last stays: best one that the next round needs, but not the one that came first.
        rest = sorted(weights - {first}) or [first]
        loaded = next((key for key in rest if key in after), rest[-1])
    return loads


def _list_rounds(method: Method, solutions: Sequence[Solution]) -> list[set[str]]:
    """The experts that were asked in each round."""
    rounds: dict[int, set[str]] = {}
    for solution in solutions:
        for place, expert in enumerate(solution.experts):
            number = expert.get("round")
            if number is None:  # an adaptive panel grows by one expert a round
                number = max(0, place - 1) if isinstance(method, AdaptivePanel) else 0
            rounds.setdefault(number, set()).add(expert["expert"])
    return [rounds[number] for number in sorted(rounds)]
