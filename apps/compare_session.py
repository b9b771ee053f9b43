"""What `expertmix compare` does, without a word on how it is shown."""

from __future__ import annotations

import copy
import datetime
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..agents import Catalog, Pool, Profile
from ..graph import ProfileFolder, RunFolder
from ..graph.compare import acompare, check_gold
from ..graph.comparison import Comparison
from ..graph.lineup import ALL, Lineup
from ..graph.remix_tables import leave_out_tested
from ..graph.solve import as_questions
from ..graph.verdicts import count
from ..retrieval import InputError, Question, fingerprint
from .compare_report import report_comparison
from .interruption import run_interruptibly
from .report import write_report
from .session import Watch, hash_pool

__all__ = ["CompareSettings", "compare_into"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """What is compared; the same words as the command line's options."""

    methods: tuple[str, ...] = (ALL,)
    calls: tuple[int, ...] = (4,)
    seeds: int = 1
    data: str = ""
    """What a reader calls the questions."""
    pool: str = ""
    """And the pool."""


def compare_into(
    out: Path,
    questions: Sequence[Question],
    catalog: Catalog,
    settings: CompareSettings,
    watch: Watch,
    *,
    references: Sequence[Question] = (),
    profile: Path | None = None,
) -> Comparison:
    """Compare methods into a folder, going on where an earlier comparison ended.

    The folder gets `result.json` (one row per method), `comparison.json` (with the pairs at matched compute),
    `report.html`, `answers/` (every answer), `ledger.json`, `timeline.json`, and `profile/` if one is made. Other
    methods, calls and seeds may be compared into the same folder later: only what is missing is asked.

    Args:
        out: The folder.
        questions: With gold answers.
        catalog: The pool's.
        settings: What is compared.
        watch: Called with what the pool does.
        references: Labelled questions to profile the experts on; those that are asked too are left out.
        profile: A profile's folder instead.

    Raises:
        InputError: neither references nor a profile, or both, or as `acompare`; or the folder is of
            something else.
    """
    check_gold(as_questions(questions))
    _ = Lineup.choose(settings.methods, settings.calls, catalog)  # before anything is loaded
    if profile is None and not references:
        raise InputError(
            "who is strongest is not known: give labelled questions with --references, or --profile"
        )
    if profile is not None and references:
        raise InputError(
            "references and a profile were given, and one of them says who is strongest; leave out "
            "--references or --profile"
        )
    kept, left_out = leave_out_tested(references, questions)
    remarks = _remark(left_out, profile, questions)
    if profile is None and not kept:
        raise InputError("all references are among the questions; give others with --references")
    folder = RunFolder(out)
    pool = Pool(catalog, store=folder.store, on_event=watch, patience=math.inf)
    pool.check()
    told = fingerprint(kept) if profile is None else Profile.load(profile).fingerprint
    folder.claim(questions, {"compare": True, "pool": hash_pool(pool), "profile": told})
    pool.ledger = folder.read_ledger()
    before = copy.deepcopy(pool.ledger)
    earlier = folder.read_timeline()
    where = out / "profile" if profile is None else profile

    async def work() -> Comparison:
        if profile is None:
            await ProfileFolder(where).build(pool, kept)
        return await acompare(
            questions,
            pool,
            profile=where,
            methods=settings.methods,
            calls=settings.calls,
            seeds=settings.seeds,
            out=out / "answers",
            remarks=remarks,
            facts=_tell_facts(settings, questions, catalog, where),
        )

    try:
        with pool:
            comparison = run_interruptibly(work(), pool)
    finally:
        folder.write_ledger(pool.ledger)
        folder.write_timeline(pool.timeline.after(earlier))
    made = pool.ledger.since(before).calls
    facts = {**comparison.facts, "calls made": f"{pool.ledger.calls:,} ({made:,} of them now)"}
    comparison = replace(comparison, facts=facts)
    _write(out / "result.json", comparison.rows)
    _write(out / "comparison.json", comparison.to_json())
    content = report_comparison(
        comparison,
        questions,
        profile=Profile.load(where),
        timeline=folder.read_timeline(),
        ledger=pool.ledger.to_json(),
    )
    write_report(content, out / "report.html")
    return comparison


def _remark(left_out: int, profile: Path | None, questions: Sequence[Question]) -> list[str]:
    if left_out:
        told = count(left_out, "reference")
        return [f"Left out because the questions hold the same: {told}."]
    seen = 0 if profile is None else _count_seen(profile, questions)
    if not seen:
        return []
    return [
        f"The questions hold {count(seen, 'reference')} of the profile: what rests on the profile is "
        "flattered; take other questions, or profile with --references."
    ]


def _count_seen(profile: Path, questions: Sequence[Question]) -> int:
    """References of a profile that are among the questions."""
    return leave_out_tested(ProfileFolder(profile).references(), questions)[1]


def _tell_facts(
    settings: CompareSettings, questions: Sequence[Question], catalog: Catalog, profile: Path
) -> dict[str, str]:
    with suppress(InputError):
        number, seen = len(ProfileFolder(profile).references()), _count_seen(profile, questions)
        apart = f"{seen} of them also asked" if seen else "disjoint from the questions"
        return {
            "questions": f"{count(len(questions), 'question')} of {settings.data}",
            "pool": f"{settings.pool}: {', '.join(catalog)}",
            "profile": f"{count(number, 'labelled reference')}, {apart}",
            "calls per question": ", ".join(map(str, settings.calls)),
            "seeds": str(settings.seeds),
            "made": f"{datetime.date.today().isoformat()} by expertmix {version('expertmix')}",
        }
    return {"questions": f"{count(len(questions), 'question')} of {settings.data}"}


def _write(path: Path, content: Any) -> None:
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; the answers are kept, make room and run the same "
            "command to go on"
        ) from None
