"""The strongest expert answers, criticises its own answer, and improves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...agents.drafts import clean_draft, draw_fence, quote_drafts
from ...agents.engines import Request
from ...agents.prompt import fill_prompt
from ...retrieval import Question
from ..state import Resources
from .speech import ask_again, ask_first, ask_in_words, chooses, plain_words
from .talk import Cast, Skills, Talk, cast_strongest
from .turns import Seat, Turn, answers_of

__all__ = ["SelfRefine"]

DONE = "no changes needed"
"""What the prompt asks for where nothing is wrong; the talk ends there."""


@dataclass(frozen=True)
class SelfRefine(Talk):
    """Answer, feedback, refinement, again; by one expert (Madaan et al. 2023, arXiv 2303.17651, §2).

    At most four iterations, at temperature 0.7 (§3.2), and earlier where the feedback finds nothing to change.
    Feedback is always written. A refinement that cannot be read leaves the answer before it.
    """

    iterations: int = 2

    name = "self_refine"
    title = "the strongest expert criticises and improves its own answer"
    source = "Self-Refine, arXiv 2303.17651 (temperature 0.7, at most 4 iterations)"
    speaks = True

    @property
    def calls(self) -> int:
        """One answer, and two calls per iteration."""
        return 1 + 2 * self.iterations

    @classmethod
    def fit(cls, calls: int, experts: int) -> Self | None:
        """From one iteration on, which takes three calls."""
        return cls(iterations=min((calls - 1) // 2, 4)) if calls >= 3 else None

    def cast(self, context: Resources, questions: Sequence[Question], skills: Skills) -> Cast:
        """The strongest on the profile."""
        return cast_strongest(context, questions, 1)

    def seat(self, question: Question, cast: Sequence[str], turns: Sequence[Turn]) -> list[Seat]:
        """Answer, then feedback and answer in turns, until the feedback is content."""
        if not turns:
            return [Seat(agent=0, expert=cast[0])]
        last = turns[-1]
        if last.kind == "feedback":
            content = last.error is not None or DONE in last.text.casefold()
            return [] if content else [Seat(agent=0, expert=cast[0])]
        if last.error is not None or last.round >= 2 * self.iterations:
            return []
        return [Seat(agent=0, expert=cast[0], kind="feedback")]

    def pose(
        self,
        context: Resources,
        question: Question,
        seat: Seat,
        cast: Sequence[str],
        turns: Sequence[Turn],
    ) -> Request:
        """The plain question; its answer to be criticised; or question, answer and criticism."""
        if not turns:
            return ask_first(context, question, seat, cast)
        number = turns[-1].round + 1
        if seat.kind == "feedback":
            fence, draft = quote_drafts(question, answers_of([turns[-1]]), context.seed)
            words = fill_prompt(
                "talk-feedback", question=plain_words(question), fence=fence, draft=draft
            )
            return ask_in_words(context, question, seat, round_=number, words=words)
        feedback = clean_draft(turns[-1].text)
        fence = draw_fence(question, [feedback], context.seed)
        told = fill_prompt("talk-refine", fence=fence, feedback=feedback)
        if chooses(context, question, seat):  # it is shown no history, so the answer comes along
            shown, draft = quote_drafts(question, answers_of([turns[-2]]), context.seed)
            told = f"{fill_prompt('talk-drafts', fence=shown, drafts=draft)}\n\n{told}"
        history = [(turns[-2].text, told)]
        return ask_again(
            context, question, seat, (*cast, *cast), round_=number, words=told, history=history
        )
