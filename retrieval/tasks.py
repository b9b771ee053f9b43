"""The benchmark sets whose official files, wording and answer rule are known.

Only facts about them are here. No row of any set is shipped: the files are the user's, or come from
the Hugging Face hub. The wordings are `agents/prompts/task-*.md`, the rules `agents/task_answers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .errors import InputError

__all__ = ["TASKS", "Layout", "Task", "find_task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of a set's official files; capitals do not matter."""

    text: tuple[str, ...] = ("question",)
    """Names under which the question goes; the first that a row has is read."""
    options: tuple[str, ...] = ()
    """One column with a list or with `{"text": …, "label": …}`, or one column for each option."""
    gold: tuple[str, ...] = ("answer",)
    """Names under which the right answer goes. Empty: the first of the options is the right one, and
    they have no order of their own."""
    skills: tuple[str, ...] = ()
    """Subjects; all that a row has are read."""
    filler: str = ""
    """What lists of options are filled up with; the official code leaves it out, and so do we."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One benchmark set: where it comes from, and how its rows are laid out."""

    name: str
    """As the command line and `Question.task` spell it."""
    title: str
    source: str
    """The paper."""
    hub: str
    """The well-known data set of the Hugging Face hub, `owner/name`."""
    layout: Layout
    kind: Literal["choice", "number"] = "choice"
    confidential: bool = False
    """Whether its authors ask that no row is shown or published."""


_ALL = (
    Task(
        name="mmlu",
        title="MMLU",
        source="Hendrycks et al., arXiv 2009.03300",
        hub="cais/mmlu",
        layout=Layout(options=("choices",), skills=("subject",)),
    ),
    Task(
        name="mmlu_pro",
        title="MMLU-Pro",
        source="Wang et al., arXiv 2406.01574",
        hub="TIGER-Lab/MMLU-Pro",
        layout=Layout(
            options=("options",),
            gold=("answer", "answer_index"),
            skills=("category",),
            filler="N/A",
        ),
    ),
    Task(
        name="gpqa",
        title="GPQA",
        source="Rein et al., arXiv 2311.12022",
        hub="Idavidrein/gpqa",
        layout=Layout(
            options=(
                "Correct Answer",
                "Incorrect Answer 1",
                "Incorrect Answer 2",
                "Incorrect Answer 3",
            ),
            gold=(),
            skills=("High-level domain", "Subdomain"),
        ),
        confidential=True,
    ),
    Task(
        name="aime",
        title="AIME",
        source="Mathematical Association of America; as collected on the hub",
        hub="Maxwell-Jia/AIME_2024",
        layout=Layout(text=("problem", "question")),
        kind="number",
    ),
    Task(
        name="medmcqa",
        title="MedMCQA",
        source="Pal et al., arXiv 2203.14371",
        hub="openlifescienceai/medmcqa",
        layout=Layout(
            options=("opa", "opb", "opc", "opd"), gold=("cop",), skills=("subject_name",)
        ),
    ),
    Task(
        name="gsm8k",
        title="GSM8K",
        source="Cobbe et al., arXiv 2110.14168",
        hub="openai/gsm8k",
        layout=Layout(),
        kind="number",
    ),
    Task(
        name="arc",
        title="ARC (Easy and Challenge)",
        source="Clark et al., arXiv 1803.05457",
        hub="allenai/ai2_arc",
        layout=Layout(options=("choices",), gold=("answerKey",)),
    ),
    Task(
        name="openbookqa",
        title="OpenBookQA",
        source="Mihaylov et al., arXiv 1809.02789",
        hub="allenai/openbookqa",
        layout=Layout(text=("question_stem",), options=("choices",), gold=("answerKey",)),
    ),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""Every task by its name, in the order of the documentation."""


def find_task(name: object) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none.
    """
    if isinstance(name, str) and name in TASKS:
        return TASKS[name]
    raise InputError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
