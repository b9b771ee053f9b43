"""The drafts of a panel, as a model that merges them gets to see them: data, in no telling order.

The benchmark that chooses an aggregator and the graph that uses it ask through this one file. The
reference code asks in two ways (symbolic-moe.md §2, point 6), and so measures what it does not use.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..retrieval import Question
from .answers import read_answer, same_answer, strip_thinking
from .engines import Message, Reply, Request, Sampling
from .prompt import fill_prompt, hash_prompts
from .reason import Answer, build_messages, derive_seed, reason_prompt_hash

if TYPE_CHECKING:
    from .aggregate import Verdict

__all__ = [
    "DRAFT_CHARACTERS",
    "DRAFT_FLOOR",
    "aggregation_prompt_hash",
    "build_aggregation",
    "clean_draft",
    "draw_fence",
    "drop_marks",
    "needs_model",
    "quote_drafts",
    "read_aggregate",
    "trusts_drafts",
]

DRAFT_CHARACTERS = 2000
"""Of each draft so much is shown, from its end: there the answer stands."""
DRAFT_FLOOR = 0.2
"""With three different answers of equal chance, 0.2 each says that one of them is right six times of
ten. Right drafts help a strong model by up to 19.2 points and wrong ones hurt it by up to 18.0
(Pyramid-MoA, arXiv 2602.19509 v3), so showing them pays down to about one half."""

_MARKERS = re.compile(
    r"""<[|｜][^|｜<>]{0,40}[|｜]>        # ChatML, Llama 3, Phi, and DeepSeek with its wide bars
    |<(?:bos|eos|pad|unk|mask|s|/s|(?:start|end)_of_(?:turn|image))>
    |</?(?i:think|tools|tool_call|tool_response)>
    |<<\s*/?SYS\s*>>|\[/?(?:INST|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT))\]
    |[\x00-\x08\x0b-\x1f\x7f-\x9f]    # terminal escapes, NUL""",
    re.VERBOSE,
)


def build_aggregation(
    question: Question, answers: Sequence[Answer], *, sampling: Sampling, seed: int = 0
) -> Request:
    """The request by which a model merges drafts.

    Drafts are cleaned (`clean_draft`) and quoted between fences that they cannot close. They come in
    an order that depends on the seed and on what they say alone, under numbers instead of names. A
    draft that no longer says what was read from its expert (it was cut, or options were scored)
    ends in that answer. Experts that failed, or left nothing but thinking, have no draft.

    Without any draft the question is asked alone, in the words in which an expert is asked it.
    """
    fence, quoted = quote_drafts(question, answers, seed)
    sampling = replace(sampling, seed=derive_seed(seed, "aggregation", question.id))
    messages = build_messages(question)
    if quoted:
        asked = messages[-1]["content"]
        content = fill_prompt("aggregate", fence=fence, drafts=quoted, question=asked)
        turn: Message = {"role": "user", "content": content}
        messages = (turn,)
    return Request(
        id=f"{question.id}#0", messages=messages, sampling=sampling, question_id=question.id
    )


def quote_drafts(question: Question, answers: Iterable[Answer], seed: int = 0) -> tuple[str, str]:
    """The drafts as `build_aggregation` shows them, and the fence between which each of them stands.

    Both are empty where no answer leaves a draft.
    """
    # Sorted first: neither the order nor the names of the experts may matter.
    drafts = sorted(filter(None, (_draft(answer, question) for answer in answers)))
    if not drafts:
        return "", ""
    random.Random(derive_seed(seed, "aggregate", question.id)).shuffle(drafts)
    fence = draw_fence(question, drafts, seed)
    quoted = "\n\n".join(
        f"Draft {number}:\n{fence}\n{draft}\n{fence}" for number, draft in enumerate(drafts, 1)
    )
    return fence, quoted


