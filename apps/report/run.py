"""A report of one run: what its folder tells, with the questions' texts where they are given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...agents import Profile, is_correct
from ...graph import Result, RunFolder, Score, Solution
from ...retrieval import InputError, Question, fingerprint
from .content import ReportContent
from .wording import count, tell_interval, tell_share

__all__ = ["content_of_run"]

PANEL = "the panel"
ENOUGH = 20
"""Questions on which an expert is worth comparing with the panel."""
SETTINGS = {
    "policy": "Recruiting",
    "k": "Experts per question",
    "adaptive": "Calls per question, mean",
    "samples": "Answers per expert",
    "merging": "Merging",
    "aggregator": "Aggregator",
    "abstain_below": "Abstains below",
    "seed": "Seed",
}


def content_of_run(
    folder: Path,
    questions: Sequence[Question] | None,
    *,
    profile: Profile | None = None,
    hides: bool = False,
) -> ReportContent:
    """What a folder of `expertmix solve` tells.

    Args:
        folder: With `answers.jsonl`; `ledger.json`, `timeline.json` and `run.json` are shown if they are there.
        questions: Those of the run, and maybe more. A run keeps only their ids: without them the report
            shows ids instead of texts, and cannot say what is right.
        profile: By which the experts were recruited, to be shown beside.
        hides: Show no text, option or reply of any question.

    Raises:
        InputError: the folder holds no answers, or none to these questions; or a file of it is damaged.
    """
    kept = RunFolder(folder)
    solutions = _read_solutions(kept, questions)
    ledger = _read_ledger(kept)
    findings = _tell_findings(Result(solutions, ledger))
    if questions is None:
        findings.append(
            "The questions are shown by their ids, and what is right is not known: a run keeps neither "
            "their texts nor their gold answers. Give their file with --questions."
        )
    if hides:
        findings.append("Questions and replies are kept out of this report.")
    return ReportContent(
        title=f"expertmix solve: {folder.resolve().name}",
        main=PANEL,
        findings=findings,
        facts=_tell_facts(kept, questions, solutions),
        solutions=solutions,
        profile=profile,
        timeline=kept.read_timeline(),
        ledger=ledger,
        hidden=frozenset(s.question.id for s in solutions) if hides else (),
    )


def _read_solutions(kept: RunFolder, questions: Sequence[Question] | None) -> list[Solution]:
    """In the order of the questions, those that miss a reply included."""
    if not kept.answers.is_file():
        raise InputError(
            f"no answers.jsonl in {kept.path}: give the run folder of `expertmix solve`"
        )
    rows = {row["id"]: row for row in _read_rows(kept.answers)}
    if not rows:
        raise InputError(f"{kept.answers} holds no finished answer; let the run go on first")
    if questions is None:
        return [Solution(question=Question(id=qid, text=""), row=row) for qid, row in rows.items()]
    found = [Solution(question=q, row=rows[q.id]) for q in questions if q.id in rows]
    if not found:
        raise InputError(
            f"none of the {len(questions)} questions given was answered in {kept.path} (it knows "
            f"{', '.join([*rows][:3])}, …); give the file that the run was made from"
        )
    return found


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line during which a run was interrupted
        if isinstance(row, dict) and isinstance(cast("dict[str, Any]", row).get("id"), str):
            yield cast("dict[str, Any]", row)


def _read_ledger(kept: RunFolder) -> dict[str, Any]:
    """With the forecast, which `RunFolder.read_ledger` leaves out."""
    path = kept.path / "ledger.json"
    if not path.is_file():
        return {}
    try:
        told = kept.read_ledger().to_json()
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged; remove it to get a report without costs") from None
    return told | {"forecast": json.loads(path.read_text(encoding="utf-8")).get("forecast") or []}


def _tell_facts(
    kept: RunFolder, questions: Sequence[Question] | None, solutions: Sequence[Solution]
) -> dict[str, str]:
    try:
        told = json.loads((kept.path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    manifest = cast("Mapping[str, Any]", told if isinstance(told, dict) else {})
    settings: Mapping[str, Any] = manifest.get("settings") or {}
    facts = {"Run": str(kept.path), "Questions": f"{len(solutions):,}"}
    if questions is not None and "questions" in manifest:
        # A run may have been limited to the first of a file.
        candidates = (questions, [solution.question for solution in solutions])
        is_same = manifest["questions"] in map(fingerprint, candidates)
        facts["Question file"] = "the one that was asked" if is_same else (
            "not exactly the one that was asked, or the run is not finished: texts and gold answers may differ"
        )  # fmt: skip
    for key, name in SETTINGS.items():
        if key in settings and (key == "seed" or settings[key] not in (None, 0.0, "")):
            facts[name] = str(settings[key])
    return facts


def _tell_findings(result: Result) -> list[str]:
    findings: list[str] = []
    score, chance = result.score, result.chance
    if score is not None and chance is not None:
        findings.append(
            f"{score.right:,} of {count(score.total, 'question')} were answered right: "
            f"{_tell_score(score)}. Blind guessing would get {tell_share(chance)} %."
        )
        findings += _tell_disputes(result)
        findings += _tell_best(result)
    else:
        findings.append(f"{count(len(result), 'question')} were answered.")
    abstained = sum(solution.abstained for solution in result)
    if abstained:
        findings.append(f"The panel abstained from {count(abstained, 'question')}.")
    missing = sum(bool(solution.row.get("missing")) for solution in result)
    if missing:
        findings.append(
            f"In {count(missing, 'question')} an expert failed; run `expertmix solve` again to ask only those."
        )
    return findings


def _tell_disputes(result: Result) -> list[str]:
    """How often experts disagreed, and whether agreement meant anything."""
    marks: dict[bool, list[bool]] = {True: [], False: []}
    for solution in result:
        if solution.correct is not None:
            marks[len(solution.row.get("votes") or ()) > 1].append(solution.correct)
    apart, agreed = (Score(right=sum(marks[key]), total=len(marks[key])) for key in (True, False))
    if not apart.total or not agreed.total:
        return []
    return [
        f"The experts disagreed on {count(apart.total, 'question')}, of which {tell_share(apart.share)} % "
        f"were right; of the {agreed.total:,} others, {tell_share(agreed.share)} %."
    ]


def _tell_best(result: Result) -> list[str]:
    """Whether the panel beats the expert that would have been best alone, where that one was asked."""
    alone: dict[str, list[tuple[bool, bool]]] = {}
    for solution in result:
        for row in solution.experts if solution.correct is not None else ():
            if not row.get("error") and not row.get("sample"):
                right = is_correct(row.get("answer"), solution.question)
                alone.setdefault(row["expert"], []).append((right, bool(solution.correct)))
    pairs = {name: given for name, given in alone.items() if len(given) >= ENOUGH}
    if not pairs:
        return []
    lead = {name: sum(a - b for a, b in given) / len(given) for name, given in pairs.items()}
    best = max(sorted(lead), key=lead.__getitem__)
    expert, panel = (sum(pair[at] for pair in pairs[best]) for at in (0, 1))
    told = (
        f"On the {len(pairs[best]):,} questions for which {best} was asked, it alone was right on "
        f"{expert:,} and the panel on {panel:,}"
    )
    return [f"{told}: there, mixing did not help." if expert >= panel else f"{told}."]


def _tell_score(score: Score) -> str:
    return f"{tell_share(score.share)} % (95 %: {tell_interval(*score.interval)})"
