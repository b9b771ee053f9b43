"""Who answered what: the table that every estimate, policy and merging rule is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..retrieval import InputError

__all__ = ["MISSING", "UNREADABLE", "OutcomeTable", "SkillWeights"]

MISSING = -2
"""Label of a question that the expert was not asked, or that failed."""
UNREADABLE = -1
"""Label of a reply that holds no answer: wrong, but no vote for anything."""

SkillWeights = Mapping[str, float]
"""What a question needs: skill to its share, the most needed first. Shares lie in (0, 1] and sum to at
most 1; what is missing to 1 is unknown. Empty where nothing can be told."""

Labels = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OutcomeTable:
    """The answers of E experts to N labelled questions, as numbers.

    A label is the index of an answer among the answers to its question: for choices the option
    (0 is A), for open questions any numbering in which equal answers share a number.
    """

    experts: tuple[str, ...]
    """Aliases, E of them, sorted: so no order of files can matter."""
    questions: tuple[str, ...]
    """Ids, N of them."""
    labels_NE: Labels
    """Answers; `UNREADABLE` or `MISSING` where there is none."""
    gold_N: Labels
    """The right answer's label; for open questions one below 0 says that nobody gave it."""
    options_N: Labels
    """How many options a question has; 0 for open questions."""
    skills: tuple[SkillWeights, ...] = ()
    """What each question needs, N of them; empty if nobody told."""
    tokens_E: Floats = field(default_factory=lambda: np.zeros(0))
    """Mean generated tokens per call; 0 where unknown."""
    seconds_E: Floats = field(default_factory=lambda: np.zeros(0))
    """Mean seconds per call; 0 where unknown."""

    def __post_init__(self) -> None:
        shape = (len(self.questions), len(self.experts))
        if self.labels_NE.shape != shape:
            raise InputError(f"labels have the shape {self.labels_NE.shape}, expected {shape}")
        if list(self.experts) != sorted(set(self.experts)):
            raise InputError("experts of a table must be sorted, each named once")
        for name in ("gold_N", "options_N"):
            if len(getattr(self, name)) != shape[0]:
                raise InputError(f"{name} has {len(getattr(self, name))} rows, expected {shape[0]}")
        for name in ("tokens_E", "seconds_E"):
            given = getattr(self, name)
            if not len(given):
                object.__setattr__(self, name, np.zeros(shape[1]))
            elif len(given) != shape[1] or not np.isfinite(given).all():
                raise InputError(f"{name} needs {shape[1]} finite numbers")
        wild_N = (self.options_N > 1) & ((self.gold_N < 0) | (self.gold_N >= self.options_N))
        if wild_N.any():
            at = int(wild_N.argmax())
            raise InputError(
                f"question {self.questions[at]} has {self.options_N[at]} options, but its right answer "
                f"is number {self.gold_N[at]} counted from 0; correct or drop it"
            )
        if self.skills and len(self.skills) != shape[0]:
            raise InputError(f"skills are given for {len(self.skills)} of {shape[0]} questions")

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def asked_NE(self) -> npt.NDArray[np.bool_]:
        """Where there is a reply."""
        return self.labels_NE != MISSING

    @cached_property
    def right_NE(self) -> npt.NDArray[np.bool_]:
        """Where the reply is right; False where there is none, and where it holds no answer."""
        # The second half matters: a gold below 0 (known, but nobody's answer) must equal no reply.
        return (self.labels_NE == self.gold_N[:, None]) & (self.labels_NE > UNREADABLE)

    def select(
        self, rows: Sequence[int] | npt.NDArray[np.intp], experts: Sequence[str] | None = None
    ) -> OutcomeTable:
        """Some questions, and some experts if they are named.

        Raises:
            InputError: an expert is not in the table.
        """
        at_n = np.asarray(rows, dtype=np.intp)
        names = self.experts if experts is None else tuple(sorted(set(experts)))
        at_e = np.array([self._place(name) for name in names], dtype=np.intp)
        return OutcomeTable(
            experts=names,
            questions=tuple(self.questions[at] for at in at_n),
            labels_NE=self.labels_NE[np.ix_(at_n, at_e)],
            gold_N=self.gold_N[at_n],
            options_N=self.options_N[at_n],
            skills=tuple(self.skills[at] for at in at_n) if self.skills else (),
            tokens_E=self.tokens_E[at_e],
            seconds_E=self.seconds_E[at_e],
        )

    def _place(self, expert: str) -> int:
        try:
            return self.experts.index(expert)
        except ValueError:
            known = ", ".join(self.experts)
            raise InputError(f'no expert "{expert}" in the table; it has {known}') from None
