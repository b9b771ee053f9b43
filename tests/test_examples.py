"""The shipped questions have the right gold, and nothing that is trained on gives them away."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from expertmix.agents.answers import is_correct, read_answer
from expertmix.retrieval import Question, read_questions

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = ("questions.jsonl", "references.jsonl")
ADAPTERS = sorted(path.parent for path in EXAMPLES.glob("adapters/*/adapter_config.json"))
SUM = re.compile(r"What is (\d+)(%?) (\+|-|×|÷|of) (\d+)\?")
CONVERSION = re.compile(r"How many (\w+) are there in ([\d.]+|one) (\w+)\?")
SEQUENCE = re.compile(r"Which number comes next: ([\d, ]+), \.\.\.\?")
UNITS = {
    ("minutes", "hours"): 60, ("seconds", "minutes"): 60, ("hours", "days"): 24,
    ("days", "weeks"): 7, ("months", "years"): 12, ("centimetres", "metres"): 100,
    ("metres", "kilometres"): 1000, ("millimetres", "centimetres"): 10, ("inches", "foot"): 12,
    ("grams", "kilograms"): 1000, ("millilitres", "litres"): 1000,
}  # fmt: skip


def _shipped() -> list[Question]:
    return [question for name in FILES for question in read_questions(EXAMPLES / name)]


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+|[+×÷%-]", text.casefold()))


def _gold_value(question: Question) -> float:
    """The gold as a number; no other option may have the same value."""
    assert question.gold is not None
    if not question.options:
        return float(question.gold)
    values = [float(option) for option in question.options]
    assert len(set(values)) == len(values)
    return values[question.letters.index(question.gold)]


def _lessons() -> Any:
    spec = importlib.util.spec_from_file_location("example_lessons", EXAMPLES / "lessons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # Its dataclasses look their module up while it is being run.
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def test_there_are_enough_questions_of_every_kind_and_skill() -> None:
    questions = read_questions(EXAMPLES / FILES[0])
    assert len(questions) >= 48
    assert len({skill for q in questions for skill in q.skills}) >= 8
    kinds = Counter(q.kind for q in questions)
    assert kinds["choice"] >= 0.4 * len(questions)
    assert min(kinds["number"], kinds["text"]) >= 0.2 * len(questions)


def test_every_skill_is_described_tested_and_profiled() -> None:
    skills = yaml.safe_load((EXAMPLES / "pool.yaml").read_text(encoding="utf-8"))["skills"]
    assert all(isinstance(line, str) and line for line in skills.values())
    for name in FILES:
        used = Counter(skill for q in read_questions(EXAMPLES / name) for skill in q.skills)
        assert set(used) == set(skills)
        assert min(used.values()) >= 5


def test_no_question_is_asked_twice() -> None:
    texts = Counter(_normal(q.text) for q in _shipped())
    assert [text for text, count in texts.items() if count > 1] == []
    assert len({q.id for q in _shipped()}) == len(_shipped())


@pytest.mark.parametrize("name", FILES)
def test_no_letter_is_right_more_often_than_the_others(name: str) -> None:
    choices = [q for q in read_questions(EXAMPLES / name) if q.kind == "choice"]
    assert {len(q.options) for q in choices} == {4}
    letters = Counter(q.gold for q in choices)
    assert set(letters) == set("ABCD")
    assert max(letters.values()) - min(letters.values()) <= 0.1 * len(choices)


def test_options_differ() -> None:
    assert [q.id for q in _shipped() if len({_normal(o) for o in q.options}) < len(q.options)] == []


def test_sums_have_the_right_gold() -> None:
    checked = 0
    for question in _shipped():
        if match := SUM.fullmatch(question.text):
            a, percent, sign, b = int(match[1]), match[2], match[3], int(match[4])
            assert bool(percent) == (sign == "of")
            results = {"+": a + b, "-": a - b, "×": a * b, "÷": a / b, "of": a * b / 100}
            assert _gold_value(question) == results[sign], question.id
            checked += 1
    assert checked == sum("arithmetic" in q.skills for q in _shipped())


def test_conversions_have_the_right_gold() -> None:
    checked = 0
    for question in _shipped():
        if match := CONVERSION.fullmatch(question.text):
            count = 1 if match[2] == "one" else float(match[2])
            assert _gold_value(question) == count * UNITS[match[1], match[3]], question.id
            checked += 1
    assert checked >= 12


def test_sequences_go_on_by_one_rule() -> None:
    checked = 0
    for question in _shipped():
        if match := SEQUENCE.fullmatch(question.text):
            terms = [*map(int, match[1].split(", ")), int(_gold_value(question))]
            steps = [b - a for a, b in itertools.pairwise(terms)]
            same_step = len(set(steps)) == 1
            same_factor = len({b / a for a, b in itertools.pairwise(terms)}) == 1
            growing_step = len({b - a for a, b in itertools.pairwise(steps)}) == 1
            assert same_step or same_factor or growing_step, question.id
            checked += 1
    assert checked >= 6


def test_every_gold_is_accepted_as_an_answer() -> None:
    for question in _shipped():
        assert question.gold is not None
        for gold in question.gold.split(" || "):
            said = f"({gold})" if question.kind == "choice" else gold
            answer = read_answer(f"Answer: {said}", question)
            assert is_correct(answer, question), (question.id, gold, answer)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_lessons_reply_gives_its_gold_answer(held_out: bool) -> None:
    lessons = _lessons().arithmetic_lessons(3, held_out=held_out)
    for lesson in itertools.islice(lessons, 300):
        answer = read_answer(lesson.reply, lesson.question)
        assert is_correct(answer, lesson.question), lesson


def test_lessons_repeat_neither_shipped_questions_nor_held_out_ones() -> None:
    module = _lessons()
    shipped = {module.lesson_key(q.text) for q in _shipped()}
    trained, tested = (
        {
            module.lesson_key(lesson.question.text)
            for lesson in itertools.islice(module.arithmetic_lessons(0, held_out=held_out), 3000)
        }
        for held_out in (False, True)
    )
    assert not trained & shipped
    assert not trained & tested


def test_a_seed_gives_the_same_lessons_again() -> None:
    module = _lessons()
    first, second, other = (
        [x.reply for x in itertools.islice(module.arithmetic_lessons(seed), 50)]
        for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other


def test_the_adapters_are_small() -> None:
    files = [path for path in (EXAMPLES / "adapters").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 << 20


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda path: path.name)
def test_an_adapter_is_in_the_form_that_vllm_loads(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA"
    assert config["r"] <= 16
    assert not config["use_dora"]
    assert config["modules_to_save"] is None
    with (folder / "adapter_model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    assert {entry["dtype"] for entry in tensors.values()} <= {"BF16", "F16"}
    for name, entry in tensors.items():
        assert re.fullmatch(r"base_model\.model\.model\.layers\.\d+\..*\.lora_[AB]\.weight", name)
        assert config["r"] in entry["shape"]


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda path: path.name)
def test_an_adapters_card_says_what_it_is_and_how_good(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("SmolLM2-135M-Instruct", "Apache-2.0", "train_adapter.py", "seed", "n =", "95 %"):
        assert word in card
