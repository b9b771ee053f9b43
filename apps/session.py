"""What the commands do, without a word on how it is shown."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..agents import (
    AggregatorScores,
    AnswerStore,
    Catalog,
    Cost,
    LoadPlan,
    Policy,
    Pool,
    PoolEvent,
    Profile,
    SkillWeights,
)
from ..agents.pool import check_forecast
from ..graph import (
    ProfileFolder,
    Resources,
    Result,
    RunFolder,
    make_resources,
    rank_aggregators,
    recruit_first,
    run_batch,
    solve_many,
)
from ..retrieval import InputError, Question
from .interruption import run_interruptibly
from .timeline_picture import write_picture

__all__ = [
    "PanelSettings",
    "Watch",
    "answer_once",
    "hash_pool",
    "plan_run",
    "profile_experts",
    "score_aggregators",
    "solve_into",
]

Watch = Callable[[PoolEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelSettings:
    """How a panel is put together; the same words as the command line's options."""

    k: int | None = None
    profile: Path | None = None
    policy: Policy = "skill"
    adaptive: float | None = None
    cost_weight: float = 0.0
    cost_unit: Literal["tokens", "seconds"] = "tokens"
    merging: Literal["posterior", "vote"] = "posterior"
    aggregator: str | None = None
    abstain_below: float = 0.0
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
            adaptive=self.adaptive,
            cost=Cost(unit=self.cost_unit, weight=self.cost_weight),
            merging=self.merging,
            aggregator=self.aggregator,
            abstain_below=self.abstain_below,
            samples=self.samples,
            seed=self.seed,
        )

    def to_json(self, pool: Pool) -> dict[str, Any]:
        """Everything on which the answers depend, as a run folder remembers it.

        Not what only decides how they are computed (memory) or how long that took (a profile's times).
        """
        told = {
            "pool": hash_pool(pool),
            "k": self.k,
            "profile": None if self.profile is None else Profile.load(self.profile).fingerprint,
            "policy": self.policy,
            "adaptive": self.adaptive,
            "cost": [self.cost_unit, self.cost_weight],
            "merging": self.merging,
            "aggregator": self.aggregator,
            "abstain_below": self.abstain_below,
            "samples": self.samples,
            "seed": self.seed,
        }
        if self.aggregator == "best" and "best" not in pool.catalog and self.profile is not None:
            told["aggregators"] = _hash(AggregatorScores.load(self.profile).to_json())
        return told


def answer_once(
    question: Question, catalog: Catalog, settings: PanelSettings, watch: Watch
) -> Result:
    """Answer one question and keep nothing.

    Raises:
        InputError: as `make_resources`.
    """
    with Pool(catalog, on_event=watch, patience=math.inf) as pool:
        pool.check()
        rows = run_interruptibly(run_batch([question], settings.resources(pool)), pool)
        return Result(rows, pool.ledger.to_json())


def solve_into(
    out: Path,
    questions: Sequence[Question],
    catalog: Catalog,
    settings: PanelSettings,
    watch: Watch,
    *,
    window: int = 4096,
    store: AnswerStore | Literal["off"] | None = None,
) -> Result:
    """Answer questions into a run folder, going on where an earlier run ended.

    Interrupting it loses nothing that is finished: replies are stored as they come, in the folder or in
    the store given; `off` keeps whole windows only.

    Raises:
        InputError: the folder belongs to another run; or as `make_resources`.
    """
    folder = RunFolder(out, store=store if isinstance(store, AnswerStore) else None)
    kept = None if store == "off" else folder.store
    pool = Pool(catalog, store=kept, on_event=watch, patience=math.inf)
    pool.check()
    resources = settings.resources(pool)
    folder.claim(questions, settings.to_json(pool))
    pool.ledger = folder.read_ledger()
    before = copy.deepcopy(pool.ledger)
    earlier = folder.read_timeline()
    solutions = folder.finished(questions)
    done = {solution.question.id for solution in solutions}
    # Some questions' recruits depend on their window (an adaptive one shares a budget, trimming counts):
    # one that is not finished is done again as a whole, out of the stored replies, so that the answers
    # are those of a run without interruption.
    is_shared = resources.adaptive is not None or resources.policy == "paper-trimmed"
    size = window if is_shared else 1
    rest = [
        question
        for start in range(0, len(questions), size)
        if not done.issuperset(question.id for question in questions[start : start + size])
        for question in questions[start : start + size]
    ]
    again = {question.id for question in rest}
    solutions = [solution for solution in solutions if solution.question.id not in again]

    async def work() -> None:
        async for finished in solve_many(rest, resources, window=window):
            folder.append(finished)
            folder.write_ledger(pool.ledger)
            solutions.extend(finished)

    try:
        if rest:
            with pool:
                run_interruptibly(work(), pool)
    finally:
        if rest:
            outlooks = check_forecast(pool.plans, pool.ledger.since(before), pool.timeline)
            folder.write_ledger(pool.ledger, outlooks)
            timeline = pool.timeline.after(earlier)
            folder.write_timeline(timeline)
            with suppress(
                InputError
            ):  # no reason to end otherwise; `expertmix timeline` draws it again
                write_picture(
                    timeline, out / "timeline.svg", f"{out.name}: {len(questions)} questions"
                )
    return folder.finish(questions, solutions)


