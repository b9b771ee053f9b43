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

from ..agents import Catalog, LoadPlan, Policy, Pool, PoolEvent, Profile, recruit
from ..graph import (
    ProfileFolder,
    Resources,
    Result,
    RunFolder,
    asolve,
    make_resources,
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

    def to_json(self, catalog: Catalog) -> dict[str, Any]:
        """Everything on which the answers depend, as a run folder remembers it."""
        profile = Profile.load(self.profile).to_json() if self.profile else None
        return {
            "pool": _hash(catalog.file.model_dump(mode="json")),
            "k": self.k,
            "profile": None if profile is None else _hash(profile),
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
        InputError: as `asolve`.
    """
    with Pool(catalog, on_event=watch) as pool:
        pool.check()
        resources = settings.resources(pool)

        async def work() -> Result:
            return await asolve(
                question,
                pool,
                k=resources.k,
                profile=resources.profile,
                extractor=resources.extractor,
                policy=resources.policy,
                aggregator=resources.aggregator,
                samples=resources.samples,
                seed=resources.seed,
            )

        return asyncio.run(work())


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
    folder.claim(questions, settings.to_json(catalog))
    pool.ledger = folder.read_ledger()
    solutions = folder.finished(questions)
    done = {solution.question.id for solution in solutions}
    rest = [question for question in questions if question.id not in done]

    async def work() -> None:
        async for finished in solve_many(rest, resources, window=window):
            folder.append(finished)
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
    """What answering these questions would load and ask. No model is loaded for it, so where a model
    would have to name the skills, the plan is made without them.

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
    known = resources.profile.experts if resources.profile is not None else {}
    return pool.plan(
        per_expert,
        last=last,
        tokens_per_call={alias: expert.tokens_per_call for alias, expert in known.items()},
        seconds_per_call={alias: expert.seconds_per_call for alias, expert in known.items()},
    )


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
