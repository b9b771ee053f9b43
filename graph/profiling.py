"""A profile on disk: the counts, the references they come from, and every reply they rest on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..agents import (
    AnswerStore,
    EmbeddingSkills,
    KeywordSkills,
    Pool,
    Profile,
    SkillExtractor,
    build_profile,
)
from ..retrieval import InputError, MiniLM, Question, read_questions

__all__ = ["ProfileFolder", "choose_extractor"]


class ProfileFolder:
    """`profile.json`, `references.jsonl` and `replies.sqlite`. Growing it asks only what is missing.

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
        seed: int = 0,
    ) -> Profile:
        """Profile the pool's experts over the references and write everything down.

        Raises:
            InputError: as `build_profile`; or the folder holds a profile of other references.
        """
        self._claim(references)
        extractor = choose_extractor(pool, references)
        skills: Mapping[str, Sequence[str]] = (
            await extractor.extract(references)
            if extractor is not None
            else {q.id: q.skills for q in references}
        )
        known = Profile.load(self.path) if (self.path / "profile.json").exists() else None
        profile = await build_profile(pool, references, skills, seed=seed, known=known)
        profile.save(self.path / "profile.json")
        return profile

    def _claim(self, references: Sequence[Question]) -> None:
        """Write the references down; a profile may grow by new ones, but not forget or change any."""
        path = self.path / "references.jsonl"
        known = {q.id: q for q in read_questions(path)} if path.exists() else {}
        given = {question.id: question for question in references}
        if any(given.get(qid) != question for qid, question in known.items()):
            raise InputError(
                f"{self.path} holds a profile of other references; choose a new folder for --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(
            "".join(json.dumps(q.to_json()) + "\n" for q in references), encoding="utf-8"
        )
        os.replace(part, path)

    def references(self) -> list[Question]:
        """The labelled questions that the profile rests on.

        Raises:
            InputError: there is no profile in the folder.
        """
        if not (self.path / "references.jsonl").exists():
            raise InputError(f"no profile in {self.path}: make one with `expertmix profile`")
        return read_questions(self.path / "references.jsonl")


def choose_extractor(
    pool: Pool, references: Sequence[Question] = (), *, seed: int = 0
) -> SkillExtractor | None:
    """The skill extractor that a pool file asks for; None if it asks for none.

    A closed vocabulary (`skills`) is matched by embedding and needs no model; labelled references
    sharpen it. Otherwise `keywords_by` names the expert that is asked for keywords.
    """
    file = pool.catalog.file
    if file.skills:
        extractor = EmbeddingSkills(MiniLM(), file.skills)
        labelled = [q for q in references if any(skill in file.skills for skill in q.skills)]
        if labelled:
            extractor.fit(labelled)
        return extractor
    if file.keywords_by is not None:
        alias = file.keywords_by
        return KeywordSkills(lambda asked: pool.generate(alias, asked, stage="skills"), seed=seed)
    return None
