"""Every way to answer that can be compared, at the size that a number of calls allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..agents import Adaptive
from ..retrieval import InputError, Question
from .baselines import (
    Debate,
    KnnRouter,
    Majority,
    MixedDebate,
    MixtureOfAgents,
    Oracle,
    RandomPanel,
    ReConcile,
    SelfConsistency,
    SelfMoA,
    SelfRefine,
    SingleBest,
    SymbolicMoE,
    Talk,
    Turn,
    create_talk,
    read_turns,
)
from .baselines.conversation import STEPS
from .build import create_graph
from .collector import few_collections
from .result import Solution
from .solve import make_row
from .state import PanelInput, Resources

__all__ = [
    "BOUNDS",
    "METHODS",
    "OURS",
    "AdaptivePanel",
    "Method",
    "Panel",
    "answer_with",
    "fit_method",
]


@dataclass(frozen=True)
class Panel:
    """Experts recruited by skill, answers weighed by what the profile says of who gave them."""

    k: int = 3

    name = "panel"
    title = "recruited by skill, weighed"
    source = "expertmix (after Symbolic-MoE, arXiv 2503.05641)"
    speaks = False
    needs_skills = True

    @property
    def calls(self) -> int:
        """One per expert."""
        return self.k

    @classmethod
    def fit(cls, calls: int, experts: int) -> Panel | None:
        """Always."""
        return cls(k=min(calls, experts))

    def arrange(self, context: Resources) -> Resources:
        """The context of a panel of this size."""
        return replace(_plain(context), k=self.k)


@dataclass(frozen=True)
class AdaptivePanel:
    """The same panel, which grows where its members disagree; its calls are a mean over the batch."""

    mean: int = 3
    experts: int = 16

    name = "adaptive"
    title = "recruited by skill, more experts only in disputes"
    source = "expertmix"
    speaks = False
    needs_skills = True

    @property
    def calls(self) -> int:
        """On average."""
        return self.mean

    @classmethod
    def fit(cls, calls: int, experts: int) -> AdaptivePanel | None:
        """Where there is a choice whom to ask further."""
        return cls(mean=calls, experts=experts) if 2 <= calls < experts else None

    def arrange(self, context: Resources) -> Resources:
        """The context of a panel with this mean."""
        limits = Adaptive.of_mean(float(self.mean), self.experts)
        return replace(_plain(context), adaptive=limits)


def _plain(context: Resources) -> Resources:
    """Without what would make further calls or leave a question open: a pool file may ask for an aggregator."""
    return replace(
        context,
        policy="skill",
        merging="posterior",
        adaptive=None,
        aggregator=None,
        aggregators=None,
        abstain_below=0.0,
    )


Method = Panel | AdaptivePanel | Talk
KINDS: tuple[type[Panel] | type[AdaptivePanel] | type[Talk], ...] = (
    Panel,
    AdaptivePanel,
    SingleBest,
    KnnRouter,
    Majority,
    SelfConsistency,
    SelfRefine,
    Debate,
    MixedDebate,
    MixtureOfAgents,
    SelfMoA,
    ReConcile,
    RandomPanel,
    SymbolicMoE,
    Oracle,
)
METHODS = tuple(kind.name for kind in KINDS)
"""In the order in which tables show them."""
OURS = (Panel.name, AdaptivePanel.name)
BOUNDS = (Oracle.name,)


def fit_method(name: str, *, calls: int, experts: int) -> Method | None:
    """The largest form of a method that makes at most so many calls per question.

    Args:
        name: One of `METHODS`.
        calls: Calls per question. The oracle asks everybody whatever it is.
        experts: How many there are.

    Returns:
        None if the method cannot work with so few calls or experts.

    Raises:
        InputError: there is no such method.
    """
    for kind in KINDS:
        if kind.name == name:
            return kind.fit(calls, experts)
    raise InputError(f'there is no method "{name}"; there are {", ".join(METHODS)}')


async def answer_with(
    method: Method, questions: Sequence[Question], context: Resources
) -> list[Solution]:
    """Answer a batch with a method; in one pass of its graph.

    A row says of every answer who gave it, in conversations also in which `round` and as which `agent`.

    Raises:
        InputError: the method needs a profile and there is none.
    """
    asked: PanelInput = {"questions": {question.id: question.to_json() for question in questions}}
    with few_collections(len(questions)):
        if not isinstance(method, Talk):
            if context.expertise is None:
                raise InputError(
                    f"the method {method.name} needs a profile: give one with --profile"
                )
            state = await create_graph().ainvoke(asked, context=method.arrange(context))
            return [Solution(question=q, row=make_row(q, state)) for q in questions]
        state = await create_talk(method).ainvoke(
            asked, context=context, config={"recursion_limit": STEPS}
        )
        said = read_turns(state)
        return [Solution(question=q, row=_tell(q, state, said.get(q.id, []))) for q in questions]


def _tell(question: Question, state: Mapping[str, Any], turns: Sequence[Turn]) -> dict[str, Any]:
    """A row in which each turn stands beside the recruit who took it."""
    recruits = state["recruits"][question.id]
    experts: list[dict[str, Any]] = []
    for turn in turns:
        here = [r for r in recruits if r["expert"] == turn.expert]
        cast = here[0] if here else {"expert": turn.expert, "weight": 0.0, "reason": ""}
        experts.append({**cast, **turn.to_json()})
    return make_row(question, state, experts)
