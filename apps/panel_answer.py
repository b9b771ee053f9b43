"""A panel's answer in words, and the details that come with it.

By default the content is an ordinary answer that a person can read:

1. the words of the model that merged the drafts, or else of the strongest expert that agrees with the
   verdict (none where options were only scored);
2. `Answer: …`, for choices with the option's text: what the panel settles on, always a line of its own;
3. a line in brackets: how sure the panel is, who agreed, who said something else, who failed.

With the form `answer` it is the second alone, without the word: `(B) Paris`, `42`, `Paris`. Where the caller
brought tools, the aggregator has the last word (`graph/closing.py`) and the content is its words alone.
Stop strings end what is told, not what the experts write: their answers have to be read first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..agents import Catalog, same_answer, strip_thinking
from ..agents.engines import Failure, Reply, Usage
from ..graph import Solution

__all__ = [
    "AGGREGATOR",
    "Finish",
    "Form",
    "PanelAnswer",
    "cut_at",
    "find_finish",
    "tell_answer",
    "tell_details",
]

Form = Literal["text", "answer"]
Finish = Literal["stop", "length", "tool_calls"]
AGGREGATOR = "(aggregator)"
"""No alias: whoever merged drafts, which it may have written one of."""
ANSWER_LINE = re.compile(r"^[\W_]*(?:final\s+)?answer[\W_]*:.*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelAnswer:
    """What came of one question."""

    solution: Solution
    cut: frozenset[str] = frozenset()
    """Experts, or `AGGREGATOR`, whose words `max_tokens` ended."""
    failures: Mapping[str, Failure] = field(default_factory=dict[str, Failure])
    """By expert."""
    speaker: str | None = None
    """Who has the last word, where somebody has: the aggregator, with the caller's tools."""
    closing: Reply | None = None
    """That last word. No failure: whoever asked for it has told that already."""

    @property
    def is_lost(self) -> bool:
        """Whether every expert failed and nobody spoke instead of them."""
        rows = self.solution.experts
        failed = all(row["error"] is not None for row in rows)
        return self.closing is None and self.solution.answer is None and failed

    @property
    def usage(self) -> Usage:
        """Tokens over all experts and the aggregator."""
        spent = Usage(**self.solution.row["usage"])
        return spent if self.closing is None else spent + self.closing.usage


def tell_answer(answer: PanelAnswer, catalog: Catalog, form: Form) -> tuple[str, Finish]:
    """The content of the message, and how its words ended."""
    if answer.closing is not None:
        return strip_thinking(answer.closing.text).strip(), find_finish(answer.closing)
    solution = answer.solution
    words = _tell_words(solution)
    if form == "answer":
        return words or "", "stop"
    speaker, prose = _find_prose(solution, catalog)
    finish: Finish = "length" if speaker in answer.cut else "stop"
    if words is None:
        told = "No answer: " + (
            "the panel is not sure enough." if solution.abstained else "none could be read."
        )
        # What a panel leaned to is no answer; what a model wrote that nobody can read may be one to a person.
        parts = [told] if solution.abstained else [prose, told]
    else:
        parts = [_drop_answer_line(prose), f"Answer: {words}"]
    return "\n\n".join([*filter(None, parts), f"({_tell_panel(solution)})"]), finish


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of some strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)]


def tell_details(answer: PanelAnswer) -> dict[str, Any]:
    """How the answer came about, as plain JSON values."""
    row = answer.solution.row
    told = ("answer", "confidence", "method", "abstained", "skills", "votes", "dissent", "missing")
    return {
        **{key: row[key] for key in told},
        "experts": [
            {key: expert[key] for key in ("expert", "reason", "answer")}
            for expert in row["experts"]
        ],
        "note": row["note"],
        "speaker": answer.speaker,
    }


def find_finish(reply: Reply) -> Finish:
    """How a reply ended."""
    if reply.tool_calls:
        return "tool_calls"
    return "length" if reply.finish == "length" else "stop"


def _tell_words(solution: Solution) -> str | None:
    """The answer itself: for choices the letter with its option."""
    answer, question = solution.answer, solution.question
    if answer is None or not question.options:
        return answer
    letter = answer.strip().upper()
    return f"({letter}) {question.options[question.letters.index(letter)]}"


def _find_prose(solution: Solution, catalog: Catalog) -> tuple[str, str]:
    """Whose words stand for the panel's, and what they are."""
    row, question = solution.row, solution.question
    if row["method"] == "model":
        return AGGREGATOR, strip_thinking(row["aggregation"]).strip()
    spoke = [e for e in row["experts"] if e["error"] is None]
    if solution.answer is not None:
        spoke = [e for e in spoke if same_answer(e["answer"], solution.answer, question)]
    # Experts that only scored the options have said nothing.
    spoke = [e for e in spoke if not (question.options and catalog[e["expert"]].style != "reason")]
    if not spoke:
        return "", ""
    best: Mapping[str, Any] = max(spoke, key=lambda e: e["weight"])
    return best["expert"], strip_thinking(best["text"]).strip()


def _drop_answer_line(text: str) -> str:
    """Prose without a last line that only states the answer: the panel's own follows."""
    lines = text.splitlines()
    return "\n".join(lines[:-1]).strip() if lines and ANSWER_LINE.match(lines[-1]) else text


def _tell_panel(solution: Solution) -> str:
    """For instance `72% sure; agreed: a, b; dissent: c: 41; failed: d`."""
    row = solution.row
    agreed = [who for shown, who in row["votes"].items() if shown == solution.answer]
    parts = [f"{solution.confidence:.0%} sure"] if row["chances"] else []
    parts += [f"agreed: {_list(who)}" for who in agreed]
    others = row["dissent"] if solution.answer is not None else row["votes"]
    said = [f"{_list(who)}: {shown}" for shown, who in others.items()]
    parts += [f"dissent: {', '.join(said)}"] if said else []
    parts += [f"unreadable: {_list(row['unread'])}"] if row["unread"] else []
    parts += [f"failed: {_list(list(row['missing']))}"] if row["missing"] else []
    return "; ".join(parts) or "nobody answered"


def _list(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))
