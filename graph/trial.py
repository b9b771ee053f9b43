"""Recorded answers, divided into what may be learnt from and what is tested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..agents.learned_skills import LearnedSkills
from ..agents.outcomes import OutcomeTable, SkillWeights
from ..agents.policies import NEAREST
from ..agents.recorded import Division, Recorded
from ..retrieval import InputError, Question
from ..retrieval.encoded import EncodedTexts
from ..retrieval.references import CUT_OFF

__all__ = ["SkillSource", "Trial"]

SkillSource = Literal["learned", "category", "given", "none"]
"""`given`: as the tables of answers have them. `learned`: from the texts of the profile's questions. `category`: the column, an upper reference of what
people who know the test would name. `none`: every question is like every other."""

CHUNK = 2048
"""Questions compared with the profile at once."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Recorded answers, divided into what may be learnt from and what is tested."""

    profile: OutcomeTable
    test: OutcomeTable
    learnt: tuple[Question, ...]
    """Questions of the profile."""
    asked: tuple[Question, ...]
    """Questions of the test."""
    tokens_QE: Floats
    """Length of each recorded reply to the test."""
    mergeable: bool
    encoder: EncodedTexts | None = None
    """Holds the vectors of all questions' texts; skills are learnt from them, and `knn` needs them."""

    @classmethod
    def of(
        cls, recorded: Recorded, division: Division, encoder: EncodedTexts | None = None
    ) -> Trial:
        """Divide; costs are means over the profile."""
        profile = recorded.table.select(division.profile)
        tokens_NE = recorded.tokens_NE[division.profile]
        known_E = np.maximum((tokens_NE > 0).sum(0), 1)
        return cls(
            profile=replace(profile, tokens_E=tokens_NE.sum(0) / known_E),
            test=recorded.table.select(division.test),
            learnt=tuple(recorded.questions[row] for row in division.profile),
            asked=tuple(recorded.questions[row] for row in division.test),
            tokens_QE=recorded.tokens_NE[division.test],
            mergeable=recorded.mergeable,
            encoder=encoder,
        )

    def with_encoder(self, encoder: EncodedTexts) -> Trial:
        """The same trial with vectors."""
        return replace(self, encoder=encoder)

    def tell_skills(
        self, source: SkillSource, seed: int
    ) -> tuple[list[SkillWeights], list[SkillWeights]]:
        """Skills of the profile's and of the test's questions; those of the test are only applied there.

        Raises:
            InputError: there are no categories, or skills are to be learnt without vectors.
        """
        if source == "given":
            return list(self.profile.skills), list(self.test.skills)
        both = (*self.learnt, *self.asked)
        told: dict[str, SkillWeights] = {}
        if source == "category":
            if not any(question.skills for question in both):
                raise InputError(
                    "the table has no column category; choose --skills learned or none"
                )
            told = {question.id: dict.fromkeys(question.skills, 1.0) for question in both}
        elif source == "learned":
            if self.encoder is None:
                raise InputError("skills are learnt from vectors of the texts; give an encoder")
            extractor = LearnedSkills.learn(self.encoder, self.learnt, seed=seed)
            rows = extractor.weigh(self.encoder.encode([question.text for question in both]))
            told = {question.id: row for question, row in zip(both, rows, strict=True)}
        skills = [told.get(question.id, {}) for question in both]
        return skills[: len(self.learnt)], skills[len(self.learnt) :]

    @cached_property
    def near_QN(self) -> Rows | None:
        """Rows of the profile that resemble each test question most, -1 where there are fewer.

        As everywhere, what is more similar than `CUT_OFF` counts as the question itself. None without
        vectors.
        """
        if self.encoder is None:
            return None
        learnt_ND = self.encoder.encode([question.text for question in self.learnt])
        near: list[Rows] = []
        for start in range(0, len(self.asked), CHUNK):
            part = self.asked[start : start + CHUNK]
            asked_QD = self.encoder.encode([question.text for question in part])
            alike_QN = np.round(asked_QD @ learnt_ND.T, 6)
            alike_QN = np.where(alike_QN > CUT_OFF, -np.inf, alike_QN)
            rows_QN = np.argsort(-alike_QN, axis=1, kind="stable")[:, :NEAREST]
            kept_QN = np.take_along_axis(alike_QN, rows_QN, 1) > -np.inf
            near.append(np.where(kept_QN, rows_QN, -1))
        return np.concatenate(near)
