"""Asking the panel: which panels there are, one question out of a batch, and who has the last word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from ...agents import POLICIES, Policy
from ...agents.engines import Message
from ...graph import Resources, run_batch
from ...graph.closing import can_close, choose_speaker, close_with_tools
from ...retrieval import Question
from ..drawing import Drawing
from ..panel_answer import PanelAnswer
from .batch_pool import BatchPool, PanelEvent
from .batches import Collator, Hear
from .chat import read_question, to_messages
from .errors import ApiError, tell_failure
from .requests import PanelRequest
from .settings import PANEL_PREFIX, ServerSettings

if TYPE_CHECKING:
    from ...agents import Pool

__all__ = ["Asked", "Closing", "Panel", "Terms", "list_policies"]

NOBODY = (
    "tools: they need an aggregator, since experts never see a client's tools; ask expert/…, or start the "
    "server with --aggregator"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What requests must agree on to be asked together."""

    policy: Policy
    seed: int
    drawing: Drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """What the aggregator is to have the last word with."""

    turns: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    tool_choice: str
    most_calls: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question and the terms under which it is asked."""

    question: Question
    terms: Terms
    closing: Closing | None = None
    """None where the panel's own answer is wanted."""


class Panel:
    """Answers questions, those that come together in one pass of the graph.

    Args:
        resources: The panel as configured; its pool is open.
        settings: Window and size of a batch.
        note_batch: Called with the number of questions of every batch.
    """

    def __init__(
        self, resources: Resources, settings: ServerSettings, note_batch: Callable[[int], None]
    ) -> None:
        self.resources = resources
        self.models: Mapping[str, Policy] = _name_models(resources)
        """The policies by the name of the model that stands for each."""
        self._note_batch = note_batch
        self._collator = Collator[Terms, PanelAnswer](
            self._run, window=settings.window, most=settings.batch
        )

    def read(self, body: PanelRequest) -> Asked:
        """What a request asks; its model is one of `models`.

        Raises:
            ApiError: the conversation asks nothing, or brings tools that nobody here may see.
        """
        drawing = Drawing(
            temperature=body.temperature, top_p=body.top_p, most_tokens=body.most_tokens
        )
        seed = self.resources.seed if body.seed is None else body.seed
        terms = Terms(policy=self.models[body.model], seed=seed, drawing=drawing)
        return Asked(question=read_question(body), terms=terms, closing=self._read_closing(body))

    async def ask(self, asked: Asked, hear: Hear) -> PanelAnswer:
        """Answer a question, together with those that others ask at the same moment.

        Args:
            asked: From `read`.
            hear: Called with which experts begin and finish with it.

        Raises:
            ApiError: every expert failed, or whoever was to have the last word.
        """
        answer = await self._collator.ask(asked.terms, asked.question, hear)
        if asked.closing is not None:
            answer = await self._close(asked, asked.closing, answer, hear)
        if answer.is_lost and answer.failures:
            raise tell_failure(answer.failures)
        return answer

    def _read_closing(self, body: PanelRequest) -> Closing | None:
        if not body.tools or body.choice == "none":
            return None
        if not can_close(self.resources):
            raise ApiError(400, NOBODY, param="tools", code="unsupported_parameter")
        return Closing(
            turns=to_messages(body.messages),
            tools=body.specs,
            tool_choice=body.choice,
            most_calls=body.most_calls,
        )

    async def _close(
        self, asked: Asked, closing: Closing, answer: PanelAnswer, hear: Hear
    ) -> PanelAnswer:
        """The answer with the aggregator's last word. Each request has its own; engines batch them."""
        terms, solution = asked.terms, answer.solution
        pool = BatchPool(self.resources.pool, terms.drawing, lambda _, event: hear(event))
        resources = replace(self.resources, pool=cast("Pool", pool), seed=terms.seed)
        reply = await close_with_tools(
            resources,
            closing.turns,
            solution,
            tools=closing.tools,
            tool_choice=closing.tool_choice,
        )
        speaker = choose_speaker(resources, solution.skills)
        if reply.failure is not None:
            failures = pool.failures.get(solution.question.id, {speaker: reply.failure})
            raise tell_failure(failures)
        reply = replace(reply, tool_calls=reply.tool_calls[: closing.most_calls])
        return replace(answer, speaker=speaker, closing=reply)

    async def _run(
        self,
        terms: Terms,
        questions: Sequence[Question],
        tell: Callable[[str, PanelEvent], None],
    ) -> Mapping[str, PanelAnswer]:
        self._note_batch(len(questions))
        pool = BatchPool(self.resources.pool, terms.drawing, tell)
        resources = replace(
            self.resources, pool=cast("Pool", pool), policy=terms.policy, seed=terms.seed
        )
        solutions = await run_batch(questions, resources)
        return {
            solution.question.id: PanelAnswer(
                solution=solution,
                cut=frozenset(who for qid, who in pool.cut if qid == solution.question.id),
                failures=pool.failures.get(solution.question.id, {}),
            )
            for solution in solutions
        }


def list_policies(resources: Resources) -> tuple[Policy, ...]:
    """The policies by which this panel can recruit, by name.

    Without a profile every policy draws at random, so only `random` is offered. `knn` needs an index,
    which only a panel that is configured for it has. `paper-trimmed` looks at the whole batch, which on
    a server is whoever happened to ask.
    """
    if resources.expertise is None:
        return ("random",)
    lacking: set[str] = {"paper-trimmed"} - {resources.policy}
    if resources.expertise.references is None:
        lacking.add("knn")
    return tuple(policy for policy in POLICIES if policy not in lacking)


def _name_models(resources: Resources) -> dict[str, Policy]:
    models: dict[str, Policy] = {}
    models[f"{PANEL_PREFIX}auto"] = resources.policy
    for policy in list_policies(resources):
        models[f"{PANEL_PREFIX}{policy}"] = policy
    return models
