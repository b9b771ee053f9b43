"""One question put to the panel by another program, within limits: the tool and the MCP server ask through this."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ..graph import Resources, Solution, create_graph, run_batch
from ..graph.cancelling import cancel_once
from ..graph.solve import make_row
from ..retrieval import InputError, Question
from .limits import check_calls, check_panels
from .opinion import distinct, list_names

__all__ = [
    "AskedQuestion",
    "Consultant",
    "Hear",
    "Unanswered",
    "explain_arguments",
    "refuse_experts",
]

Hear = Callable[[Mapping[str, Any]], Awaitable[None]]
"""What is called with each event of the graph, in the event loop of whoever asks."""

MOST_CHARACTERS = 20_000
"""Of a question."""
OPTION_CHARACTERS = 2_000

_asking: ContextVar[bool] = ContextVar("expertmix_asking", default=False)
"""Whether what runs here was asked by a panel: an expert that is an agent may have the panel as a tool."""


class AskedQuestion(BaseModel):
    """Ask the panel of experts one question."""

    question: str = Field(
        min_length=1,
        max_length=MOST_CHARACTERS,
        description=(
            "The question, complete in itself: the experts see nothing else, neither the conversation nor "
            "files nor the web. Include every fact and number that they need."
        ),
    )
    options: list[str] | None = Field(
        default=None,
        min_length=2,
        max_length=26,
        description=(
            "For a multiple-choice question its 2 to 26 options, each the text alone, without a letter. The "
            "answer is then a letter: A for the first. Leave it out for open questions."
        ),
    )
    kind: Literal["choice", "number", "text"] | None = Field(
        default=None,
        description=(
            "What the answer is: `choice` (only with options), `number` (a number or an expression), `text` "
            "(a few words). Leave it out if unsure."
        ),
    )

    def to_question(self) -> Question:
        """The question as the panel is asked it. The same question has the same id, and so the same draws.

        Raises:
            InputError: text, options and kind do not fit together.
        """
        row: dict[str, Any] = {"text": self.question, "options": self.options, "kind": self.kind}
        for number, option in enumerate(self.options or (), 1):
            if not option.strip() or len(option) > OPTION_CHARACTERS:
                raise InputError(
                    f"option {number} has {len(option)} characters; between 1 and {OPTION_CHARACTERS} "
                    "are possible"
                )
        digest = hashlib.sha256(json.dumps(row).encode()).hexdigest()
        # Half a surrogate pair can be neither hashed nor checkpointed further on.
        clean = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        return Question.from_json({**clean, "id": f"q-{digest[:20]}"})


class Unanswered(Exception):
    """There is no answer, and what whoever asked had better do now."""


class Consultant:
    """Puts questions to a panel within limits. Safe to use from several threads and event loops at once.

    Args:
        resources: The panel.
        owned: Whether its pool is closed by `close`; it is opened when first needed in any case.
        max_calls: The most calls that the panel may make for one question, failures aside.
        seconds: The most that one question may take, loading included.

    Raises:
        InputError: the panel may make too many calls, or an expert of it is a panel.
    """

    def __init__(
        self,
        resources: Resources,
        *,
        owned: bool = False,
        max_calls: int = 16,
        seconds: float = 600.0,
    ) -> None:
        check_calls(resources, max_calls)
        check_panels(resources.pool.catalog.values())
        if seconds <= 0:
            raise InputError(f"seconds is {seconds:g}; a question needs some time")
        self.resources = resources
        self._owned = owned
        self._seconds = seconds
        self._opening = threading.Lock()

    async def ask(self, question: Question, hear: Hear | None = None) -> Solution:
        """The panel's answer.

        Args:
            question: From `AskedQuestion.to_question`.
            hear: Told meanwhile what the experts do.

        Raises:
            Unanswered: every expert failed, the time is up, or it is an expert of a panel that asks.
        """
        refuse_experts()
        await asyncio.to_thread(self._open)
        token = _asking.set(True)
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                solution = await cancel_once(self._put(question, hear))
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unanswered(
                f"The experts gave no answer within {self._seconds:g} seconds. Do not repeat the question: "
                "answer without them, or ask something shorter."
            ) from None
        finally:
            _asking.reset(token)
        if solution.answer is None and all(row["error"] is not None for row in solution.experts):
            raise Unanswered(
                f"All experts failed ({list_names(distinct(solution.row['missing']))}). Do not repeat the "
                "question: answer without them, and say that they could not be asked."
            )
        return solution

    def close(self) -> None:
        """Unload what was loaded, if the pool is ours. Safe to call twice; a later question opens it again."""
        if self._owned:
            with self._opening:
                self.resources.pool.close()

    async def _put(self, question: Question, hear: Hear | None) -> Solution:
        if hear is None:
            return (await run_batch([question], self.resources))[0]
        state: dict[str, Any] = {}
        stream: AsyncIterator[Any] = create_graph().astream(
            {"questions": {question.id: question.to_json()}},
            context=self.resources,
            stream_mode=["custom", "values"],
        )
        async for mode, told in stream:
            if mode == "values":
                state = told
            else:
                await hear(told)
        return Solution(question=question, row=make_row(question, state))

    def _open(self) -> None:
        with self._opening:  # many may come at the beginning
            self.resources.pool.open()


def refuse_experts() -> None:
    """End the recursion where an expert is an agent that asks the panel in turn.

    Raises:
        Unanswered: what runs here was asked by a panel.
    """
    if _asking.get():
        raise Unanswered(
            "You are an expert of this panel: it waits for your own answer and cannot be asked. Answer the "
            "question yourself."
        )


def explain_arguments(error: ValidationError) -> str:
    """What is wrong with arguments, for the model that chose them; they are not quoted."""
    told = "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()[:5]
    )
    return f"The arguments cannot be used ({told}). Correct them and call the tool again."
