"""Which expert merges drafts best? Measured on the drafts that a profile's experts wrote anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..agents import (
    AggregatorScores,
    Answer,
    Pool,
    Profile,
    benchmark_aggregators,
    build_cases,
    build_requests,
    read_reply,
)
from ..retrieval import Question
from .profiling import ProfileFolder

__all__ = ["rank_aggregators"]


async def rank_aggregators(
    folder: ProfileFolder,
    pool: Pool,
    *,
    candidates: Sequence[str] = (),
    samples: int = 1,
    limit: int | None = None,
) -> AggregatorScores:
    """Benchmark candidates on one right and two wrong drafts per reference, and keep the scores.

    The drafts are the replies of the profile, so they cost no call where the pool has its store.

    Args:
        folder: Of a profile; gets `aggregators.json`.
        pool: With the folder's answer store.
        candidates: Aliases; all by default.
        samples: Calls per candidate and case.
        limit: Use the first references only.

    Raises:
        InputError: no profile, one of other experts, or no reference that gives a case.
    """
    profile = Profile.load(folder.path)
    profile.check(pool, profile.experts)
    references = folder.references()[:limit]
    drafts = await asyncio.gather(
        *(_recall(pool, alias, references, profile.seed) for alias in profile.experts)
    )
    cases = build_cases(references, [a for given in drafts for a in given], seed=profile.seed)
    skills = {qid: reference.skills for qid, reference in profile.questions.items()}
    scores = await benchmark_aggregators(
        pool,
        list(candidates) or list(pool.catalog),
        cases,
        skills,
        seed=profile.seed,
        samples=samples,
    )
    scores.save(folder.path)
    return scores


async def _recall(
    pool: Pool, alias: str, references: Sequence[Question], seed: int
) -> list[Answer]:
    """The expert's replies to the references, asked in the words of the profile."""
    spec = pool.catalog[alias]
    requests = build_requests(
        references, sampling=spec.sampling.to_sampling(), style=spec.style, seed=seed
    )
    replies = await pool.generate(alias, requests, stage="profile")
    pairs = zip(replies, references, strict=True)
    return [read_reply(reply, question, alias) for reply, question in pairs]
