"""`expertmix remix study`: methods and controls over test sets, into files that are read and plotted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..agents.moe.settings import RemixSettings
from ..retrieval import Encoder, InputError, MiniLM, Question, ReferenceSet, fingerprint
from .study_files import write_text

if TYPE_CHECKING:
    from ..agents.moe.architecture import MoeModel
    from ..agents.moe.bank import StateBank
    from ..agents.moe.letters import Letters
    from ..graph.remix_field import RemixField, RemixReplay
    from ..graph.remix_methods import Tuned

__all__ = ["RemixOutcome", "RemixStudySettings", "read_sets", "run_remix_study"]

Tell = Callable[[str], None]
VERSION = 2
"""Of what methods compute: results of an older one are not taken for those of this."""
BUDGET = 64 << 30
"""Bytes for the states of one set on disk: enough that they are kept in full."""


@dataclass(frozen=True, kw_only=True)
class RemixStudySettings:
    """What is studied; see `expertmix remix study --help`."""

    references: Sequence[Path]
    tests: Sequence[Path]
    test_splits: Sequence[str] = ()
    """Default: `test` where a file has it, else all."""
    reference_splits: Sequence[str] = ()
    """Default: those that begin with `train`, else all."""
    limit: int | None = None
    reference_limit: int | None = None
    methods: Sequence[str] = ()
    """Default: all."""
    seeds: int = 3
    seed: int = 0
    remix: RemixSettings = field(default_factory=RemixSettings)
    dtype: str = "auto"
    revision: str | None = None
    batch: int = 8
    epochs: int = 5
    tunes: bool = True
    """Whether solver and gates are chosen on the references; else `remix` is taken as it is."""


@dataclass(frozen=True, kw_only=True)
class RemixOutcome:
    """What a study found."""

    rows: list[dict[str, Any]]
    """As in `result.json`; see `summarise_remixing`."""
    alignment: list[dict[str, Any]]
    """As in `alignment.json`; see `measure_alignment`."""
    told: dict[str, Any]
    """How settings were chosen on the references."""
    notes: list[str]


def run_remix_study(
    model: str,
    settings: RemixStudySettings,
    out: Path,
    tell: Tell = lambda _: None,
    *,
    encoder: Encoder | None = None,
) -> RemixOutcome:
    """Run the study, and write `result.json`, `alignment.json`, `tuned.json`, `samples.jsonl` and pictures.

    States, choices and finished methods are kept in the folder: the same command goes on where it was
    interrupted. One model pass per question; everything else runs on its states.

    Args:
        model: A folder, or a Hugging Face id with a revision: a mixture-of-experts model.
        settings: See there.
        out: The folder.
        tell: Told what is going on.
        encoder: Finds the neighbours; MiniLM by default.

    Raises:
        InputError: a model or files that will not do, unknown methods, or a folder of another study.
    """
    from ..graph.remix_field import RemixField
    from ..graph.remix_methods import METHODS

    methods = list(settings.methods) or list(METHODS)
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}.")
    methods = ["base", *(name for name in methods if name != "base")]
    references, tests, dropped = read_sets(settings)
    moe, letters = _load(model, settings)
    notes: list[str] = []
    if dropped:
        notes.append(f"{dropped} references were left out because they are test questions as well.")
    out.mkdir(parents=True, exist_ok=True)
    first = moe.last(settings.remix.layers)[0]
    bank = _ask(moe, letters, "references", references, first, out, settings, notes, tell)
    right = int(bank.right_N.sum())
    tell(f"the model answers {right} of {len(bank)} references right")
    chance = float((1 / bank.options_N.double()).sum())
    spread = float((1 / bank.options_N.double() * (1 - 1 / bank.options_N.double())).sum()) ** 0.5
    if right < chance + 2 * spread:
        notes.append(
            f"the model is not above chance on the references ({right} of {len(bank)} right, chance "
            f"{chance:.0f}): nothing that it got right tells anything, and nor do the results."
        )
    if right == 0:
        raise InputError(
            f"the model answers none of the {len(bank)} references right: there is nothing to follow."
        )
    encoder = encoder or MiniLM()
    vectors = ReferenceSet.build(bank.questions, encoder)
    key = _key(bank, settings, encoder)
    tuned = _tune(RemixField("references", bank, bank, vectors), settings, out, key, tell)
    rows: list[dict[str, Any]] = []
    alignment: list[dict[str, Any]] = []
    samples: list[str] = []
    for name, questions in tests.items():
        own = _ask(moe, letters, f"test-{name}", questions, first, out, settings, notes, tell)
        of_test = RemixField(name, own, bank, vectors)
        of_key = _hash(key + fingerprint(own.questions))
        found = _replay(of_test, methods, settings, tuned, out / "replays", of_key, tell)
        from ..graph.remix_alignment import measure_alignment
        from ..graph.remix_study import summarise_remixing

        rows += summarise_remixing(of_test, found, tuned)
        alignment += measure_alignment(of_test, tuned.ngd)
        samples += _tell_samples(of_test, found)
        if guarded := of_test.near(tuned.ngd.neighbours, balanced=tuned.ngd.balanced).dropped:
            told = ", ".join(f"{number} {reason}" for reason, number in guarded.items())
            notes.append(f"{name}: the leakage guard dropped references among the nearest: {told}.")
    write_text(out / "result.json", json.dumps(rows, indent=1))
    write_text(out / "alignment.json", json.dumps(alignment, indent=1))
    write_text(out / "samples.jsonl", "".join(samples))
    notes += _plot(rows, out)
    return RemixOutcome(rows=rows, alignment=alignment, told=tuned.told, notes=notes)


def read_sets(
    settings: RemixStudySettings,
) -> tuple[list[Question], dict[str, list[Question]], int]:
    """References of all files together, the questions of each test set by name, and how many references
    were left out because they are test questions.

    Raises:
        InputError: no files, unusable ones, or two test sets of one name.
    """
    from ..graph.remix_tables import find_splits, leave_out_tested, read_choices

    if not settings.references or not settings.tests:
        raise InputError("give at least one file with --references and one with --test.")
    per_file = settings.reference_limit or settings.limit
    tests: dict[str, list[Question]] = {}
    for path in settings.tests:
        if path.stem in tests:
            raise InputError(f"two test files are called {path.stem}; rename one.")
        splits = settings.test_splits or find_splits(path, "test")
        tests[path.stem] = _number_twins(
            read_choices(path, splits=splits, limit=settings.limit, seed=settings.seed)
        )
    found: list[Question] = []
    for path in settings.references:
        splits = settings.reference_splits or find_splits(path, "train")
        found += read_choices(path, splits=splits, limit=per_file, seed=settings.seed)
    tested = [question for questions in tests.values() for question in questions]
    kept, dropped = leave_out_tested(_number_twins(found), tested)
    if not kept:
        raise InputError(
            f"all {dropped} references are test questions as well; give other files or splits."
        )
    return kept, tests, dropped


def _number_twins(questions: Sequence[Question]) -> list[Question]:
    """Each question once; different ones of the same id, as files of their own may have, get numbers."""
    seen: dict[str, Question] = {}
    for question in questions:
        name, number = question.id, 1
        while name in seen and replace(seen[name], id=question.id) != question:
            number += 1
            name = f"{question.id}~{number}"
        seen.setdefault(name, replace(question, id=name))
    return list(seen.values())


def _load(model: str, settings: RemixStudySettings) -> tuple[MoeModel, Letters]:
    from ..agents.engines.loading import explain, load_model
    from ..agents.moe.architecture import find_moe
    from ..agents.moe.letters import Letters

    try:
        loaded = load_model(model, revision=settings.revision, dtype=settings.dtype)
    except Exception as error:
        raise InputError(f"{model} could not be loaded: {explain(error)}") from error
    moe = find_moe(loaded.model)
    if loaded.model.device.type == "cpu":
        # transformers' grouped products fall back to a slow loop of their own on a CPU.
        loaded.model.set_experts_implementation("eager")
    return moe, Letters.of(loaded.tokenizer, window=loaded.window)


def _ask(
    moe: MoeModel,
    letters: Letters,
    name: str,
    questions: Sequence[Question],
    first: int,
    out: Path,
    settings: RemixStudySettings,
    notes: list[str],
    tell: Tell,
) -> StateBank:
    """Run the model once over a set, leaving out what cannot be asked."""
    from ..agents.moe.bank import build_bank
    from ..agents.moe.bank_files import name_states

    usable: list[Question] = []
    refused: list[str] = []
    for question in questions:
        try:
            letters.encode(question)
        except InputError as error:
            refused.append(str(error))
        else:
            usable.append(question)
    if refused:
        notes.append(
            f"{name}: {len(refused)} questions were left out, the first because: {refused[0]}"
        )
    if not usable:
        raise InputError(f"none of the {len(questions)} questions of {name} can be asked.")

    def progress(done: int, whole: int) -> None:
        if done == whole or done % (16 * settings.batch) < settings.batch:
            tell(f"{name}: {done} of {whole} questions asked")

    built = build_bank(
        moe,
        letters,
        usable,
        first=first,
        folder=out / "states" / f"{_slug(name)}-{name_states(moe, letters, usable, first)}",
        budget_bytes=BUDGET,
        batch=settings.batch,
        on_progress=progress,
    )
    if built.kind != "full":
        notes.append(f"{name}: states are kept as {built.kind}, to fit into {BUDGET >> 30} GiB.")
    return built


def _slug(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60]


def _tune(
    references: RemixField, settings: RemixStudySettings, out: Path, key: str, tell: Tell
) -> Tuned:
    from ..agents.moe.task_bias import TaskBias
    from ..graph.remix_methods import Tuned
    from ..graph.remix_tuning import keep_as_given, tune

    path, weights = out / "tuned.json", out / "task_bias.safetensors"
    if path.is_file() and weights.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        bias = TaskBias.load(weights)
        if known["key"] == key == bias.about.get("key"):
            return Tuned(
                ngd=RemixSettings(**known["told"]["ngd"]),
                remix=RemixSettings(**known["told"]["remix"]),
                temperature=known["told"]["temperature"],
                bias=bias,
                told=known["told"],
            )
    choose = tune if settings.tunes else keep_as_given
    tuned = choose(
        references, settings.remix, epochs=settings.epochs, seed=settings.seed, tell=tell
    )
    assert tuned.bias is not None
    # Tied to the settings that it belongs to: a kill between two files must not pair others.
    replace(tuned.bias, about={"key": key}).save(weights)
    write_text(path, json.dumps({"key": key, "told": tuned.told}, indent=1))
    return tuned


def _replay(
    of_test: RemixField,
    methods: Sequence[str],
    settings: RemixStudySettings,
    tuned: Tuned,
    folder: Path,
    key: str,
    tell: Tell,
) -> dict[str, list[RemixReplay]]:
    """Every method and seed, from the folder where they are finished."""
    from ..graph.remix_methods import SEEDED, replay_method

    folder.mkdir(exist_ok=True)
    found: dict[str, list[RemixReplay]] = {}
    for method in methods:
        for seed in range(settings.seeds if method in SEEDED else 1):
            path = folder / f"{_slug(of_test.name)}-{method}-{seed}-{key[:8]}.json"
            replay = _read_replay(path, key)
            if replay is None:
                replay = replay_method(method, of_test, tuned, settings.seed + seed)
                row = asdict(replay) | {
                    "right_Q": replay.right_Q.tolist(),
                    "accepted_Q": replay.accepted_Q.tolist(),
                }
                write_text(path, json.dumps({"key": key, "replay": row}))
                tell(f"{of_test.name}, {method}: {replay.right_Q.mean():.3f}")
            found.setdefault(method, []).append(replay)
    return found


def _read_replay(path: Path, key: str) -> RemixReplay | None:
    import numpy as np

    from ..graph.remix_field import RemixReplay

    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["key"] != key:
            return None
        told = row["replay"]
        return RemixReplay(
            **(
                told
                | {
                    "right_Q": np.array(told["right_Q"]),
                    "accepted_Q": np.array(told["accepted_Q"], dtype=bool),
                    "letters_Q": tuple(told["letters_Q"]),
                    "prompt_tokens": tuple(told["prompt_tokens"]),
                }
            )
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tell_samples(of_test: RemixField, found: dict[str, list[RemixReplay]]) -> list[str]:
    """One line per question: what each method answered, by the first seed."""
    margins = of_test.margin_Q
    return [
        json.dumps(
            {
                "test": of_test.name,
                "id": question.id,
                "gold": question.gold,
                "margin": round(float(margins[place]), 5),
                "answers": {name: replays[0].letters_Q[place] for name, replays in found.items()},
                "changed": {
                    name: bool(replays[0].accepted_Q[place]) for name, replays in found.items()
                },
            }
        )
        + "\n"
        for place, question in enumerate(of_test.questions)
    ]


def _key(bank: StateBank, settings: RemixStudySettings, encoder: Encoder) -> str:
    """Identifies what was chosen on the references, and with the test set a method's results."""
    from ..agents.moe.bank import identify
    from ..graph.remix_methods import SHOTS
    from ..graph.remix_tuning import CANDIDATES, HELD_BACK, TEMPERATURES, UNSURE

    parts = [
        str(VERSION),
        identify(bank.moe),
        bank.letters.prompt_hash,
        fingerprint(bank.questions),
        f"{encoder.name}@{encoder.revision}",
        settings.remix.model_dump_json(),
        repr((settings.seed, settings.epochs, settings.tunes)),
        repr((CANDIDATES, HELD_BACK, TEMPERATURES, UNSURE, SHOTS)),
    ]
    return _hash("\0".join(parts))


def _hash(text: str) -> str:
    """A sha256 in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plot(rows: Sequence[dict[str, Any]], out: Path) -> list[str]:
    try:
        from .remix_plot import plot_remixing

        plot_remixing(rows, out)
    except ImportError:
        return ["no pictures: matplotlib is not installed; run: pip install 'expertmix[viz]'"]
    return []
