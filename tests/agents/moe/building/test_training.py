from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers

from expertmix.agents.moe.building import build as building
from expertmix.agents.moe.building import training
from expertmix.agents.moe.building.build import Build, build_moe
from expertmix.agents.moe.building.lessons import read_lessons, shuffle_options
from expertmix.agents.moe.building.measuring import Accuracy, measure_letters
from expertmix.agents.moe.building.parent import find_parent, load_folder, load_model
from expertmix.agents.moe.building.part import read_part
from expertmix.agents.moe.building.training import Course, assemble, letter_logits
from expertmix.agents.moe.letters import Letters
from expertmix.retrieval import InputError, Question

MakeParent = Callable[..., Path]
COURSE = Course(steps=6, router_steps=2, questions=4, rank=2, kept_every=2)


def trained(parent: Path, prompts: Path, choices: Path, **changes: Any) -> Build:
    settings: dict[str, Any] = {
        "layers": 2,
        "experts": 8,
        "top_k": 4,
        "calibrate": prompts,
        "train": (choices,),
        "course": COURSE,
    }
    return Build(parent=str(parent), **(settings | changes))


def letters_of(folder: Path) -> Letters:
    return Letters.of(transformers.AutoTokenizer.from_pretrained(folder))


def test_the_stand_in_computes_what_the_written_model_does(
    make_parent: MakeParent, prompts: Path, choices: Path, tmp_path: Path
) -> None:
    parent = find_parent(str(make_parent("Qwen2")))
    build = trained(parent.folder, prompts, choices, save_part=tmp_path / "part")
    out = build_moe(build, tmp_path / "moe").out
    part = read_part(tmp_path / "part")
    assert {update.up_OR.dtype for update in part.updates.values()} == {torch.bfloat16}
    assert any(update.up_OR.any() for update in part.updates.values())
    model = load_model(parent)
    routers, updates = assemble(model, part)
    assert not updates
    assert not any(router.requires_grad for router in routers.values())
    batch = read_lessons([choices]).questions[:5]
    letters = letters_of(out)
    with torch.no_grad():
        expected = letter_logits(load_folder(out, torch.float32), letters, batch)
        torch.testing.assert_close(letter_logits(model, letters, batch), expected)