def draw_fence(question: Question, drafts: Sequence[str], seed: int = 0) -> str:
    """A line that occurs in no draft and that no draft could foresee: it is drawn from their hash."""
    digest = hashlib.sha256()
    for text in (str(seed), question.id, *drafts):
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    while True:
        fence = f"=={digest.hexdigest()[:16]}=="
        if not any(fence in text for text in (question.text, *question.options, *drafts)):
            return fence
        digest.update(b"another")


def read_aggregate(reply: Reply, question: Question) -> str | None:
    """The answer of a model that merged drafts; None if it failed or cannot be read."""
    return None if reply.failure is not None else read_answer(strip_thinking(reply.text), question)


def clean_draft(text: str) -> str:
    """What a draft shows of a reply: no thinking, no control tokens, the last `DRAFT_CHARACTERS`.

    Empty where a thought was opened and never closed.
    """
    text = drop_marks(strip_thinking(text)[-4 * DRAFT_CHARACTERS :])
    return text.strip()[-DRAFT_CHARACTERS:].strip()


def drop_marks(text: str) -> str:
    """Text without control characters and without the marks by which chat templates tell turns apart.

    A blank stands in place of each, so that what stood around it cannot join into another one.
    """
    return _MARKERS.sub(" ", text)


def aggregation_prompt_hash() -> str:
    """Identifies the wording under which drafts are merged, and how much of each is shown."""
    words = f"{hash_prompts('aggregate')} {reason_prompt_hash()}"
    return hashlib.sha256(f"{words} {DRAFT_CHARACTERS}".encode()).hexdigest()


def needs_model(
    verdict: Verdict, *, agreement: float = 1.0, chance: float | None = None, sure: float = 1.0
) -> bool:
    """Whether a model should decide: it should where the panel disagrees, and it then has drafts.

    Skipping the model on agreement spares 37 to 47 % of its calls and costs nothing (MOSAIC, arXiv
    2606.03014, in symbolic-moe.md §4, point 1). On two against one the findings differ: MOSAIC saw
    -0.62 to +0.49 points, the paper's own vote is 4 below its aggregator. So that is not the default.

    Args:
        verdict: The vote. Only who said what is read from it: `votes` and `unread`.
        agreement: Least share of the readable answers that makes them agree; 1 asks for all,
            0.6 is content with two of three. Experts without a readable answer do not count.
        chance: Calibrated chance that the verdict is right, if it is known.
        sure: From this chance on the vote stands although some disagree; 1 leaves it to agreement.

    Returns:
        False also where nobody answered: a model would have nothing to merge.
    """
    counts = [len(who) for who in verdict.votes.values()]
    if not counts:
        return bool(verdict.unread)
    if chance is not None and sure < 1 and chance >= sure:
        return False
    return max(counts) < agreement * sum(counts) - 1e-9


def trusts_drafts(
    verdict: Verdict, *, chance: float | None = None, floor: float = DRAFT_FLOOR
) -> bool:
    """Whether a model that decides should see the drafts, or be asked the question alone.

    Wrong drafts pull a model along (symbolic-moe.md §4, point 7). They are withheld where no two
    experts agree and even the likeliest answer is unlikely.

    Args:
        verdict: The vote; only its `votes` are read.
        chance: Calibrated chance that the likeliest answer is right; None, for want of a profile,
            says nothing against the drafts.
        floor: Least chance at which drafts that all differ are shown.
    """
    differ = len(verdict.votes) > 1 and all(len(who) == 1 for who in verdict.votes.values())
    return not differ or chance is None or chance >= floor


def _draft(answer: Answer, question: Question) -> str:
    if answer.error is not None:
        return ""
    draft = clean_draft(answer.text)
    if answer.answer is None or same_answer(read_answer(draft, question), answer.answer, question):
        return draft
    stated = f"({answer.answer})" if question.kind == "choice" else answer.answer
    line = clean_draft(f"Answer: {stated}")
    room = max(DRAFT_CHARACTERS - len(line) - 2, 0)
    return f"{draft[len(draft) - min(room, len(draft)) :]}\n\n{line}".strip()
