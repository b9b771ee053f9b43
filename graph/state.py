"""What flows through the graph: a batch of questions, and what is known about each.

All values are plain JSON (strings, numbers, lists, dicts), so that any checkpointer can keep them under
strict msgpack. Everything that is live (the pool, extractors, profiles) comes in through `Resources`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from typing_extensions import TypedDict

from ..agents import AnswerStyle, Policy, Pool, Profile, SkillExtractor
from ..retrieval import Question

__all__ = [
    "FORGET",
    "Answered",
    "Asked",
    "ExpertBatch",
    "PanelInput",
    "PanelOutput",
    "PanelState",
    "Recruited",
    "Resources",
    "Skilled",
    "Started",
    "merge_answers",
    "read_questions_of",
]

Json = dict[str, Any]
FORGET = ""
"""No expert's name: an update of the answers with this key begins anew."""


def merge_answers(old: Mapping[str, Json], new: Mapping[str, Json]) -> dict[str, Json]:
    """Reducer: answers by expert, then by `question#sample`; a repeated answer replaces itself.

    So a node that is retried or resumed cannot make an answer count twice, and the result does not
    depend on who finishes first. Costs O(experts), not O(answers), when experts differ.
    """
    merged = {} if FORGET in new else dict(old)
    for expert in new.keys() - {FORGET}:
        answers = new[expert]
        merged[expert] = {**merged[expert], **answers} if expert in merged else answers
    return merged


class Asked(TypedDict):
    """A batch: `Question.to_json()` by question id."""

    questions: dict[str, Json]


class Skilled(TypedDict):
    """Skills by question id; an empty list where none could be told."""

    skills: dict[str, list[str]]


class Started(Skilled):
    """Skills, and no answers yet."""

    answers: Annotated[dict[str, Json], merge_answers]


class Recruited(TypedDict):
    """`Recruit.to_json()` lists by question id, the most promising first."""

    recruits: dict[str, list[Json]]


class Answered(TypedDict):
    """`Answer.to_json()` by expert, then by `question#sample`."""

    answers: Annotated[dict[str, Json], merge_answers]


class ExpertBatch(TypedDict):
    """What one `Send` carries: everything that one expert was recruited for."""

    expert: str
    questions: list[Json]


class PanelInput(Asked):
    """What the graph takes."""


class PanelOutput(TypedDict):
    """What the graph gives: `Verdict.to_json()` by question id, and how it came about."""

    skills: dict[str, list[str]]
    recruits: dict[str, list[Json]]
    answers: Annotated[dict[str, Json], merge_answers]
    verdicts: dict[str, Json]


class PanelState(Asked, Skilled, Recruited, Answered):
    """Everything."""

    verdicts: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the nodes work with: the graph's runtime context. Nothing of it is ever checkpointed."""

    pool: Pool
    """Open; the graph does not close it."""
    extractor: SkillExtractor | None = None
    """Tells what a question needs; None leaves every question without skills."""
    profile: Profile | None = None
    """Who is good at what; None recruits at random."""
    k: int = 3
    """Experts per question."""
    samples: int = 1
    """Answers per expert and question."""
    policy: Policy = "skill"
    aggregator: str | None = None
    """Alias of the expert that merges drafts where the panel disagrees; None votes."""
    experts: tuple[str, ...] = ()
    """Aliases to recruit from; empty means the whole pool."""
    style: AnswerStyle | None = None
    """Overrides every expert's own style."""
    seed: int = 0


def read_questions_of(state: Asked) -> list[Question]:
    """The batch's questions, in its order."""
    return [Question.from_json(row) for row in state["questions"].values()]
