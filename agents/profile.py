"""Who answered what on the references, and which expert, prompt and skills that was.

Every number is computed from the outcomes; nothing is counted beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..retrieval import InputError
from .outcomes import MISSING, UNREADABLE, OutcomeTable
from .pool import Pool
from .reason import reason_prompt_hash
from .records import ExpertProfile, ExpertRecord, Outcome, Reference, Tally, sum_up

__all__ = ["Profile"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Outcomes of experts over one reference set, made under one prompt.

    Raises:
        InputError: an outcome stands twice, or is of a question or expert that the profile lacks.
    """

    references: str
    """Fingerprint of the reference set, see `hash_references`."""
    prompts: str
    """Hash of the prompts that experts were asked with."""
    seed: int
    """Of the samples."""
    extractor: str = ""
    """What told the skills."""
    experts: Mapping[str, ExpertRecord] = field(default_factory=dict[str, ExpertRecord])
    """By alias, sorted; one whose requests all failed is here and has no outcome."""
    questions: Mapping[str, Reference] = field(default_factory=dict[str, Reference])
    """By id, sorted."""
    outcomes: tuple[Outcome, ...] = ()
    """Sorted by question, expert and sample."""
    remarks: tuple[str, ...] = ()
    """What was noted while it was built; `notes` has these and more."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", dict(sorted(self.experts.items())))
        object.__setattr__(self, "questions", dict(sorted(self.questions.items())))
        object.__setattr__(self, "outcomes", tuple(sorted(self.outcomes, key=lambda o: o.key)))
        previous = None
        for outcome in self.outcomes:
            if outcome.question_id not in self.questions or outcome.expert not in self.experts:
                raise InputError(
                    f'an outcome of "{outcome.expert}" on "{outcome.question_id}" belongs to no '
                    "expert or no reference of the profile"
                )
            if outcome.key == previous:
                raise InputError(
                    f"two outcomes of one request (question, expert, sample): {previous}"
                )
            previous = outcome.key

    def __getitem__(self, alias: str) -> ExpertProfile:
        try:
            return self._views[alias]
        except KeyError:
            raise InputError(
                f'the profile does not know the expert "{alias}", only {", ".join(self.experts)}; '
                "run `expertmix profile` again: only the missing calls are made"
            ) from None

    @property
    def failed(self) -> dict[str, int]:
        """Requests without a reply, of the experts that have any."""
        return {alias: e.failed for alias, e in self.experts.items() if e.failed}

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever uses the profile should know, in sentences."""
        notes = [*self.remarks]
        golds = {(r.kind, r.gold) for r in self.questions.values()}
        if len(self.questions) > 1 and len(golds) == 1:
            notes.append(
                f"all {len(self.questions)} references have the same gold answer: an expert that "
                "always gives it looks perfect; add references with other answers"
            )
        notes += [
            f'the expert "{alias}" has no outcomes ({expert.failed} requests failed): nothing is '
            "known about it; run `expertmix profile` again once it works"
            for alias, expert in self.experts.items()
            if not self[alias].overall.total
        ]
        return tuple(notes)

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of all that recruiting and merging read but for times."""
        content = [
            [self.references, self.prompts, self.seed, self.extractor],
            [[alias, expert.identity] for alias, expert in self.experts.items()],
            [[*r.skills.items()] for r in self.questions.values()],
            [[*o.key, o.answer, o.right, o.tokens] for o in self.outcomes],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def table(self, aliases: Iterable[str] | None = None) -> OutcomeTable:
        """The outcomes as numbers, questions sorted by id; of several samples, the first there is.

        A choice's label is its option. For an open question the gold is 0, and wrong answers that
        differ as strings are 1, 2, … in the order in which the sorted experts gave them.

        Args:
            aliases: Experts wanted, in any order; all by default.

        Raises:
            InputError: the profile does not know an expert.
        """
        if aliases is None:
            return self._table
        wanted = [*aliases]
        for alias in wanted:
            _ = self[alias]
        return self._table.select(np.arange(len(self.questions)), wanted)

    def tally(self, expert: str, skill: str | None = None) -> Tally:
        """Right and wrong answers of an expert, to everything or by a skill's share.

        Raises:
            InputError: the profile does not know the expert.
        """
        view = self[expert]
        return view.overall if skill is None else view.skills.get(skill, Tally())

    def check(self, pool: Pool, aliases: Iterable[str]) -> None:
        """Refuse to speak for experts that the profile was not made for.

        Raises:
            InputError: an expert is unknown or was changed since, or the prompts were.
        """
        if self.prompts != reason_prompt_hash():
            raise InputError(
                "the profile was made with other prompts than this version asks; "
                "run `expertmix profile` again"
            )
        for alias in aliases:
            if self[alias].identity != pool.identity(alias):
                raise InputError(
                    f'the expert "{alias}" is not the one that was profiled (its weights, adapter, '
                    "persona, style or sampling changed); run `expertmix profile` again"
                )

    def merge(self, other: Profile) -> Profile:
        """Both profiles as one; see `merge_profiles`."""
        from .profile_merge import merge_profiles

        return merge_profiles(self, other)

    def count(self) -> dict[str, int]:
        """Outcomes of each expert, samples included."""
        counts = dict.fromkeys(self.experts, 0)
        for outcome in self.outcomes:
            counts[outcome.expert] += 1
        return counts

    def to_json(self) -> dict[str, Any]:
        """The profile's sums as plain JSON values, for programs that look at it."""
        views = {alias: self[alias] for alias in self.experts}
        return {
            "references": self.references,
            "prompts": self.prompts,
            "seed": self.seed,
            "extractor": self.extractor,
            "questions": len(self.questions),
            "notes": list(self.notes),
            "experts": {
                alias: {
                    "identity": view.identity,
                    "overall": view.overall.to_json(),
                    "skills": {skill: tally.to_json() for skill, tally in view.skills.items()},
                    "failed": view.failed,
                    "tokens_per_call": round(view.tokens_per_call, 3),
                    "seconds_per_call": round(view.seconds_per_call, 6),
                }
                for alias, view in views.items()
            },
        }

    def save(self, folder: str | Path) -> None:
        """Write the profile into a folder; see `save_profile`."""
        from .profile_files import save_profile

        save_profile(self, folder)

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read the profile in a folder, named by the folder or its `profile.json`; see `load_profile`."""
        from .profile_files import load_profile

        return load_profile(path)

    @cached_property
    def _views(self) -> dict[str, ExpertProfile]:
        given: defaultdict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            given[outcome.expert].append(outcome)
        return {a: sum_up(e, given[a], self.questions) for a, e in self.experts.items()}

    @cached_property
    def _table(self) -> OutcomeTable:
        row = {qid: at for at, qid in enumerate(self.questions)}
        column = {alias: at for at, alias in enumerate(self.experts)}
        labels_NE = np.full((len(row), len(column)), MISSING, dtype=np.int16)
        wrong: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for outcome in self.outcomes:
            at = row[outcome.question_id], column[outcome.expert]
            if labels_NE[at] == MISSING:
                reference = self.questions[outcome.question_id]
                labels_NE[at] = _label(outcome, reference, wrong[reference.id])
        asked = self.questions.values()
        gold = [ord(r.gold) - ord("A") if r.options else 0 for r in asked]
        return OutcomeTable(
            experts=tuple(column),
            questions=tuple(row),
            labels_NE=labels_NE,
            gold_N=np.array(gold, dtype=np.int16),
            options_N=np.array([r.options for r in asked], dtype=np.int16),
            skills=tuple(r.skills for r in asked),
            tokens_E=np.array([self[alias].tokens_per_call for alias in column], dtype=np.float64),
            seconds_E=np.array(
                [self[alias].seconds_per_call for alias in column], dtype=np.float64
            ),
        )


def _label(outcome: Outcome, reference: Reference, wrong: dict[str, int]) -> int:
    if outcome.answer is None:
        return UNREADABLE
    if not reference.options:
        return 0 if outcome.right else wrong.setdefault(outcome.answer, len(wrong) + 1)
    option = ord(outcome.answer) - ord("A") if len(outcome.answer) == 1 else -1
    return option if 0 <= option < reference.options else UNREADABLE
