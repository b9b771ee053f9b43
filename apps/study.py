"""`expertmix study`: policies × calls × seeds over a table, into files that are read and plotted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from .. import agents, graph
from ..agents.recorded import Recorded, read_recorded
from ..agents.recorded_files import read_models
from ..graph.intervals import BASELINES, summarise
from ..graph.replay import RULES, Replay
from ..graph.study import replay_seed
from ..graph.trial import SkillSource, Trial
from ..retrieval import Encoder, InputError, MiniLM
from ..retrieval.encoded import EncodedTexts
from .study_files import SeedFile, write_seeds, write_text

__all__ = [
    "StudyOutcome",
    "StudySettings",
    "read_names",
    "read_numbers",
    "run_study",
    "tabulate_study",
]

DEFAULT_CALLS = (3, 4)
DELTAS = {
    "delta_best_single": "− single",
    "delta_top3": "− top 3",
    "delta_reference": "− reference",
}

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What is replayed; see `expertmix study --help`."""

    profile_split: str | None = None
    test_split: str | None = None
    split_half: int | None = None
    """Divide all questions at random by this seed instead."""
    models: Path | None = None
    policies: Sequence[str] | None = None
    """Default: all of `RULES`."""
    calls: Sequence[int] = ()
    """Default: 3 and 4, or as many as there are models."""
    seeds: int = 10
    skills: SkillSource = "learned"


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """What a study found."""

    rows: list[dict[str, Any]]
    """As in `result.json`; see `summarise`."""
    notes: list[str]
    """What was odd about the table, and what could not be done, a sentence each."""


