"""How an expert is asked a question, and what is made of its reply.

The same words serve profiling and answering: a profile made under another prompt would say nothing
about the expert that is used (the reference code does that, symbolic-moe.md §2, point 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..retrieval import TASKS, Question, find_task
from .answers import read_answer, strip_thinking
from .engines import Message, Reply, Request, Sampling, Usage
from .prompt import fill_prompt, hash_prompts

__all__ = [
    "Answer",
    "AnswerStyle",
    "build_messages",
    "build_requests",
    "derive_seed",
    "read_reply",
    "reason_prompt_hash",
]

AnswerStyle = Literal["reason", "score", "letter"]
"""`reason`: the expert writes and its answer is read out of the text. `score`: a choice is the option
that the expert finds likeliest (largest summed log-probability) as the answer to the bare question; nothing is
written. Small models choose far better so: SmolLM2-135M got 109 of 200 ARC-Easy questions right, and 55
when the options were listed and their letters compared. `letter`: the options are listed, and the likeliest
letter is the answer, a decision of one token: what re-mixing works on. Questions without options are
always reasoned.

A question of a benchmark set (`Question.task`) is asked in the set's own words under `reason`. `score` and
`letter` ask every question in the same words: `score` is what the harness does with ARC and OpenBookQA
(`Question: …`, `Answer:`, the summed log-probability of each option), `letter` what MMLU's authors do but
for their line about the subject, and the other sets are evaluated by what is written."""

SCORE_LEAD = "Answer:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one expert said to one question, once."""

    question_id: str
    expert: str
    sample: int = 0
    answer: str | None = None
    """Canonical: a letter, a number, a short text; None when none could be read or the expert failed."""
    text: str = ""
    """The whole reply. It is model output: untrusted data, wherever it is shown."""
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    """Why the expert has no reply, in one sentence."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    """What the engine tells of how the reply came about (re-mixing), as plain JSON values."""

    def to_json(self) -> dict[str, Any]:
        """The answer as plain JSON values; `details` only where there are any."""
        told = {"details": dict(self.details)} if self.details else {}
        return {
            "question_id": self.question_id,
            "expert": self.expert,
            "sample": self.sample,
            "answer": self.answer,
            "text": self.text,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "error": self.error,
            **told,
        }


def build_messages(question: Question, *, style: AnswerStyle = "reason") -> tuple[Message, ...]:
    """The chat that asks `question`: one user turn (the pool puts an expert's persona before it).

    With style `score`, options are not shown, and an assistant turn follows that each of them continues;
    with `letter` they are, and their letters continue it. A question of a benchmark set whose answer
    is to be written is asked in the words of `prompts/task-TASK.md`.

    Raises:
        InputError: the question's task is not known.
    """
    # Where a letter is to follow "Answer:", listing them bare leaves nearly all probability on letters:
    # 0.99 of it with `A.`, 0.44 with `(A)` (a 1.5B model, 40 ARC-Easy questions, equal accuracy).
    listing = "{}. {}" if style == "letter" else "({}) {}"
    options = "\n".join(map(listing.format, question.letters, question.options))
    values = {"question": question.text, "options": options}
    if style != "reason" and question.options:
        asked: Message = {"role": "user", "content": fill_prompt(f"{style}-choice", **values)}
        return asked, {"role": "assistant", "content": SCORE_LEAD}
    if question.task:
        return ({"role": "user", "content": _ask_officially(question)},)
    return ({"role": "user", "content": fill_prompt(f"reason-{question.kind}", **values)},)


def _ask_officially(question: Question) -> str:
    """The question in the words of its benchmark set; docs/tasks.md says whose they are."""
    task = find_task(question.task)
    listing = "{}) {}" if task.name == "gpqa" else "{}. {}"
    subject = question.skills[0].replace("_", " ") if question.skills else ""
    return fill_prompt(
        f"task-{task.name}",
        question=question.text,
        options="\n".join(map(listing.format, question.letters, question.options)),
        letters=question.letters,
        subject=f" about {subject}" if subject else "",
    )


def build_requests(
    questions: Sequence[Question],
    *,
    sampling: Sampling,
    style: AnswerStyle = "reason",
    samples: int = 1,
    seed: int = 0,
) -> list[Request]:
    """One request per question and sample, with ids `QUESTION#SAMPLE`.

    Seeds depend on (seed, question, sample) alone, so neither order nor batch changes an answer.
    """
    return [
        Request(
            id=f"{question.id}#{sample}",
            messages=build_messages(question, style=style),
            sampling=replace(sampling, seed=derive_seed(seed, question.id, sample)),
            options=_continuations(question, style),
            question_id=question.id,
            question=question,
        )
        for question in questions
        for sample in range(samples)
    ]


def _continuations(question: Question, style: AnswerStyle) -> tuple[str, ...]:
    """What is scored after the prompt, in the options' order; nothing where the expert writes."""
    if style == "reason":
        return ()
    return tuple(
        f" {text}" for text in (question.letters if style == "letter" else question.options)
    )


def read_reply(reply: Reply, question: Question, expert: str) -> Answer:
    """Turn an engine's reply to a request of `build_requests` into the expert's answer."""
    sample = int(reply.request_id.rpartition("#")[2])
    if reply.failure is not None:
        return Answer(
            question_id=question.id, expert=expert, sample=sample, error=reply.failure.message
        )
    if reply.scores:
        # Summed: of sum, mean per token, mean per character and difference to the bare prior, the sum
        # was best for two small models on 200 ARC-Easy questions (0.55 and 0.59; means 0.46 to 0.57).
        sums = [score.logprob for score in reply.scores]
        letter = question.letters[max(range(len(sums)), key=sums.__getitem__)]
        listing = ", ".join(f"{a} {s:.2f}" for a, s in zip(question.letters, sums, strict=True))
        text, answer = f"log-probability of each option: {listing}", letter
        if told := reply.details.get("remix"):
            text += f"; re-mixing: {told['verdict']}"
    else:
        text = reply.text
        answer = read_answer(strip_thinking(text), question)
    return Answer(
        question_id=question.id,
        expert=expert,
        sample=sample,
        answer=answer,
        text=text,
        usage=reply.usage,
        details=reply.details,
    )


def derive_seed(seed: int, *parts: str | int) -> int:
    """A 31-bit seed from a run's seed and what it is for; unlike `hash`, the same in every process."""
    digest = hashlib.sha256(
        "\0".join(map(str, (seed, *parts))).encode("utf-8", "surrogatepass")
    ).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def reason_prompt_hash() -> str:
    """Identifies the wording under which experts are asked; profiles record it."""
    ours = ("letter-choice", "reason-choice", "reason-number", "reason-text", "score-choice")
    return hash_prompts(*ours, *(f"task-{name}" for name in TASKS))
