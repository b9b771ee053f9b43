"""Who speaks for a panel: harnesses take one text, and a panel has several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...agents import same_answer
from ...graph import Solution

__all__ = ["Saying", "choose_spokesman", "find_loss", "speak"]

Saying = Literal["answer", "text"]
"""`answer`: the panel's answer alone, a letter, a number or a short text. `text`: all that its spokesman
wrote, which is what scorers of whole texts (instructions followed, code) want to see."""


def choose_spokesman(solution: Solution) -> Mapping[str, Any] | None:
    """The strongest expert that gave the panel's answer, as its row in the solution.

    Strength is the weight with which it was recruited; of equals the first recruited. Where the panel has
    no answer (it abstained, or nothing could be read), the strongest expert that replied at all.

    Returns:
        None if nobody replied, or if the answer is one that only the aggregating model gave.
    """
    replied = [row for row in solution.experts if row["error"] is None]
    if solution.answer is not None:
        question = solution.question
        replied = [r for r in replied if same_answer(r["answer"], solution.answer, question)]
    return max(replied, key=lambda row: row["weight"], default=None)


def speak(solution: Solution, saying: Saying = "answer", *, stops: Sequence[str] = ()) -> str:
    """What a panel says to a question, up to the first of `stops`; empty where it has no answer.

    With `text`, an answer that only the aggregating model gave comes in that model's words. A panel that
    abstained says nothing either way.
    """
    text = "" if solution.abstained else _find_text(solution, saying)
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)]


def find_loss(solution: Solution) -> str | None:
    """Why nobody could answer a question, where every expert failed; one that replied is enough for None."""
    errors = [row["error"] for row in solution.experts]
    return errors[0] if errors and all(errors) else None


def _find_text(solution: Solution, saying: Saying) -> str:
    if saying == "answer":
        return solution.answer or ""
    spokesman = choose_spokesman(solution)
    text = solution.row["aggregation"] if spokesman is None else spokesman["text"]
    return text or solution.answer or ""
