"""A table at which scripted experts talk, and whose strength is known: a before b before c before d."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from expertmix.agents import Beliefs, Expertise, OutcomeTable, Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import Resources, Solution
from expertmix.graph.methods import Method, answer_with
from expertmix.retrieval import Question

ALIASES = ("a", "b", "c", "d")
QUESTION = Question(
    id="q", text="Which is red?", options=("grass", "blood", "sky"), gold="B", kind="choice"
)
Lines = Mapping[str, Sequence[str]]


def rank_experts() -> Expertise:
    """Of 40 references, a got 36 right, b 32, c 28 and d 24."""
    labels_NE = np.ones((40, 4), np.int16)
    for column, wrong in enumerate((4, 8, 12, 16)):
        labels_NE[:wrong, column] = 0
    table = OutcomeTable(
        experts=ALIASES,
        questions=tuple(f"r{i}" for i in range(40)),
        labels_NE=labels_NE,
        gold_N=np.ones(40, np.int16),
        options_N=np.full(40, 3, np.int16),
        skills=({},) * 40,
    )
    return Expertise(table=table, beliefs=Beliefs.fit(table))


@dataclass
class Table:
    """Experts that say their lines one after the other, whatever they are asked."""

    engines: dict[str, ScriptedEngine] = field(default_factory=dict[str, ScriptedEngine])
    said: list[tuple[str, Request]] = field(default_factory=list[tuple[str, Request]])
    """Who was asked what, in order."""

    def arrange(self, pool: Pool, **changes: Any) -> Resources:
        """The context in which their strength is known."""
        settings: dict[str, Any] = {"expertise": rank_experts(), "seed": 5, **changes}
        return Resources(pool=pool, **settings)

    async def talk(
        self, method: Method, lines: Lines, *, question: Question = QUESTION, **changes: Any
    ) -> Solution:
        """Have a question answered, and remember what was asked."""
        counts = dict.fromkeys(lines, 0)

        def speak(alias: str) -> Callable[[Request], str]:
            def say(request: Request) -> str:
                self.said.append((alias, request))
                counts[alias] += 1
                return lines[alias][(counts[alias] - 1) % len(lines[alias])]

            return say

        self.engines = {alias: ScriptedEngine(alias, speak(alias)) for alias in lines}
        async with Pool.from_engines(self.engines) as pool:
            [solution] = await answer_with(method, [question], self.arrange(pool, **changes))
        return solution

    @property
    def askings(self) -> list[str]:
        """Who was asked, in order."""
        return [alias for alias, _ in self.said]

    def turns(self, at: int) -> list[tuple[str, str]]:
        """Role and words of each turn of what was asked at some place."""
        return [(turn["role"], turn["content"]) for turn in self.said[at][1].messages]

    def temperatures(self) -> list[float]:
        """At which each request was drawn."""
        return [request.sampling.temperature for _, request in self.said]


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def everyone() -> dict[str, Sequence[str]]:
    """Lines in which all agree."""
    return {alias: ["Red is blood.\nAnswer: (B)"] for alias in ALIASES}
