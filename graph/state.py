"""What flows through the graph: a batch of questions, and what is known about each.

All values are plain JSON (strings, numbers, lists, dicts), so that any checkpointer can keep them under
strict msgpack. Everything that is live (the pool, extractors, profiles) comes in through `Resources`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, cast

from typing_extensions import TypedDict

from ..agents import (
    Adaptive,
    AggregatorScores,
    AnswerStyle,
    Cost,
    Expertise,
    Policy,
    Pool,
    SkillExtractor,
)
from ..retrieval import InputError, Question

__all__ = [
    "FORGET",
    "NO_RESOURCES",
    "Answered",
    "Asked",
    "Begun",
    "Decided",
    "ExpertBatch",
    "PanelInput",
    "PanelOutput",
    "PanelState",
    "Recruited",
    "Resources",
    "Skilled",
    "Started",
    "check_questions",
    "merge_answers",
    "read_questions_of",
]

Json = dict[str, Any]
NO_RESOURCES = (
    "the panel has no resources: give them to the run (`context=resources`), or bind them with "
    "`create_graph(resources)`, which update_state needs"
)
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
    """Skills with their shares by question id, the most needed first; empty where none could be told."""

    skills: dict[str, dict[str, float]]


class Recruited(TypedDict):
    """`Recruit.to_json()` lists by question id, the most promising first, and how often it was recruited."""

    recruits: dict[str, list[Json]]
    round: int


class Decided(TypedDict):
    """What a person said of the plan, where one was asked."""

    barred: list[str]
    """Experts that are not to be asked."""
    refusal: str
    """Why nobody is to be asked; empty if the plan was approved."""


class Started(Asked, Skilled, Recruited):
    """Questions, checked and complete; their skills; no recruits and no answers yet."""

    answers: Annotated[dict[str, Json], merge_answers]


class Begun(Started, Decided):
    """That, and nothing decided yet."""

    verdicts: dict[str, Json]


class Answered(TypedDict):
    """`Answer.to_json()` by expert, then by `question#sample`."""

    answers: Annotated[dict[str, Json], merge_answers]


class ExpertBatch(TypedDict):
    """What one `Send` carries: everything that one expert was recruited for."""

    expert: str
    questions: list[Json]
    draws: dict[str, int]
    """Question id to the number of times that the expert was drawn for it, where that is not once."""
    key: NotRequired[str]
    """What the answers depend on, for a graph with a cache."""


class PanelInput(Asked):
    """What the graph takes."""


class PanelOutput(TypedDict):
    """What the graph gives: `Verdict.to_json()` by question id, and how it came about."""

    skills: dict[str, dict[str, float]]
    recruits: dict[str, list[Json]]
    answers: Annotated[dict[str, Json], merge_answers]
    verdicts: dict[str, Json]


class PanelState(Asked, Skilled, Recruited, Decided, Answered):
    """Everything."""

    verdicts: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the nodes work with: the graph's runtime context. Nothing of it is ever checkpointed."""

    pool: Pool
    """Open; the graph does not close it."""
    extractor: SkillExtractor | None = None
    """Tells what a question needs; None leaves every question without skills."""
    expertise: Expertise | None = None
    """Who is good at what; None recruits at random and votes."""
    k: int = 3
    """Experts per question; an adaptive panel starts with `adaptive.first` instead."""
    adaptive: Adaptive | None = None
    """Ask more experts only about questions that are still undecided; needs `expertise`."""
    samples: int = 1
    """Answers per expert and question."""
    expert_seconds: float | None = None
    """Seconds that one expert may take for all that it is asked in a round, loading included. What has not
    come by then counts as failed; what has come stays."""
    policy: Policy = "skill"
    substitute: bool = True
    """Whether an expert that failed is replaced by the next best for the questions that it owes."""
    cost: Cost = field(default_factory=Cost)
    """What calls cost, for the policy `skill` and adaptive panels."""
    merging: Literal["posterior", "vote"] = "posterior"
    """`posterior` weighs each answer by what is known about its experts; it needs `expertise`."""
    aggregator: str | None = None
    """Alias of the expert that merges drafts where the panel disagrees; None leaves it at `merging`."""
    aggregators: AggregatorScores | None = None
    """Benchmarked aggregators; each question goes to the best at its skills unless `aggregator` names one."""
    abstain_below: float = 0.0
    """Confidence below which a question gets no answer."""
    experts: tuple[str, ...] = ()
    """Aliases to recruit from; empty means the whole pool."""
    style: AnswerStyle | None = None
    """Overrides every expert's own style."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what can never work.

        Raises:
            InputError: numbers out of range.
        """
        if self.k < 1 or self.samples < 1:
            raise InputError(f"k is {self.k} and samples is {self.samples}; both are 1 or more")
        if self.expert_seconds is not None and not self.expert_seconds > 0:
            raise InputError(
                f"expert_seconds is {self.expert_seconds:g}; give more than 0, or None"
            )

    def choose_aggregator(self, skills: Mapping[str, float]) -> str | None:
        """The alias of the model that merges drafts of a question with these skills; None without one."""
        if self.aggregator is not None or self.aggregators is None:
            return self.aggregator
        return self.aggregators.choose(skills)


def check_questions(state: Asked) -> dict[str, Question]:
    """What came into the graph from outside, as questions by id. One without an id gets its key.

    Raises:
        InputError: as `Question.from_json`; no questions by id, or one under another's id.
    """
    given = cast("object", state.get("questions"))
    if not isinstance(given, Mapping):
        raise InputError('the graph takes {"questions": {ID: {"text": …}}}, as `Question.to_json`')
    questions: dict[str, Question] = {}
    for qid, row in cast("Mapping[str, Any]", given).items():
        try:
            question = Question.from_json(row, default_id=qid)
        except InputError as error:
            raise InputError(f'question "{qid}": {error}') from None
        if question.id != qid:
            raise InputError(f'question "{question.id}" stands under the key "{qid}"; use its id')
        questions[qid] = question
    return questions


def read_questions_of(state: Asked) -> list[Question]:
    """The batch's questions, in its order, once the first node has checked them."""
    return [Question.restore(row) for row in state["questions"].values()]
