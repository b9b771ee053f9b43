"""Methods on the same questions over the same pool: run, kept, and summed up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..agents import Catalog, Policy, Pool, Profile
from ..agents.pool.energy import EnergyMeter
from ..retrieval import InputError, Question, fingerprint
from .accounts import Naming, Pace, sum_costs
from .comparison import Comparison, Entry
from .lineup import ALL, Lineup
from .methods import Method, answer_with
from .resources import make_resources
from .result import Result, Solution
from .skill_memory import SkillMemory
from .solve import Questions, as_questions, open_pool, run_here
from .state import Resources

__all__ = ["KeptAnswers", "acompare", "check_gold", "compare", "run_lineup", "sum_up"]

Answers = dict[Method, dict[int, list[Solution]]]


@dataclass(frozen=True)
class KeptAnswers:
    """Finished answers of each method and seed, one file each: an interrupted comparison goes on."""

    path: Path

    def read(
        self, method: Method, seed: int, questions: Sequence[Question]
    ) -> list[Solution] | None:
        """What was kept, in the questions' order; None unless every question has all its answers."""
        file = self._file(method, seed)
        if not file.is_file():
            return None
        rows: dict[str, dict[str, Any]] = {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                if not row["missing"]:
                    rows[row["id"]] = row
            except (ValueError, LookupError, TypeError):
                return None
        if any(q.id not in rows for q in questions):
            return None
        return [Solution(question=q, row=rows[q.id]) for q in questions]

    def keep(self, method: Method, seed: int, solutions: Sequence[Solution]) -> None:
        """Write a method's answers in one step.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        file = self._file(method, seed)
        part = file.with_suffix(".part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(solution.row) for solution in solutions)
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(part, file)
        except OSError as error:
            raise InputError(
                f"cannot write to {self.path}: {error.strerror}; what is finished is kept, make room "
                "and run the same command to go on"
            ) from None

    def _file(self, method: Method, seed: int) -> Path:
        return self.path / f"{method.name}@{method.calls}-seed{seed}.jsonl"


async def run_lineup(
    lineup: Lineup,
    questions: Sequence[Question],
    contexts: Mapping[int, Resources],
    kept: KeptAnswers | None = None,
) -> Answers:
    """Answer all questions with every method and seed, one after the other.

    Replies that methods share (equal prompts, equal seeds) are asked once if the pool has an answer store.

    Args:
        lineup: Who takes part.
        questions: With gold answers.
        contexts: The runtime context of each seed.
        kept: Where finished methods are kept and found.
    """
    answers: Answers = {}
    for method in lineup.methods:
        answers[method] = {}
        for seed, context in contexts.items():
            found = None if kept is None else kept.read(method, seed, questions)
            if found is None:
                found = await answer_with(method, questions, context)
                if kept is not None:
                    kept.keep(method, seed, found)
            answers[method][seed] = found
    return answers


def sum_up(
    lineup: Lineup,
    answers: Answers,
    pool: Pool,
    *,
    naming: Naming | None = None,
    watts: float | None = None,
    remarks: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> Comparison:
    """Make a comparison of answers.

    Args:
        lineup: Who took part.
        answers: Of every method and seed, to the same questions.
        pool: Its ledger tells at which pace experts work.
        naming: What naming the skills costs; charged to methods that need them.
        watts: Mean power per engine second, where it was measured.
        remarks: Sentences for the reader.
        facts: What the comparison is of.
    """
    is_live = any(spec.engine != "replay" for spec in pool.catalog.values())
    pace = Pace.of(pool.ledger) if is_live else Pace({}, {})
    entries: list[Entry] = []
    for method, by_seed in answers.items():
        seeds = list(by_seed.values())
        spending = sum_costs(method, seeds, pool.catalog, pace, naming=naming)
        energy = None if watts is None or spending.seconds is None else watts * spending.seconds
        entries.append(Entry(method=method, by_seed=by_seed, spending=spending, energy=energy))
    first = next(iter(next(iter(answers.values())).values()))
    return Comparison(
        entries=entries,
        chance=Result(first, {}).chance or 0.0,
        budgets=lineup.budgets,
        skipped=lineup.skipped,
        remarks=remarks,
        facts=facts or {},
    )


def compare(questions: Questions, pool: Pool | Catalog | str | Path, **settings: Any) -> Comparison:
    """Compare methods on questions with gold answers. Works in scripts and in notebooks alike.

    Args:
        questions: As `solve` takes them, every one with a gold answer.
        pool: A pool file, a catalog, or an open `Pool` (which stays open).
        settings: See `acompare`.
    """
    return run_here(acompare(questions, pool, **settings))


async def acompare(
    questions: Questions,
    pool: Pool | Catalog | str | Path,
    *,
    profile: str | Path,
    methods: Sequence[str] = (ALL,),
    calls: Sequence[int] = (4,),
    seeds: int = 1,
    out: str | Path | None = None,
    remarks: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Comparison:
    """Compare methods on questions with gold answers.

    Args:
        questions: As `solve` takes them, every one with a gold answer, none of them among the profile's.
        pool: A pool file, a catalog, or an open `Pool` (which stays open).
        profile: Folder of a profile: it says who is strongest.
        methods: Names out of `METHODS`, or `all`.
        calls: Calls per question to which every method is fitted.
        seeds: How often everything that is drawn is drawn anew.
        out: Folder where finished methods are kept. What was answered to other questions, by another pool or
            after another profile is not taken for these; engines that the program built are known by alias only.
        remarks: Sentences for the reader.
        facts: What the comparison is of, for the reader.
        settings: Further settings of `make_resources`.

    Raises:
        InputError: methods, calls, profile and pool do not fit together, or a question has no gold.
    """
    batch = as_questions(questions)
    check_gold(batch)
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; draw everything at least once")
    async with open_pool(pool) as ready:
        lineup = Lineup.choose(methods, calls, ready.catalog)
        policy = "knn" if any(m.name == "knn_router" for m in lineup.methods) else "skill"
        contexts = await asyncio.to_thread(
            _make_contexts, ready, Path(profile), policy, seeds, settings or {}
        )
        kept = None
        if out is not None:
            said = await asyncio.to_thread(_identify, ready, batch, Path(profile), settings or {})
            kept = KeptAnswers(Path(out) / said)
        before = sum(account.seconds for account in ready.ledger.accounts.values())
        with EnergyMeter() as meter:
            answers = await run_lineup(lineup, batch, contexts, kept)
        worked = sum(account.seconds for account in ready.ledger.accounts.values()) - before
        joules = meter.energy.total
        watts = joules / worked if joules is not None and worked > 0 else None
        extractor, file = contexts[0].extractor, ready.catalog.file
        named = 0.0 if extractor is None else extractor.calls_per_question
        return sum_up(
            lineup,
            answers,
            ready,
            naming=Naming.of(ready.ledger, named, file.skills_by or file.keywords_by),
            watts=watts,
            remarks=remarks,
            facts={
                **(facts or {}),
                "energy": meter.why_not or f"measured: {', '.join(meter.available)}",
            },
        )


def _make_contexts(
    pool: Pool, profile: Path, policy: Policy, seeds: int, settings: Mapping[str, Any]
) -> dict[int, Resources]:
    """The runtime context of each seed; what does not depend on it (embeddings) is computed once."""
    first = _remember(make_resources(pool, profile=profile, policy=policy, seed=0, **settings))
    contexts = {0: first}
    extractor = first.extractor
    shared: dict[str, Any] = {}
    if extractor is not None and not extractor.calls_per_question:
        shared = {"extractor": extractor}
    for seed in range(1, seeds):
        context = make_resources(pool, profile=profile, seed=seed, **{**shared, **settings})
        context = context if shared else _remember(context)
        assert first.expertise is not None
        assert context.expertise is not None
        expertise = replace(context.expertise, references=first.expertise.references)
        contexts[seed] = replace(context, expertise=expertise)
    return contexts


def _remember(context: Resources) -> Resources:
    """Each method asks for the same questions' skills: they are told once."""
    if context.extractor is None:
        return context
    return replace(context, extractor=SkillMemory(context.extractor))


def _identify(
    pool: Pool, questions: Sequence[Question], profile: Path, settings: Mapping[str, Any]
) -> str:
    """A short name for all on which answers depend; blocks, as `Pool.identity`."""
    file = pool.catalog.file
    told = [
        [pool.identity(alias) for alias in pool.catalog],
        [file.skills, file.skills_by, file.keywords_by],
        Profile.load(profile).fingerprint,
        fingerprint(questions),
        sorted((name, repr(value)) for name, value in settings.items()),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def check_gold(questions: Sequence[Question]) -> None:
    """Refuse questions of which nobody knows the answer.

    Raises:
        InputError: names the first of them.
    """
    lacking = [question.id for question in questions if question.gold is None]
    if lacking:
        raise InputError(
            f'{len(lacking)} of {len(questions)} questions have no gold answer, "{lacking[0]}" for '
            "instance; a comparison needs one for each"
        )