def run_study(
    table: Path,
    settings: StudySettings,
    out: Path,
    tell: Tell = lambda _: None,
    *,
    encoder: Encoder | None = None,
) -> StudyOutcome:
    """Replay, and write `result.json`, `result.csv`, `study.svg` and `study.png` into a folder.

    Every seed that is finished is kept in `seeds.jsonl` there, and used again by the next run with the
    same table and settings; so are vectors.

    Args:
        table: Folder with `questions.parquet` and `outcomes.parquet`.
        settings: What to replay.
        out: The folder.
        tell: Told what goes on, a line each.
        encoder: Default: `MiniLM`.

    Raises:
        InputError: the table or the settings cannot be used.
    """
    _check(settings)
    models = None if settings.models is None else read_models(settings.models)
    recorded = read_recorded(table, models)
    trial, notes = _divide(recorded, settings)
    calls = _choose_calls(settings.calls, len(recorded.table.experts), notes)
    wanted = tuple(RULES) if settings.policies is None else settings.policies
    policies = [policy for policy in RULES if policy in {*wanted, *BASELINES}]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be written to: {error.strerror}") from None
    if settings.skills == "learned" or "knn" in policies:
        trial = trial.with_encoder(_encode(trial, out, tell, encoder or MiniLM()))
    kept = SeedFile(out / "seeds.jsonl", _fingerprint(trial, policies, calls, settings.skills))
    finished = kept.read()
    by_seed: dict[int, list[Replay]] = {}
    for seed in range(settings.seeds):
        replays, lacking = finished.get(seed, (None, []))
        if replays is None:
            replays, lacking = replay_seed(
                trial, policies=policies, calls=calls, skills=settings.skills, seed=seed
            )
            kept.add(seed, replays, lacking)
            tell(f"seed {seed + 1} of {settings.seeds}")
        by_seed[seed] = replays
        notes += [why for why in lacking if why not in notes]
    rows = summarise(by_seed, policies=wanted, skills=settings.skills)
    write_seeds(out / "result.csv", by_seed, wanted)
    write_text(out / "result.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
    notes += _plot(rows, out)
    return StudyOutcome(rows=rows, notes=notes)


def read_names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_numbers(text: str) -> list[int]:
    """Whole numbers between commas.

    Raises:
        InputError: one is none.
    """
    try:
        return [int(name) for name in read_names(text)]
    except ValueError:
        raise InputError(f'--calls is "{text}"; give whole numbers such as 3,4') from None


def tabulate_study(rows: Sequence[dict[str, Any]]) -> Table:
    """One row per policy and calls: accuracy with its interval, and differences in points.

    Fixed panels of sizes that no other policy has are left out, but for the best of them.
    """
    first = rows[0]
    title = f"{first['n']:,} questions, {first['seeds']} seeds, skills: {first['skills']}"
    table = Table(
        title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("policy", "merged by"):
        table.add_column(column, no_wrap=True)
    for column in ("calls", "tokens", "right %", "95 % interval", *DELTAS.values(), "ECE"):
        table.add_column(column, justify="right", no_wrap=True)
    last = first["policy"]
    for row in _choose_rows(rows):
        if row["policy"] != last:
            table.add_section()
        last = row["policy"]
        table.add_row(
            row["policy"].replace("_", " "),
            row["rule"],
            f"{row['calls_mean']:.4g}",
            "—" if row["tokens_mean"] is None else f"{row['tokens_mean']:,.0f}",
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['low']:.1f}–{100 * row['high']:.1f}",
            *(_show_delta(row[key]) for key in DELTAS),
            "—" if row["ece"] is None else f"{row['ece']:.3f}",
        )
    table.caption = (
        "95 % intervals: paired bootstrap over questions, seeds averaged first. Differences to the best "
        "single expert of the profile, to the plain vote of its best three, and to the published code at "
        "as many calls, in points."
    )
    table.caption_justify = "left"
    return table


def _choose_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    sizes = {row["calls"] for row in rows if row["policy"] not in ("top_k_vote", "oracle")}
    fixed = [row for row in rows if row["policy"] == "top_k_vote"]
    best = max(fixed, key=lambda row: row["accuracy"], default=None)
    is_alone = len(fixed) == len(rows)
    return [
        row
        for row in rows
        if row["policy"] != "top_k_vote" or is_alone or row is best or row["calls"] in sizes
    ]


def _show_delta(delta: dict[str, float] | None) -> str:
    if delta is None:
        return "—"
    half = (delta["high"] - delta["low"]) / 2
    return f"{100 * delta['mean']:+.2f}±{100 * half:.1f}"


def _check(settings: StudySettings) -> None:
    splits = (settings.profile_split, settings.test_split)
    if settings.split_half is None and None in splits:
        raise InputError(
            "say what is learnt from and what is tested: --profile-split and --test-split, or "
            "--split-half 0 for a random half each"
        )
    if settings.split_half is not None and splits != (None, None):
        raise InputError("give --profile-split and --test-split, or --split-half, but not both")
    wanted = tuple(RULES) if settings.policies is None else settings.policies
    unknown = [policy for policy in wanted if policy not in RULES]
    if unknown or not wanted:
        what = f'no policy "{unknown[0]}"' if unknown else "no policy is named"
        raise InputError(f"{what}; a study has {', '.join(RULES)}")
    if settings.seeds < 1:
        raise InputError(f"seeds is {settings.seeds}; replay at least one")


def _divide(recorded: Recorded, settings: StudySettings) -> tuple[Trial, list[str]]:
    if settings.split_half is not None:
        division = recorded.halve(settings.split_half).divide("profile", "test")
    else:
        division = recorded.divide(settings.profile_split or "", settings.test_split or "")
    return Trial.of(recorded, division), [*recorded.notes, *division.notes]


def _choose_calls(given: Sequence[int], experts: int, notes: list[str]) -> list[int]:
    if given:
        if not 1 <= min(given) <= max(given) <= experts:
            asked = ", ".join(map(str, given))
            raise InputError(
                f"--calls is {asked}, but there are {experts} models; choose numbers from 1 to {experts}"
            )
        return sorted(set(given))
    calls = sorted({min(number, experts) for number in DEFAULT_CALLS})
    if calls != list(DEFAULT_CALLS):
        notes.append(f"there are only {experts} models: panels of {' and '.join(map(str, calls))}")
    return calls


def _encode(trial: Trial, out: Path, tell: Tell, encoder: Encoder) -> EncodedTexts:
    return EncodedTexts.compute(
        encoder,
        [question.text for question in (*trial.learnt, *trial.asked)],
        path=out / "vectors.safetensors",
        on_progress=lambda done, total: tell(f"embedded {done:,} of {total:,} questions"),
    )


def _fingerprint(
    trial: Trial, policies: Sequence[str], calls: Sequence[int], skills: SkillSource
) -> str:
    """Of everything but the seed that a replay depends on, the code of both floors included."""
    revision = "" if trial.encoder is None else trial.encoder.revision
    digest = hashlib.sha256(json.dumps([list(policies), list(calls), skills, revision]).encode())
    for floor in (agents, graph):
        for path in sorted(Path(str(floor.__file__)).parent.glob("*.py")):
            digest.update(path.read_bytes())
    for table, questions in ((trial.profile, trial.learnt), (trial.test, trial.asked)):
        told = [[q.id, q.text, list(q.skills)] for q in questions]
        digest.update(json.dumps([table.experts, told]).encode())
        for array in (table.labels_NE, table.gold_N, table.options_N, table.tokens_E):
            digest.update(array.tobytes())
    digest.update(trial.tokens_QE.tobytes())
    return digest.hexdigest()


def _plot(rows: Sequence[dict[str, Any]], out: Path) -> list[str]:
    from .study_plot import plot_study

    try:
        plot_study(rows, out)
    except ImportError:
        return ["no plot was drawn: it needs matplotlib, pip install 'expertmix[viz]'"]
    return []
