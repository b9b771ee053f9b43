"""Recorded folders as numbers: labels, odd rows, splits, and one sentence for what cannot be read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.outcomes import MISSING, UNREADABLE
from expertmix.agents.recorded import Recorded, read_recorded
from expertmix.agents.recorded_answers import normalise_answer
from expertmix.agents.recorded_files import read_models
from expertmix.retrieval import InputError

pa = pytest.importorskip("pyarrow", reason="recordings are parquet tables: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SHARED = Path(__file__).parents[3] / "shared" / "data"
Rows = list[dict[str, Any]]
Write = Callable[[Rows, Rows], Path]


def question(qid: str, gold: str = "B", **other: Any) -> dict[str, Any]:
    row = {"question_id": qid, "split": "dev", "category": "sums", "question": f"What is {qid}?"}
    return row | {"options": ["one", "two", "three"], "gold": gold} | other


def outcome(qid: str, predicted: str | None, model: str = "ada", **other: Any) -> dict[str, Any]:
    return {"question_id": qid, "model": model, "predicted": predicted} | other


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(questions: Rows, outcomes: Rows) -> Path:
        for name, rows in (("questions", questions), ("outcomes", outcomes)):
            columns = dict.fromkeys(key for row in rows for key in row)
            filled = [{key: row.get(key) for key in columns} for row in rows]
            pq.write_table(pa.Table.from_pylist(filled), tmp_path / f"{name}.parquet")
        return tmp_path

    return write


def label_of(recorded: Recorded, qid: str, model: str) -> int:
    row = [q.id for q in recorded.questions].index(qid)
    return int(recorded.table.labels_NE[row, recorded.table.experts.index(model)])


def test_letters_are_places_of_options_and_nothing_else_is_a_vote(write: Write) -> None:
    folder = write(
        [question(qid) for qid in "abcdefg"],
        [
            outcome("a", "B", output_chars=400),
            outcome("b", "c"),
            outcome("c", "two"),  # the option itself
            outcome("d", "H"),  # a letter that the question does not have
            outcome("e", None, correct=False),
            outcome("f", "B", answered=False),
            outcome("g", "A", "bob"),
        ],
    )
    recorded = read_recorded(folder)
    labels = [label_of(recorded, qid, "ada") for qid in "abcdefg"]
    assert labels == [1, 2, 1, UNREADABLE, UNREADABLE, UNREADABLE, MISSING]
    assert recorded.table.gold_N.tolist() == [1] * 7
    assert recorded.table.options_N.tolist() == [3] * 7
    assert recorded.tokens_NE[0].tolist() == [100.0, 0.0]
    assert recorded.mergeable
    assert any(note.startswith("7 answers are missing") for note in recorded.notes)
    assert any(note.startswith("1 answers name no option") for note in recorded.notes)


def test_open_answers_share_labels_by_value_and_gold_has_its_own(write: Write) -> None:
    said = {"ada": "$1,234.00", "bob": "1234 apples", "cy": "7", "di": "7.0", "ed": None}
    folder = write(
        [question("a", "1234", options=None), question("b", "Rome || Roma", options=None)],
        [outcome("a", text, model) for model, text in said.items()]
        + [outcome("b", " ROMA ", "ada"), outcome("b", "Oslo", "bob")],
    )
    recorded = read_recorded(folder)
    labels, gold = recorded.table.labels_NE, recorded.table.gold_N
    assert labels[0, 0] == labels[0, 1] == gold[0]
    assert labels[0, 2] == labels[0, 3] != gold[0]
    assert labels[0, 4] == UNREADABLE
    assert labels[1, 0] == gold[1] != labels[1, 1]
    assert recorded.table.options_N.tolist() == [0, 0]
    assert [q.kind for q in recorded.questions] == ["number", "text"]


def test_the_label_of_gold_does_not_tell_that_it_is_gold(write: Write) -> None:
    folder = write(
        [question(str(n), str(n), options=None) for n in range(1, 9)],
        [outcome(str(n), str(m), f"m{m}") for n in range(1, 9) for m in range(1, 9)],
    )
    assert sorted(read_recorded(folder).table.gold_N.tolist()) == list(range(8))


def test_where_only_right_and_wrong_are_known_nothing_can_be_merged(write: Write) -> None:
    folder = write(
        [question("a", "not a letter")],
        [
            {"question_id": "a", "model": "ada", "correct": True},
            {"question_id": "a", "model": "bob", "correct": False},
            {"question_id": "a", "model": "cy", "correct": False},
        ],
    )
    recorded = read_recorded(folder)
    assert not recorded.mergeable
    assert recorded.table.right_NE.tolist() == [[True, False, False]]
    assert label_of(recorded, "a", "bob") != label_of(recorded, "a", "cy"), "no shared vote"
    assert any("nothing can be merged" in note for note in recorded.notes)


def test_predicted_and_gold_decide_against_correct_which_decides_alone(write: Write) -> None:
    folder = write(
        [question("a"), question("b"), question("c")],
        [
            outcome("a", "B", correct=False),
            outcome("b", "A", correct=True),
            outcome("c", None, correct=True),
        ],
    )
    recorded = read_recorded(folder)
    assert recorded.table.right_NE[:, 0].tolist() == [True, False, True]
    assert any(note.startswith("2 outcomes where `correct` contradicts") for note in recorded.notes)
    assert any(
        note.startswith("1 answers were not kept but marked right") for note in recorded.notes
    )


def test_a_gold_letter_beyond_the_options_extends_them(write: Write) -> None:
    recorded = read_recorded(write([question("a", "E")], [outcome("a", "E")]))
    assert recorded.table.options_N.tolist() == [5]
    assert recorded.table.right_NE.all()
    assert any("beyond their options" in note for note in recorded.notes)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_nothing(write: Write, seed: int) -> None:
    questions = [question(str(n), "AB"[n % 2]) for n in range(6)]
    questions += [question(str(n), str(n), options=None) for n in range(6, 9)]
    outcomes = [
        outcome(str(n), "ABC"[(n + m) % 3] if n < 6 else str((n * m) % 7), f"m{m}")
        for n in range(9)
        for m in range(4)
    ]
    outcomes.append(outcome("0", "C", "m0"))  # said twice, differently
    first = read_recorded(write(questions, outcomes))
    random.Random(seed).shuffle(questions)
    random.Random(seed).shuffle(outcomes)
    second = read_recorded(write(questions, outcomes))
    assert first.questions == second.questions
    assert first.notes == second.notes
    assert np.array_equal(first.table.labels_NE, second.table.labels_NE)
    assert np.array_equal(first.table.gold_N, second.table.gold_N)


def test_what_is_tested_is_never_learnt_from(write: Write) -> None:
    options = ["three", "TWO.", "one"]
    folder = write(
        [
            question("d1", question="Red,  or blue?"),
            question("d2", question="New?"),
            question("d3", question="new"),
            question("p1", question="red or BLUE", options=options, split="profile"),
            question("p2", question="Old?", split="profile"),
            question("p3", question="old", split="profile"),
            question("p4", question="Old?", options=["x", "y"], split="profile"),
        ],
        [outcome("d1", "A")],
    )
    recorded = read_recorded(folder)
    division = recorded.divide("profile", "dev")
    learnt = [recorded.questions[row].id for row in division.profile]
    assert learnt == ["p2", "p4"]
    assert [recorded.questions[row].id for row in division.test] == ["d1", "d2", "d3"]
    assert [note.split()[0] for note in division.notes] == ["1", "1", "1"]


def test_halves_depend_on_seed_and_id_alone(write: Write) -> None:
    rows = [question(str(n)) for n in range(200)]
    outcomes = [outcome("0", "A")]
    recorded = read_recorded(write(rows, outcomes))
    halves = dict(zip([q.id for q in recorded.questions], recorded.halve(1).splits, strict=True))
    fewer = read_recorded(write(rows[:50], outcomes))
    again = dict(zip([q.id for q in fewer.questions], fewer.halve(1).splits, strict=True))
    assert again.items() <= halves.items()
    assert 70 < list(halves.values()).count("test") < 130
    assert recorded.halve(2).splits != recorded.halve(1).splits


@pytest.mark.parametrize(
    ("profile", "test", "why"),
    [
        ("dev", "dev", "both the split"),
        ("gone", "dev", 'no questions with split "gone"; there are dev'),
        ("dev", "gone", "--split-half"),
    ],
)
def test_splits_that_cannot_be_used_are_named(
    write: Write, profile: str, test: str, why: str
) -> None:
    recorded = read_recorded(write([question("a")], [outcome("a", "A")]))
    with pytest.raises(InputError, match=why):
        recorded.divide(profile, test)


def test_a_profile_that_is_all_tested_on_is_refused(write: Write) -> None:
    rows = [question("a", question="Red?"), question("b", question="red", split="profile")]
    with pytest.raises(InputError, match="none is left"):
        read_recorded(write(rows, [outcome("a", "A")])).divide("profile", "dev")


@pytest.mark.parametrize(
    ("questions", "outcomes", "why"),
    [
        ([{"question_id": "a", "gold": "A"}], [outcome("a", "A")], "lacks the column question"),
        ([question("a")], [{"question_id": "a", "predicted": "A"}], "lacks the column model"),
        ([question("a")], [{"question_id": "a", "model": "m"}], "neither the column predicted nor"),
        ([question("a", "maybe")], [outcome("a", "A")], "neither a letter nor one of its options"),
        ([question("a") | {"gold": None}], [outcome("a", "A")], "rows without gold"),
        ([question("a"), question("a", "C")], [outcome("a", "A")], "two different questions"),
        ([question("a", options=["x"] * 27)], [outcome("a", "A")], "at most 26 texts"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(
    write: Write, questions: Rows, outcomes: Rows, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        read_recorded(write(questions, outcomes))


def test_empty_missing_and_foreign_files(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_recorded(tmp_path)
    folder = write([question("a")], [outcome("a", "A")])
    pq.write_table(
        pq.read_table(folder / "outcomes.parquet").slice(0, 0), folder / "outcomes.parquet"
    )
    with pytest.raises(InputError, match="has no rows"):
        read_recorded(folder)
    (folder / "outcomes.parquet").write_text("hello")
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_recorded(folder)


def test_models_are_chosen_by_name_and_an_unknown_one_is_named(write: Write) -> None:
    folder = write([question("a")], [outcome("a", "A", model) for model in ("cy", "ada", "bob")])
    assert read_recorded(folder, ["cy", "ada"]).table.experts == ("ada", "cy")
    with pytest.raises(InputError, match=r'no model "zoe".*3: ada, bob, cy'):
        read_recorded(folder, ["ada", "zoe"])


def test_outcomes_of_unknown_questions_are_left_out_and_counted(write: Write) -> None:
    recorded = read_recorded(write([question("a")], [outcome("a", "A"), outcome("b", "A")]))
    assert len(recorded) == 1
    assert any(note.startswith("1 outcomes of unknown questions") for note in recorded.notes)


@pytest.mark.parametrize("text", ["ada\n\n# the second\nbob\nada\n", json.dumps(["ada", "bob"])])
def test_a_file_of_models(tmp_path: Path, text: str) -> None:
    (tmp_path / "models").write_text(text)
    assert read_models(tmp_path / "models") == ["ada", "bob"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "names no models"), ("[1]", "no list of names"), ('{"a": 1}', "no list"), ("[", "JSON")],
)
def test_a_file_that_names_no_models(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "models").write_text(text)
    with pytest.raises(InputError, match=why):
        read_models(tmp_path / "models")
    with pytest.raises(InputError, match="cannot be read"):
        read_models(tmp_path / "other")


@given(st.text(max_size=60), st.booleans())
def test_any_answer_has_a_form_that_spaces_and_case_do_not_change(text: str, number: bool) -> None:
    form = normalise_answer(text, number=number)
    assert isinstance(form, str)
    if not number:
        assert normalise_answer(f"  {text} ") == form


@given(st.integers(-(10**9), 10**9))
def test_a_number_has_one_form_however_it_is_written(value: int) -> None:
    forms = {
        normalise_answer(text, number=True) for text in (f"{value}", f"{value:,}", f"{value}.0")
    }
    assert len(forms) == 1


def test_the_recorded_answers_of_mmlu_pro() -> None:
    folder = SHARED / "mmlu_pro"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    recorded = read_recorded(folder)
    assert (len(recorded), len(recorded.table.experts)) == (4349, 34)
    assert any(note.startswith("44 outcomes where `correct`") for note in recorded.notes)
    division = recorded.divide("profile", "dev")
    assert (len(division.profile), len(division.test)) == (345, 4000)
