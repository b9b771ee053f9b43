"""What the commands do, without a word on how it is shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agents import Catalog, KeywordSkills, LoadPlan, Policy, Pool, PoolEvent, Profile, recruit
from ..graph import (
    ProfileFolder,
    Resources,
    Result,
    RunFolder,
    make_resources,
    run_batch,
    solve_many,
)
from ..retrieval import Question

__all__ = ["PanelSettings", "answer_once", "plan_run", "profile_experts", "solve_into"]

Watch = Callable[[PoolEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelSettings:
    """How a panel is put together; the same words as the command line's options."""

    k: int | None = None
    profile: Path | None = None
    policy: Policy = "skill"
    aggregator: str | None = None
    samples: int = 1
    seed: int = 0

    def resources(self, pool: Pool) -> Resources:
        """Check the settings against a pool.

        Raises:
            InputError: as `make_resources`.
        """
        return make_resources(
            pool,
            k=self.k,
            profile=self.profile,
            policy=self.policy,
            aggregator=self.aggregator,
            samples=self.samples,
            seed=self.seed,
        )

    def to_json(self, pool: Pool) -> dict[str, Any]:
        """Everything on which the answers depend, as a run folder remembers it.

        Not what only decides how they are computed (memory) or how long that took (a profile's times).
        """
        file = pool.catalog.file
        asked = {alias: pool.identity(alias) for alias in pool.catalog}
        return {
            "pool": _hash([asked, file.aggregator, file.skills, file.keywords_by]),
            "k": self.k,
            "profile": None if self.profile is None else _hash(_counts(Profile.load(self.profile))),
            "policy": self.policy,
            "aggregator": self.aggregator,
            "samples": self.samples,
            "seed": self.seed,
        }


def answer_once(
    question: Question, catalog: Catalog, settings: PanelSettings, watch: Watch
) -> Result:
    """Answer one question and keep nothing.

    Raises:
        InputError: as `make_resources`.
    """
    with Pool(catalog, on_event=watch) as pool:
        pool.check()
        rows = asyncio.run(run_batch([question], settings.resources(pool)))
        return Result(rows, pool.ledger.to_json())


def solve_into(
    out: Path,
    questions: Sequence[Question],
    catalog: Catalog,
    settings: PanelSettings,
    watch: Watch,
    *,
    window: int = 4096,
) -> Result:
    """Answer questions into a run folder, going on where an earlier run ended.

    Interrupting it loses nothing that is finished: replies are stored as they come.

    Raises:
        InputError: the folder belongs to another run; or as `make_resources`.
    """
    folder = RunFolder(out)
    pool = Pool(catalog, store=folder.store, on_event=watch)
    pool.check()
    resources = settings.resources(pool)
    folder.claim(questions, settings.to_json(pool))
    pool.ledger = folder.read_ledger()
    solutions = folder.finished(questions)
    done = {solution.question.id for solution in solutions}
    rest = [question for question in questions if question.id not in done]

    async def work() -> None:
        async for finished in solve_many(rest, resources, window=window):
            folder.append(finished)
            folder.write_ledger(pool.ledger)
            solutions.extend(finished)

    try:
        if rest:
            with pool:
                asyncio.run(work())
    finally:
        folder.write_ledger(pool.ledger)
    return folder.finish(questions, solutions)


def profile_experts(
    out: Path, references: Sequence[Question], catalog: Catalog, watch: Watch, *, seed: int = 0
) -> tuple[Profile, dict[str, Any]]:
    """Build or grow a profile; gives it and the ledger of what that cost now.

    Raises:
        InputError: as `ProfileFolder.build`.
    """
    folder = ProfileFolder(out)
    with Pool(catalog, store=folder.store, on_event=watch) as pool:
        pool.check()
        profile = asyncio.run(folder.build(pool, references, seed=seed))
        return profile, pool.ledger.to_json()


def plan_run(questions: Sequence[Question], catalog: Catalog, settings: PanelSettings) -> LoadPlan:
    """What answering these questions would load and ask, at most. No model is loaded for it, so where
    a model would have to name the skills, the plan is made without them.

    Raises:
        InputError: as `make_resources`.
    """
    pool = Pool(catalog)
    resources = settings.resources(pool)
    skills: dict[str, tuple[str, ...]] = {question.id: () for question in questions}
    if resources.extractor is not None and catalog.file.skills:
        skills = dict(asyncio.run(resources.extractor.extract(questions)))
    chosen = recruit(
        skills,
        resources.experts,
        k=resources.k,
        profile=resources.profile,
        policy=resources.policy,
        seed=resources.seed,
    )
    calls = Counter(r.expert for recruits in chosen.values() for r in recruits)
    per_expert = {alias: number * resources.samples for alias, number in calls.items()}
    last = () if resources.aggregator is None else (resources.aggregator,)
    for alias in last:  # at most: it is asked only where the panel disagrees
        per_expert[alias] = per_expert.get(alias, 0) + len(questions)
    if isinstance(resources.extractor, KeywordSkills) and catalog.file.keywords_by is not None:
        asked = len(questions) * resources.extractor.samples
        per_expert[catalog.file.keywords_by] = per_expert.get(catalog.file.keywords_by, 0) + asked
    known = resources.profile.experts if resources.profile is not None else {}
    return pool.plan(
        per_expert,
        last=last,
        tokens_per_call={alias: expert.tokens_per_call for alias, expert in known.items()},
        seconds_per_call={alias: expert.seconds_per_call for alias, expert in known.items()},
    )


def _counts(profile: Profile) -> dict[str, Any]:
    content = profile.to_json()
    for row in content["experts"].values():
        del row["seconds_per_call"], row["tokens_per_call"]
    return content


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
