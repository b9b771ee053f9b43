"""Which expert merges drafts best? Each is asked as the graph asks it, where one draft is right.

Of symbolic-moe.md §1.6, with its bugs (§2, point 6) undone: no blanks among the drafts, the prompt of
deployment, answers compared as everywhere else, and a score per skill besides the one per task.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..retrieval import InputError, fingerprint
from .aggregator_cases import Case, Cases
from .aggregator_scores import AggregatorScore, AggregatorScores
from .answers import is_correct, same_answer
from .drafts import aggregation_prompt_hash, build_aggregation, read_aggregate
from .engines import Reply
from .outcomes import SkillWeights
from .pool import Pool
from .reason import derive_seed

__all__ = ["benchmark_aggregators"]


async def benchmark_aggregators(
    pool: Pool,
    candidates: Sequence[str],
    cases: Cases,
    skills: Mapping[str, SkillWeights],
    *,
    seed: int,
    samples: int = 1,
) -> AggregatorScores:
    """Let every candidate merge every case, asked as the graph asks it.

    Args:
        pool: With an answer store, only what was never asked is asked.
        candidates: Aliases.
        cases: From `build_cases`.
        skills: Question id to its skills; a question that is not in it counts for the task alone.
        seed: Of sampling and of the order of drafts, which every sample draws anew.
        samples: Calls per candidate and case.

    Raises:
        InputError: no such expert, no case, or `samples` is below 1.
    """
    if samples < 1:
        raise InputError(f"samples is {samples}; every case is asked at least once")
    if not cases.cases:
        why = ", ".join(f"{number} with {reason}" for reason, number in cases.dropped.items())
        raise InputError(f"no question gives a case to merge ({why or 'there are none'})")
    aliases = sorted(set(candidates))
    for alias in aliases:
        _ = pool.catalog[alias]
    scores = await asyncio.gather(
        *(_score(pool, alias, cases, skills, seed, samples) for alias in aliases)
    )
    return AggregatorScores(
        cases=fingerprint(case.question for case in cases.cases),
        prompts=aggregation_prompt_hash(),
        seed=seed,
        samples=samples,
        number=len(cases.cases),
        chance=cases.chance,
        vote=cases.vote,
        dropped=dict(cases.dropped),
        candidates=dict(zip(aliases, scores, strict=True)),
    )


async def _score(
    pool: Pool,
    alias: str,
    cases: Cases,
    skills: Mapping[str, SkillWeights],
    seed: int,
    samples: int,
) -> AggregatorScore:
    try:
        identity = await asyncio.to_thread(pool.identity, alias)
    except InputError as error:
        calls = samples * len(cases.cases)
        return AggregatorScore(
            identity="", chance=cases.chance, calls=calls, failed=calls, reason=str(error)
        )
    sampling = pool.catalog[alias].sampling.to_sampling()
    requests = [
        replace(
            build_aggregation(
                case.question,
                case.drafts,
                sampling=sampling,
                # The first sample is what deployment would ask under this seed.
                seed=derive_seed(seed, "sample", sample) if sample else seed,
            ),
            id=f"{case.question.id}#{sample}",
        )
        for case in cases.cases
        for sample in range(samples)
    ]
    replies = await pool.generate(alias, requests, stage="aggregators")
    count = _Count(cases)
    for at, case in enumerate(cases.cases):
        mine = replies[at * samples : (at + 1) * samples]
        count.add(case, mine, skills.get(case.question.id, {}))
    return count.to_score(identity)


class _Count:
    """Adds up what one candidate's replies are worth."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.right = self.total = 0.0
        self.skills: dict[str, tuple[float, float]] = {}
        self.numbers: Counter[str] = Counter()
        self.reason = ""

    def add(self, case: Case, replies: Sequence[Reply], skills: SkillWeights) -> None:
        crowd = self.cases.crowd(case)
        marks = [mark for reply in replies if (mark := self._mark(case, reply, crowd)) is not None]
        if not marks:
            return
        share = sum(marks) / len(marks)
        self.right, self.total = self.right + share, self.total + 1
        for skill, weight in skills.items():
            right, total = self.skills.get(skill, (0.0, 0.0))
            self.skills[skill] = right + weight * share, total + weight

    def _mark(self, case: Case, reply: Reply, crowd: str | None) -> bool | None:
        """Whether a reply is right; None if it does not count."""
        self.numbers["calls"] += 1
        if reply.failure is not None:
            self.reason = self.reason or reply.failure.message
            too_long = reply.failure.kind == "context"
            self.numbers["too_long" if too_long else "failed"] += 1
            return False if too_long else None
        answer = read_aggregate(reply, case.question)
        self.numbers["unreadable"] += answer is None
        self.numbers["crowded"] += crowd is not None
        self.numbers["followed"] += same_answer(crowd, answer, case.question)
        return is_correct(answer, case.question)

    def to_score(self, identity: str) -> AggregatorScore:
        return AggregatorScore(
            identity=identity,
            chance=self.cases.chance,
            right=self.right,
            total=self.total,
            skills=dict(sorted(self.skills.items())),
            reason=self.reason,
            **self.numbers,
        )