def test_training_lowers_the_loss_of_what_it_is_trained_on(
    make_parent: MakeParent,
    prompts: Path,
    choices: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def same_batch(
        questions: Sequence[Question], size: int, seed: int, *, pointing_steps: int
    ) -> Iterator[list[Question]]:
        rng = random.Random(seed)
        return itertools.repeat([shuffle_options(question, rng) for question in questions[:size]])

    monkeypatch.setattr(training, "lesson_batches", same_batch)
    told: list[str] = []
    course = Course(steps=60, router_steps=10, questions=6, rank=8, rate=1e-2, kept_every=10)
    build = trained(make_parent("Llama", initializer_range=0.1), prompts, choices, course=course)
    build_moe(build, tmp_path / "moe", progress=told.append)
    losses = [float(line.rpartition(" ")[2]) for line in told if line.startswith("step")]
    assert len(losses) == 6
    assert losses[-1] < 0.5 * losses[0]


def test_an_interrupted_training_ends_as_an_undisturbed_one(
    make_parent: MakeParent,
    prompts: Path,
    choices: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = trained(make_parent("Llama"), prompts, choices)
    straight = build_moe(build, tmp_path / "straight").out
    real, calls = training.letter_loss, iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "letter_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_moe(build, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    with pytest.raises(InputError, match="work of another build"):
        build_moe(trained(Path(build.parent), prompts, choices, seed=1), tmp_path / "broken")
    told: list[str] = []
    resumed = build_moe(build, tmp_path / "broken", progress=told.append).out
    assert [line.partition(":")[0] for line in told if "step" in line] == ["step 6 of 6"]
    name = "model.safetensors"
    assert (resumed / name).read_bytes() == (straight / name).read_bytes()
    assert not (tmp_path / "broken.partial").exists()
    other = build_moe(trained(Path(build.parent), prompts, choices, seed=1), tmp_path / "other").out
    assert (other / name).read_bytes() != (straight / name).read_bytes()


def test_a_trained_part_gives_the_same_model_and_can_be_trained_on(
    make_parent: MakeParent, prompts: Path, choices: Path, tmp_path: Path
) -> None:
    parent = make_parent("Llama", dtype=torch.bfloat16)
    first = build_moe(
        trained(parent, prompts, choices, save_part=tmp_path / "part"), tmp_path / "a"
    ).out
    second = build_moe(Build(parent=str(parent), part=tmp_path / "part"), tmp_path / "b").out
    for name in ("model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    more = Build(
        parent=str(parent),
        part=tmp_path / "part",
        train=(choices,),
        course=COURSE,
        save_part=tmp_path / "more",
    )
    third = build_moe(more, tmp_path / "c").out
    ranks = {len(update.down_RD) for update in read_part(tmp_path / "more").updates.values()}
    assert ranks == {4}
    fourth = build_moe(Build(parent=str(parent), part=tmp_path / "more"), tmp_path / "d").out
    name = "model.safetensors"
    assert (third / name).read_bytes() == (fourth / name).read_bytes()
    assert (third / name).read_bytes() != (first / name).read_bytes()


def test_the_card_tells_of_training_and_compares_with_the_parent(
    make_parent: MakeParent, prompts: Path, choices: Path, tmp_path: Path
) -> None:
    parent = make_parent("Llama")
    (parent / "README.md").write_text("---\nlicense: mit\n---\n")
    built = build_moe(trained(parent, prompts, choices, measure=choices), tmp_path / "moe")
    assert built.measured is not None
    assert built.measured.dense.total == built.measured.mixture.total == 10
    card = (built.out / "README.md").read_text()
    assert "license: mit" in card
    assert "20 choices of choices.parquet, 6 steps, seed 0; 4 dropped as held out" in card
    assert "14 matrices, rank 2" in card
    low, high = built.measured.mixture.interval
    right = built.measured.mixture.right
    assert f"| this mixture | {right} | 10 | {right / 10:.3f} | {low:.3f}–{high:.3f} |" in card


def test_dense_layers_below_can_be_trained_too(
    make_parent: MakeParent, prompts: Path, choices: Path, tmp_path: Path
) -> None:
    parent = find_parent(str(make_parent("Llama")))
    course = Course(steps=4, router_steps=1, questions=4, rank=2, layers=3)
    part = tmp_path / "part"
    build = trained(parent.folder, prompts, choices, course=course, save_part=part)
    out = build_moe(build, tmp_path / "moe").out
    updates = read_part(part).updates
    assert {int(name.split(".")[2]) for name in updates} == {1, 2, 3}
    model, letters = load_model(parent), letters_of(out)
    assemble(model, read_part(part))
    batch = read_lessons([choices]).questions[:5]
    with torch.no_grad():
        expected = letter_logits(load_folder(out, torch.float32), letters, batch)
        torch.testing.assert_close(letter_logits(model, letters, batch), expected)


def test_measuring_counts_the_likeliest_letters(make_parent: MakeParent, choices: Path) -> None:
    folder = make_parent("Llama")
    model, letters = load_folder(folder, torch.float32), letters_of(folder)
    questions = read_lessons([choices]).questions
    right = 0
    for question in questions:  # one by one, without padding
        ids = torch.tensor([letters.encode(question)])
        logits = model(ids).logits[0, -1, list(letters.tokens[: len(question.options)])]
        right += question.letters[int(logits.argmax())] == question.gold
    found = measure_letters(model, letters, questions)
    assert (found.right, found.total) == (right, 20)


def test_the_interval_is_wilsons() -> None:
    from expertmix.graph import wilson_interval

    for right, total in ((0, 7), (3, 10), (10, 10), (431, 900)):
        found = Accuracy(right=right, total=total).interval
        assert found == pytest.approx(wilson_interval(right, total))


def test_the_shipped_part_is_used_for_the_default_parent_only(
    make_parent: MakeParent, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = make_parent("Llama")
    shipped = tmp_path / "shipped"
    small: dict[str, Any] = {"layers": 2, "experts": 8, "top_k": 4, "calibrate": prompts}
    build_moe(Build(parent=str(parent), save_part=shipped, **small), tmp_path / "a")
    monkeypatch.setattr(building, "SHIPPED", shipped)
    monkeypatch.setattr(building, "DEFAULT_PARENT", str(parent))
    told: list[str] = []
    out = build_moe(Build(parent=str(parent)), tmp_path / "b", progress=told.append).out
    assert told == []
    assert (out / "config.json").read_bytes() == (tmp_path / "a" / "config.json").read_bytes()
    out = build_moe(Build(parent=str(parent), layers=1, experts=4, top_k=2), tmp_path / "c").out
    assert json.loads((out / "config.json").read_text())["mlp_only_layers"] == [0, 1, 2]
