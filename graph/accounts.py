"""What a method costs on its own, from its rows: calls, tokens, loads, and time at a measured pace.

Methods that are compared share an answer store, so the ledger charges a reply to whichever asked first.
Rows know what each method asked; from them every method is charged as if it had been alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ..agents import Catalog, Ledger
from ..agents.pool.groups import group_experts
from .methods import Method
from .result import Solution

__all__ = ["Naming", "Pace", "Spending", "count_loads", "sum_costs"]

_GREW = re.compile(r"round (\d+), expected gain ")
"""How a growing panel says in which round it grew (`panels.py`), the first being 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Means per question, and loads of the whole batch, of one seed."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What naming the skills of one question costs, which no row shows; an extractor may ask an expert."""

    calls: float = 0.0
    prompt_tokens: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    expert: str | None = None
    """Who is asked."""

    @classmethod
    def of(cls, ledger: Ledger, calls: float, expert: str | None) -> Naming:
        """At the mean of all such calls so far.

        Args:
            ledger: The pool's.
            calls: Per question.
            expert: Who is asked.
        """
        accounts = [a for (_, stage), a in ledger.accounts.items() if stage == "skills"]
        made = sum(account.calls for account in accounts)
        each = calls / made if made else 0.0
        return cls(
            calls=calls,
            prompt_tokens=each * sum(account.prompt_tokens for account in accounts),
            tokens=each * sum(account.completion_tokens for account in accounts),
            seconds=each * sum(account.seconds for account in accounts),
            expert=expert if calls else None,
        )


def sum_costs(
    method: Method,
    seeds: Sequence[Sequence[Solution]],
    catalog: Catalog,
    pace: Pace,
    *,
    naming: Naming | None = None,
) -> Spending:
    """What a method spent on these questions.

    Args:
        method: Which.
        seeds: Its rows of each seed, one for each question.
        catalog: The pool's.
        pace: Measured seconds.
        naming: What naming the skills costs, charged to methods that need them.
    """
    extra = naming if naming is not None and method.needs_skills else Naming()
    number = max(1, sum(map(len, seeds)))
    calls = prompt = generated = 0
    seconds: float | None = 0.0
    for solution in chain.from_iterable(seeds):
        row = solution.row
        experts = row["experts"]
        merged = bool(row["aggregation"]) and not any("round" in expert for expert in experts)
        calls += len(experts) + merged
        prompt += row["usage"]["prompt_tokens"]
        generated += row["usage"]["completion_tokens"]
        for expert in experts:
            # A talk's first round is the plain question, most often out of the store: its own stage's pace is
            # that of the later, longer prompts.
            stage = method.name if expert.get("round") else "reason"
            per_call = pace.seconds(expert["expert"], stage)
            seconds = None if seconds is None or per_call is None else seconds + per_call
    first = set[str]() if extra.expert is None else {extra.expert}
    loads = [count_loads([first, *_list_rounds(solutions)], catalog) for solutions in seeds]
    return Spending(
        calls=calls / number + extra.calls,
        prompt_tokens=prompt / number + extra.prompt_tokens,
        tokens=generated / number + extra.tokens,
        seconds=None if seconds is None else seconds / number + extra.seconds,
        loads=round(sum(loads) / max(1, len(loads))),
    )


def count_loads(rounds: Sequence[set[str]], catalog: Catalog) -> int:
    """Loads on a device that holds one model at a time, as in the paper's setting.

    Args:
        rounds: Experts of each round. Within a round the weights come in the best order.
        catalog: Tells who shares weights; what runs elsewhere is not loaded.
    """
    key_of = {
        alias: group.key
        for group in group_experts(catalog)
        if group.takes_turns
        for alias in group.aliases
    }
    needed = [{key_of[alias] for alias in experts if alias in key_of} for experts in rounds]
    # By the weights that are loaded at the end of a round, the fewest loads up to there.
    fewest: dict[str, int] = {"": 0}
    for weights in filter(None, needed):
        fewest = {
            last: min(
                # What is loaded already is asked first, unless it has to come last and is not alone.
                loads + len(weights) - (before in weights and (before != last or weights == {last}))
                for before, loads in fewest.items()
            )
            for last in weights
        }
    return min(fewest.values())


def _list_rounds(solutions: Sequence[Solution]) -> list[set[str]]:
    """The experts that were asked in each round."""
    rounds: dict[int, set[str]] = {}
    for solution in solutions:
        for expert in solution.experts:
            rounds.setdefault(_find_round(expert), set()).add(expert["expert"])
    return [rounds[number] for number in sorted(rounds)]


def _find_round(expert: Mapping[str, Any]) -> int:
    """In which round an expert was asked, the first being 0."""
    if "round" in expert:
        return int(expert["round"])
    grew = _GREW.match(expert["reason"])
    if grew is not None:
        return int(grew[1]) - 1
    return int("replaces" in expert)
