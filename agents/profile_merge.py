"""Two profiles as one: more experts, more references or more samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

from ..retrieval import InputError
from .profile import Profile
from .records import ExpertRecord, Outcome, Reference, hash_references

__all__ = ["merge_profiles"]

REFUSED = "the profiles cannot be merged"


def merge_profiles(first: Profile, second: Profile) -> Profile:
    """Both profiles as one; which of them comes first makes no difference.

    Where both hold an answer to one request, the one that sorts first stays. Failures are not known
    one by one: they are added, up to the number of requests that have no answer.

    Raises:
        InputError: prompts, seeds or extractors differ; or a reference or an expert that both know does.
    """
    for name in ("prompts", "seed", "extractor"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise InputError(
                f"{REFUSED}: their {name} differ ({ours!r} and {theirs!r}); make both under the same"
            )
    questions = dict(first.questions)
    for qid, reference in second.questions.items():
        _check_same(questions.setdefault(qid, reference), reference)
    outcomes = {outcome.key: outcome for outcome in first.outcomes}
    for outcome in second.outcomes:
        outcomes[outcome.key] = min(outcomes.get(outcome.key, outcome), outcome, key=_order)
    samples = 1 + max((outcome.sample for outcome in outcomes.values()), default=0)
    is_same = first.references == second.references
    counts = first.count(), second.count()
    answered = Counter(outcome.expert for outcome in outcomes.values())
    experts: dict[str, ExpertRecord] = {}
    for alias in {*first.experts, *second.experts}:
        record = _unite(
            alias,
            [
                (profile.experts[alias], count[alias])
                for profile, count in zip((first, second), counts, strict=True)
                if alias in profile.experts
            ],
        )
        most = samples * len(questions) - answered[alias]
        experts[alias] = replace(record, failed=min(record.failed, most))
    return Profile(
        references=first.references if is_same else hash_references(questions.values()),
        prompts=first.prompts,
        seed=first.seed,
        extractor=first.extractor,
        experts=experts,
        questions=questions,
        outcomes=tuple(outcomes.values()),
        remarks=tuple(sorted({*first.remarks, *second.remarks})),
    )


def _check_same(ours: Reference, theirs: Reference) -> None:
    for part in fields(Reference):
        if getattr(ours, part.name) != getattr(theirs, part.name):
            raise InputError(
                f'{REFUSED}: the {part.name} of the reference "{ours.id}" differs; make both from one '
                "set of references, with one vocabulary of skills"
            )


def _order(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.answer is not None, outcome.answer or "", outcome.right, outcome.tokens


def _unite(alias: str, records: list[tuple[ExpertRecord, int]]) -> ExpertRecord:
    """One record of one or two, each with its number of outcomes."""
    if len({record.identity for record, _ in records}) > 1:
        raise InputError(
            f'{REFUSED}: they know two different experts "{alias}" (weights, adapter, persona, style '
            "or sampling differ); profile it again, or give one of them another alias"
        )
    timed = [
        (record.seconds_per_call, count) for record, count in records if record.seconds_per_call
    ]
    calls = sum(count for _, count in timed)
    return ExpertRecord(
        identity=records[0][0].identity,
        seconds_per_call=sum(seconds * count for seconds, count in timed) / max(1, calls),
        failed=sum(record.failed for record, _ in records),
    )
