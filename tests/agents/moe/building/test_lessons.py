from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")

from expertmix.agents.moe.building.lessons import (
    lesson_batches,
    read_choices,
    read_lessons,
    shuffle_options,
)
from expertmix.retrieval import InputError, Question


def test_only_the_training_split_is_learnt_and_nothing_that_is_tested(
    choices: Path, tmp_path: Path
) -> None:
    lessons = read_lessons([choices])
    assert [q.id for q in lessons.questions] == [f"train/{n}" for n in range(20)]
    assert lessons.dropped == 4  # asked by the test split as well
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"text": "say OAK, 1!"}\n')
    fewer = read_lessons([choices], [examples])
    assert [q.id for q in fewer.questions] == ["train/0", *(f"train/{n}" for n in range(2, 20))]
    assert fewer.dropped == 5


def test_measuring_takes_the_other_splits_and_leaves_out_what_was_learnt(
    choices: Path, tmp_path: Path
) -> None:
    tested = read_choices(choices)
    assert [q.id for q in tested] == [f"test/{n}" for n in range(20, 30)]
    assert len(read_choices(choices, without=tested[:3])) == 7
    with pytest.raises(InputError, match="no labelled choices"):
        read_choices(choices, without=tested)
    path = tmp_path / "q.jsonl"
    path.write_text('{"text": "Red?", "options": ["yes", "no"], "gold": "B"}\n{"text": "Why?"}\n')
    assert [q.text for q in read_choices(path)] == ["Red?"]


def test_bad_files_are_explained(tmp_path: Path, choices: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(**columns: list[object]) -> Path:
        path = tmp_path / "bad.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    with pytest.raises(InputError, match="rows without a split"):
        read_lessons([write(question=["a"], options=[["x", "y"]], gold=["A"])])
    with pytest.raises(InputError, match="no labelled choices in a split named train"):
        read_lessons([write(question=["a"], options=[None], gold=["1"], split=["train"])])
    with pytest.raises(InputError, match="row 1"):
        read_lessons([write(question=["a"], options=[["x", "y"]], gold=["E"], split=["train"])])
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        read_lessons([tmp_path / "bad.parquet"])


def test_batches_repeat_by_seed_and_cover_every_question_once_an_epoch(choices: Path) -> None:
    questions = read_lessons([choices]).questions

    def draw(seed: int, number: int = 8) -> list[list[Question]]:
        return list(itertools.islice(lesson_batches(questions, 5, seed), number))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    first = draw(1, 4)
    assert sorted(q.id for batch in first for q in batch) == sorted(q.id for q in questions)
    assert draw(1)[4:] != first


def test_gold_moves_with_its_option() -> None:
    question = Question(id="q", text="?", options=("a", "b", "c", "d"), gold="C", kind="choice")
    seen: set[str | None] = set()
    for seed in range(20):
        shuffled = shuffle_options(question, random.Random(seed))
        assert shuffled.options[shuffled.letters.index(shuffled.gold or "")] == "c"
        assert sorted(shuffled.options) == ["a", "b", "c", "d"]
        seen.add(shuffled.gold)
    assert seen == {"A", "B", "C", "D"}


def test_at_first_most_lessons_only_point_at_an_option() -> None:
    questions = [
        Question(
            id=f"q{i}", text=f"Which is {i}?", options=("a", "b", "c"), gold="B", kind="choice"
        )
        for i in range(40)
    ]

    def share(batches: list[list[Question]]) -> float:
        asked = [question for batch in batches for question in batch]
        pointing = [question for question in asked if question.text.startswith("Which option says")]
        for question in pointing:
            told = question.options[question.letters.index(question.gold or "")]
            assert question.text == f'Which option says "{told}"?'
        return len(pointing) / len(asked)

    drawn = list(itertools.islice(lesson_batches(questions, 10, 3, pointing_steps=20), 60))
    assert 0.55 < share(drawn[:20]) < 0.85
    assert 0.05 < share(drawn[20:]) < 0.3
    plain = list(itertools.islice(lesson_batches(questions, 10, 3), 8))
    assert share(plain) == 0
