"""A profile on disk: the outcomes, the references they come from, and every reply they rest on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..agents import AnswerStore, Pool, Profile, build_profile
from ..agents.profile_files import FORMAT, MANIFEST, find_format
from ..agents.profiling import drop_duplicates
from ..retrieval import InputError, Question, read_questions
from .extractors import tell_reference_skills

__all__ = ["ProfileFolder"]


class ProfileFolder:
    """The files of a profile, `references.jsonl` and `replies.sqlite`. Growing it asks what is missing.

    Where keywords were open, `vocabulary.json` tells which spellings were taken for which skill.

    Args:
        path: The folder; made when the profile is built.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.store = AnswerStore(self.path / "replies.sqlite")

    async def build(
        self,
        pool: Pool,
        references: Sequence[Question],
        *,
        experts: Sequence[str] | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> Profile:
        """Profile experts over the references and write everything down.

        Args:
            pool: With this folder's `store`, so that an interrupted run goes on where it ended.
            references: Those that the folder knows, and any new ones.
            experts: Aliases to ask, all by default; what is known about others stays.
            samples: Answers of each expert to each reference; further ones that are known stay.
            seed: Of the samples.

        Raises:
            InputError: as `build_profile`; or the folder holds a profile of other references, or one
                that a newer version made.
        """
        earlier = self.references() if (self.path / "references.jsonl").exists() else []
        distinct = drop_duplicates(references, prefer={question.id for question in earlier})
        known, remarks = self._recall()
        self._claim(earlier, distinct.questions)
        told = await tell_reference_skills(pool, distinct.questions)
        profile = await build_profile(
            pool,
            distinct.questions,
            told.skills,
            experts=experts,
            samples=samples,
            seed=seed,
            known=known,
            extractor=told.told_by,
        )
        profile = replace(profile, remarks=(*distinct.remarks, *remarks, *profile.remarks))
        profile.save(self.path)
        if told.vocabulary is not None:
            shown = json.dumps(told.vocabulary.to_json(), indent=1, ensure_ascii=True)
            _write(self.path / "vocabulary.json", shown + "\n")
        return profile

    def references(self) -> list[Question]:
        """The labelled questions that the profile rests on, without duplicates.

        Raises:
            InputError: there is no profile in the folder.
        """
        if not (self.path / "references.jsonl").exists():
            raise InputError(f"no profile in {self.path}: make one with `expertmix profile`")
        return read_questions(self.path / "references.jsonl")

    def _recall(self) -> tuple[Profile | None, tuple[str, ...]]:
        """The profile to grow from, if there is one that can be read; else what to tell about it."""
        is_newer = False
        try:
            found = find_format(self.path / MANIFEST)
            if found is None or found < FORMAT:  # what format 1 counted comes back from the replies
                return None, ()
            is_newer = found > FORMAT
            return Profile.load(self.path), ()
        except InputError as error:
            if is_newer:
                raise
            return None, (f"the earlier profile could not be read and was made anew: {error}",)

    def _claim(self, earlier: Sequence[Question], references: Sequence[Question]) -> None:
        """Write the references down; a profile may grow by new ones, but not forget or change any."""
        path = self.path / "references.jsonl"
        given = {question.id: question for question in references}
        if any(given.get(question.id) != question for question in earlier):
            raise InputError(
                f"{self.path} holds a profile of other references; choose a new folder for --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        _write(path, "".join(json.dumps(q.to_json()) + "\n" for q in references))


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
