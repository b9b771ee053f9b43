"""What is known about a pool's experts when it answers: the profile's table and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..retrieval import InputError, Question, ReferenceSet
from .beliefs import Beliefs
from .calibration import calibrate
from .outcomes import OutcomeTable, SkillWeights
from .policies import NEAREST, Cost, Policy
from .profile import Profile
from .recruit import Recruit, recruit

__all__ = ["Expertise"]


@dataclass(frozen=True, kw_only=True)
class Expertise:
    """Made once per run; recruiting, merging and adaptive panels all read it."""

    table: OutcomeTable
    """Of the experts that may be recruited, and no others."""
    beliefs: Beliefs
    references: ReferenceSet | None = None
    """The profile's questions, for the policy `knn`."""

    @classmethod
    def of_profile(
        cls,
        profile: Profile,
        experts: Sequence[str],
        *,
        k: int = 3,
        seed: int = 0,
        references: ReferenceSet | None = None,
    ) -> Expertise:
        """Fit and calibrate beliefs for panels of k.

        Raises:
            InputError: the profile does not know an expert, or holds no answer at all.
        """
        table = profile.table(tuple(sorted(set(experts))))
        return cls(table=table, beliefs=calibrate(table, k=k, seed=seed), references=references)

    def recruit(
        self,
        questions: Sequence[Question],
        skills: Mapping[str, SkillWeights],
        *,
        k: int,
        policy: Policy,
        seed: int,
        cost: Cost | None = None,
    ) -> dict[str, list[Recruit]]:
        """As the function `recruit`, over these experts.

        Raises:
            InputError: as `recruit`.
        """
        near = self._find_neighbours(questions) if policy == "knn" else None
        return recruit(
            {question.id: skills.get(question.id, {}) for question in questions},
            self.table.experts,
            k=k,
            table=self.table,
            beliefs=self.beliefs,
            policy=policy,
            seed=seed,
            near=near,
            cost=cost,
        )

    def _find_neighbours(self, questions: Sequence[Question]) -> dict[str, list[int]]:
        if self.references is None:
            raise InputError(
                "the policy knn needs the profile's reference questions; give the profile's folder"
            )
        row = {qid: at for at, qid in enumerate(self.table.questions)}
        found = self.references.neighbours_of_many(questions, NEAREST)
        return {
            question.id: [row[n.question.id] for n in near.found if n.question.id in row]
            for question, near in zip(questions, found, strict=True)
        }