def profile_experts(
    out: Path,
    references: Sequence[Question],
    catalog: Catalog,
    watch: Watch,
    *,
    experts: Sequence[str] | None = None,
    samples: int = 1,
    seed: int = 0,
) -> tuple[Profile, dict[str, Any]]:
    """Build or grow a profile; gives it and the ledger of what that cost now.

    Raises:
        InputError: as `ProfileFolder.build`.
    """
    folder = ProfileFolder(out)
    with Pool(catalog, store=folder.store, on_event=watch, patience=math.inf) as pool:
        pool.check(experts)
        building = folder.build(pool, references, experts=experts, samples=samples, seed=seed)
        profile = run_interruptibly(building, pool)
        return profile, pool.ledger.to_json()


def score_aggregators(
    folder: Path,
    catalog: Catalog,
    watch: Watch,
    *,
    candidates: Sequence[str] = (),
    samples: int = 1,
    limit: int | None = None,
) -> tuple[AggregatorScores, dict[str, Any]]:
    """Benchmark who merges drafts best; gives the scores and the ledger of what that cost now.

    Raises:
        InputError: as `rank_aggregators`.
    """
    kept = ProfileFolder(folder)
    _ = kept.references()
    with Pool(catalog, store=kept.store, on_event=watch, patience=math.inf) as pool:
        pool.check()
        ranking = rank_aggregators(kept, pool, candidates=candidates, samples=samples, limit=limit)
        scores = run_interruptibly(ranking, pool)
        return scores, pool.ledger.to_json()


def plan_run(questions: Sequence[Question], catalog: Catalog, settings: PanelSettings) -> LoadPlan:
    """What answering these questions would load and ask, at most. No model is loaded for it, so where
    a model would have to name the skills, the plan is made without them.

    Raises:
        InputError: as `make_resources`.
    """
    pool = Pool(catalog)
    resources = settings.resources(pool)
    skills: dict[str, SkillWeights] = {question.id: {} for question in questions}
    if resources.extractor is not None and not resources.extractor.calls_per_question:
        skills = dict(asyncio.run(resources.extractor.extract(questions)))
    if resources.adaptive is not None:  # nobody knows yet who joins: as if all had the mean
        mean = math.ceil(resources.adaptive.calls)
        resources = replace(resources, adaptive=None, k=mean)
    calls: Counter[str] = Counter()
    for recruits in recruit_first(resources, questions, skills).values():
        for recruited in recruits:
            calls[recruited.expert] += recruited.samples
    per_expert = {alias: number * resources.samples for alias, number in calls.items()}
    merging: Counter[str] = Counter()  # at most: they are asked only where the panel disagrees
    for question in questions:
        if resources.aggregator is not None:
            merging[resources.aggregator] += 1
        elif resources.aggregators is not None:
            merging[resources.aggregators.choose(skills[question.id])] += 1
    for alias, number in merging.items():
        per_expert[alias] = per_expert.get(alias, 0) + number
    last = tuple(merging)
    annotator = catalog.file.skills_by or catalog.file.keywords_by
    if resources.extractor is not None and annotator is not None:
        asked = len(questions) * resources.extractor.calls_per_question
        if asked:
            per_expert[annotator] = per_expert.get(annotator, 0) + asked
    table = None if resources.expertise is None else resources.expertise.table
    known = {} if table is None else {alias: at for at, alias in enumerate(table.experts)}
    return pool.plan(
        per_expert,
        last=last,
        tokens_per_call={a: float(table.tokens_E[at]) for a, at in known.items() if table},
        seconds_per_call={a: float(table.seconds_E[at]) for a, at in known.items() if table},
    )


def hash_pool(pool: Pool) -> str:
    """Identifies all of a pool on which answers depend; blocks, as `Pool.identity`."""
    file = pool.catalog.file
    asked = {alias: pool.identity(alias) for alias in pool.catalog}
    return _hash([asked, file.aggregator, file.skills, file.keywords_by, file.skills_by])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
