"""Benchmark sets are read from their official files and from ours. Every row here is made up."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.retrieval import (
    TASKS,
    InputError,
    Question,
    find_task,
    fingerprint,
    is_confidential,
    read_questions,
    read_task,
)
from expertmix.retrieval.task_rows import read_task_row

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "zorblax"

GPQA: dict[str, Any] = {
    "Record ID": "rec1",
    "Question": "Which of these is a zorblax?",
    "Correct Answer": "a blue zorblax",
    "Incorrect Answer 1": "a red one",
    "Incorrect Answer 2": "a green one",
    "Incorrect Answer 3": "no zorblax",
    "Subdomain": "Colours",
    "High-level domain": "Physics",
    "Canary String": "not for training",
}
OFFICIAL: dict[str, tuple[dict[str, Any], tuple[str, ...], str, tuple[str, ...]]] = {
    "mmlu": (
        {
            "question": "2 + 2?",
            "subject": "some_sums",
            "choices": ["3", "4", "5", "6"],
            "answer": 1,
        },
        ("3", "4", "5", "6"),
        "B",
        ("some_sums",),
    ),
    "mmlu_pro": (
        {
            "question_id": 7,
            "question": " 2 + 2? ",
            "options": ["3", " 4", "N/A", "N/A"],
            "answer": "B",
            "answer_index": 1,
            "category": "sums",
        },
        ("3", "4"),
        "B",
        ("sums",),
    ),
    "aime": ({"ID": "x-1", "Problem": "2 + 2?", "Solution": "4", "Answer": 4}, (), "4", ()),
    "medmcqa": (
        {"id": "u", "question": "2 + 2?", "opa": "3", "opb": "5", "opc": "6", "opd": "4", "cop": 3}
        | {"subject_name": "Sums"},
        ("3", "5", "6", "4"),
        "D",
        ("Sums",),
    ),
    "gsm8k": ({"question": "Add?", "answer": "1,000 and 5\n#### 1,005"}, (), "1005", ()),
    "arc": (
        {
            "id": "m1",
            "question": "2 + 2?",
            "choices": {"text": ["3", "4", "5"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        ("3", "4", "5"),
        "B",
        (),
    ),
    "openbookqa": (
        {
            "id": "7-9",
            "question_stem": "2 + 2 is",
            "choices": {"text": ["4", "5", "6", "7"], "label": ["A", "B", "C", "D"]},
            "answerKey": "A ",
        },
        ("4", "5", "6", "7"),
        "A",
        (),
    ),
}


def write(tmp_path: Path, *rows: Mapping[str, Any], name: str = "set.jsonl") -> Path:
    path = tmp_path / name
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_task_is_documented_by_name_hub_and_source() -> None:
    assert list(TASKS) == [
        "mmlu",
        "mmlu_pro",
        "gpqa",
        "aime",
        "medmcqa",
        "gsm8k",
        "arc",
        "openbookqa",
    ]
    assert all(task.name == name and task.hub.count("/") == 1 for name, task in TASKS.items())
    assert [name for name, task in TASKS.items() if task.confidential] == ["gpqa"]
    with pytest.raises(InputError, match="there is no task 'mnlu'; the tasks are mmlu, mmlu_pro, "):
        find_task("mnlu")


@pytest.mark.parametrize("name", ["set.jsonl", "set.parquet"])
@pytest.mark.parametrize("task", OFFICIAL)
def test_the_official_layout_is_read(tmp_path: Path, task: str, name: str) -> None:
    row, options, gold, skills = OFFICIAL[task]
    (question,) = read_task(write(tmp_path, row, name=name), task)
    assert (question.options, question.gold, question.skills) == (options, gold, skills)
    assert question.task == task
    assert question.kind == TASKS[task].kind
    assert question.text == question.text.strip()
    assert not is_confidential(question)


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("mmlu", {"answer": "b"}),
        ("mmlu", {"answer": "1"}),
        ("mmlu", {"answer": 1.0}),
        ("mmlu", {"choices": [3, 4, 5, 6]}),
        ("mmlu_pro", {"answer": None}),
        ("aime", {"Answer": "4"}),
        ("aime", {"Problem": None, "question": "2 + 2?"}),
        ("medmcqa", {"cop": "d"}),
        ("arc", {"answerKey": 2}),
        ("gsm8k", {"answer": "1005"}),
        ("gsm8k", {"answer": 1005.0}),
    ],
)
def test_variants_of_the_layout_say_the_same(
    tmp_path: Path, task: str, change: dict[str, Any]
) -> None:
    row = OFFICIAL[task][0]
    plain, varied = (read_task(write(tmp_path, each), task)[0] for each in (row, {**row, **change}))
    assert (varied.text, varied.options, varied.gold) == (plain.text, plain.options, plain.gold)


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.kind == "choice"])
def test_our_own_layout_is_read_under_every_task(tmp_path: Path, task: str) -> None:
    row = {"id": 5, "question": "Sea?", "options": ["dry", "wet"], "category": "water"}
    for gold in ({"gold": "B"}, {"gold": "wet"}, {"gold_index": 1}, {"gold": "B", "gold_index": 1}):
        (question,) = read_task(write(tmp_path, {**row, **gold}), task)
        assert (question.id, question.options, question.gold) == ("5", ("dry", "wet"), "B")
        assert question.skills == ("water",)


def test_numbers_are_read_from_our_own_layout(tmp_path: Path) -> None:
    row = {"question_id": "n", "question": "?", "options": None, "gold": "080 or 081", "split": "x"}
    for task in ("aime", "gsm8k"):
        (question,) = read_task(write(tmp_path, row), task)
        assert (question.id, question.gold, question.kind) == ("n", "080 or 081", "number")


@pytest.mark.parametrize(
    ("task", "row", "match"),
    [
        (
            "mmlu",
            {"question": "?", "answer": 1},
            "line 2: task mmlu needs the columns question, choices, answer with something in them, or "
            r"ours: question, options and gold \(or gold_index\); this row has question, answer$",
        ),
        ("mmlu", {**OFFICIAL["mmlu"][0], "answer": 4}, "its answer 4 is none of its 4 options"),
        (
            "mmlu",
            {**OFFICIAL["mmlu"][0], "answer": "E"},
            r"none of its 4 options \(A–D and no place",
        ),
        ("mmlu", {**OFFICIAL["mmlu"][0], "answer": True}, "none of its 4 options"),
        ("mmlu", {**OFFICIAL["mmlu"][0], "choices": ["3", None]}, "needs the columns"),
        ("mmlu", {**OFFICIAL["mmlu"][0], "choices": list("x" * 27)}, "at most 26 are possible"),
        ("mmlu", {**OFFICIAL["mmlu"][0], "question": " "}, "needs the columns"),
        ("mmlu_pro", {**OFFICIAL["mmlu_pro"][0], "answer": "C"}, "the option N/A|is N/A"),
        (
            "medmcqa",
            {**OFFICIAL["medmcqa"][0], "cop": -1},
            "its answer -1 .* is this split labelled",
        ),
        ("medmcqa", {**OFFICIAL["medmcqa"][0], "cop": 4}, "its answer 4 .* does it count from 0"),
        (
            "medmcqa",
            {**OFFICIAL["medmcqa"][0], "opd": None},
            "needs the columns question, opa, opb",
        ),
        ("arc", {**OFFICIAL["arc"][0], "answerKey": "4"}, r"none of its 3 options \(1–3\)"),
        ("arc", {**OFFICIAL["openbookqa"][0], "question": "?", "answerKey": 1}, r"\(A–D\)"),
        ("openbookqa", OFFICIAL["arc"][0], "needs the columns question_stem, choices, answerKey"),
        ("gsm8k", {"question": "?", "answer": "It is five."}, "its answer is no number"),
        (
            "gsm8k",
            {"question": "?", "answer": "It takes 5 days and then 6 more, I think."},
            "no number",
        ),
        ("aime", {"problem": "?"}, "needs the columns problem or question, answer"),
        (
            "mmlu",
            {"question": "?", "options": ["a", "b"], "gold": "c"},
            "its gold is no letter A–B",
        ),
        (
            "mmlu",
            {"question": "?", "options": ["a", "b"], "gold": "A", "gold_index": 1},
            "its gold_index, which counts from 0, is another option",
        ),
    ],
)
def test_an_unusable_row_is_named_with_its_columns(
    tmp_path: Path, task: str, row: dict[str, Any], match: str
) -> None:
    good = {**OFFICIAL[task][0], "id": "good"}
    with pytest.raises(InputError, match=match) as caught:
        read_task(write(tmp_path, good, row), task)
    assert "set.jsonl, line 2: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_an_empty_and_a_missing_file_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no task 'nli'"):
        read_task(tmp_path / "x.jsonl", "nli")
    with pytest.raises(InputError, match="no question file at"):
        read_task(tmp_path / "x.jsonl", "arc")
    with pytest.raises(InputError, match="holds no questions of task arc"):
        read_task(write(tmp_path), "arc")


def test_options_without_an_order_get_one_that_is_always_the_same(tmp_path: Path) -> None:
    others = [{**GPQA, "Question": f"Which is number {n}?"} for n in range(60)]
    alone = read_task(write(tmp_path, GPQA), "gpqa")[0]
    among = read_task(write(tmp_path, *others, GPQA), "gpqa")
    assert among[-1] == alone
    assert alone.options[alone.letters.index(alone.gold or "")] == GPQA["Correct Answer"]
    assert sorted(alone.options) == sorted(GPQA[name] for name in GPQA if "Answer" in name)
    assert set(Counter(question.gold for question in among)) == set("ABCD")
    assert alone.skills == ("Physics", "Colours")
    turned = [read_task(tmp_path / "set.jsonl", "gpqa", seed=seed)[-1] for seed in range(8)]
    assert len({question.options for question in turned}) > 2
    assert {question.id for question in turned} == {alone.id}, "an id outlives another order"
    assert is_confidential(alone)


def test_an_id_that_is_not_given_is_a_hash_of_the_text_and_the_options(tmp_path: Path) -> None:
    (question,) = read_task(write(tmp_path, GPQA), "gpqa")
    content = json.dumps([question.text, *sorted(question.options)])
    assert question.id == f"gpqa-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    (number,) = read_task(write(tmp_path, OFFICIAL["gsm8k"][0]), "gsm8k")
    assert number.id.startswith("gsm8k-")
    assert len(number.id) == len("gsm8k-") + 12


def test_rows_that_repeat_an_earlier_one_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = {"question": "Sea?", "options": ["dry", "wet"], "gold": "B"}
    path = write(
        tmp_path, one, {**one, "gold": "A"}, one, {**one, "id": "mine"}, {**one, "id": "mine"}
    )
    with caplog.at_level(logging.WARNING):
        questions = read_task(path, "arc")
    assert [question.gold for question in questions] == ["B", "B"]
    assert questions[1].id == "mine"
    assert caplog.messages == [f"{path}: rows that repeat an earlier one, left out: 3"]


def test_an_id_that_another_question_has_gives_way_to_a_hash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"id": "1", "question": text, "options": ["a", "b"], "gold": "A"} for text in "xyy"]
    with caplog.at_level(logging.WARNING):
        first, second = read_task(write(tmp_path, *rows), "arc")
    assert first.id == "1"
    assert second.id.startswith("arc-")
    assert caplog.text.rstrip().endswith("left out: 1")


def test_a_row_with_one_option_asks_nothing_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": "x", "options": ["a"], "gold": "A"}, OFFICIAL["mmlu_pro"][0]]
    path = write(tmp_path, *rows)
    with caplog.at_level(logging.WARNING):
        assert len(read_task(path, "mmlu_pro")) == 1
    assert caplog.messages == [f"{path}: rows with a single option, left out: 1"]


@pytest.mark.parametrize(
    "row", [[SECRET], {**GPQA, "Question": ""}, {"question": SECRET, "gold": 1}]
)
@pytest.mark.parametrize("kind", ["official", "ours"])
def test_what_a_row_says_is_in_no_message(
    tmp_path: Path, row: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = {"question": SECRET, "options": [SECRET, "b"], "gold": f"{SECRET} and b", "id": SECRET}
    path = write(tmp_path, GPQA, GPQA, row if kind == "official" else ours)
    with pytest.raises(InputError) as caught:
        read_task(path, "gpqa")
    assert SECRET not in str(caught.value) + caplog.text


SPLIT = [
    {"question": f"{n}?", "options": ["a", "b"], "gold": "A", "split": split}
    for n, split in enumerate(("dev", "test", "dev", "test"))
]


def test_a_split_is_the_rows_that_say_so(tmp_path: Path) -> None:
    path = write(tmp_path, *SPLIT)
    assert [question.text for question in read_task(path, "arc", split="test")] == ["1?", "3?"]
    assert [question.text for question in read_task(path, "arc", split="dev", limit=1)] == ["0?"]
    assert [q.text for q in read_questions(path, split="dev")] == ["0?", "2?"]
    assert len(read_questions(path)) == 4


def read_arc(path: Path, split: str) -> list[Question]:
    return read_task(path, "arc", split=split)


@pytest.mark.parametrize("read", [read_questions, read_arc])
def test_a_split_that_is_not_there_is_explained(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError, match=r'has no split "train"; it has dev, test$'):
        read(write(tmp_path, *SPLIT), split="train")
    bare = [{key: value for key, value in row.items() if key != "split"} for row in SPLIT]
    with pytest.raises(
        InputError,
        match=r'has no column "split" to find "test" in; it has question, options, gold$',
    ):
        read(write(tmp_path, *bare), split="test")


def test_a_set_of_the_hub_is_read_under_its_own_columns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'expertmix[eval]'")
    row = OFFICIAL["openbookqa"][0]
    file = str(write(tmp_path, row, name="test.parquet"))
    load, asked = datasets.load_dataset, list[Any]()

    def read(name: str, config: str | None, *, split: str | None, revision: str) -> Any:
        asked.append((name, config, split, revision))
        cache = str(tmp_path / "cache")
        return load("parquet", data_files={"test": file}, split=split, cache_dir=cache)

    monkeypatch.setattr(datasets, "load_dataset", read)
    name = f"hf:allenai/openbookqa/main@{COMMIT}"
    questions = read_task(name, "openbookqa", split="test")
    assert asked == [("allenai/openbookqa", "main", "test", COMMIT)]
    assert (questions[0].id, questions[0].text) == (row["id"], row["question_stem"])
    assert read_task(name.replace("@", ":test@"), "openbookqa", split="test") == questions
    with pytest.raises(InputError, match='names the split test, but "dev" was asked for'):
        read_task(name.replace("@", ":test@"), "openbookqa", split="dev")
    with pytest.raises(InputError, match=r"row 0: task arc needs the columns question, choices"):
        read_task(name, "arc")


def test_a_question_keeps_its_task_and_one_without_is_written_as_ever() -> None:
    plain = Question(id="a", text="Sea?", options=("dry", "wet"), gold="B", kind="choice")
    asked = Question(
        id="a", text="Sea?", options=("dry", "wet"), gold="B", kind="choice", task="arc"
    )
    assert "task" not in plain.to_json()
    assert fingerprint([plain]) == (
        "749bbe0c8df1013abc9203389a8861c8215ccfce07370111490ee93ac057fb83"
    )
    assert fingerprint([asked]) != fingerprint([plain])
    for question in (plain, asked):
        assert Question.restore(question.to_json()) == question
        assert Question.from_json(question.to_json()) == question
    for read in (Question.restore, Question.from_json):
        with pytest.raises(InputError, match="there is no task 'sea'; the tasks are mmlu"):
            read({**plain.to_json(), "task": "sea"})


def test_a_task_gives_a_question_its_kind() -> None:
    assert Question.from_json({"text": "2 + 2?", "task": "gsm8k"}).kind == "number"
    with pytest.raises(InputError, match="but it has 0 options"):
        Question.from_json({"text": "2 + 2?", "task": "mmlu"})
    with pytest.raises(InputError, match="its \"kind\" is 'text', but task aime asks for a number"):
        Question.from_json({"text": "2 + 2?", "task": "aime", "kind": "text"})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)
NAMES = sorted(
    {name for row, *_ in OFFICIAL.values() for name in row}
    | {"gold", "gold_index", "options", "text", "skills", *GPQA}
)


@given(
    task=st.sampled_from(list(TASKS)),
    base=st.sampled_from([GPQA, *(row for row, *_ in OFFICIAL.values())]),
    change=st.dictionaries(st.sampled_from(NAMES), values, max_size=4),
)
def test_any_row_is_read_or_refused(
    task: str, base: dict[str, Any], change: dict[str, Any]
) -> None:
    try:
        question = Question.from_json(read_task_row({**base, **change}, TASKS[task]))
    except InputError:
        return
    assert question.gold
    assert question.kind != "choice" or question.gold in question.letters


REAL = [
    ("mmlu", "benchmarks/mmlu_dev_and_3000", 3285, {"dev": 285, "test": 3000}),
    ("mmlu_pro", "mmlu_pro/questions", 4347, {"dev": 3998, "profile": 349}),
    ("arc", "benchmarks/arc_easy", 4627, {"train": 2251, "test": 2376}),
    ("arc", "benchmarks/arc_challenge", 1119, {"train": 1119}),
    ("openbookqa", "benchmarks/openbookqa", 5457, {"train": 4957, "test": 500}),
    ("gsm8k", "benchmarks/gsm8k", 8792, {"train": 7473, "test": 1319}),
    ("gsm8k", "gsm8k_models/questions", 1319, {"test": 1319}),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize(("task", "file", "count", "splits"), REAL)
def test_every_row_of_the_real_files_is_read(
    task: str, file: str, count: int, splits: dict[str, int]
) -> None:
    path = SHARED / f"{file}.parquet"
    questions = read_task(path, task)
    assert len(questions) == count
    assert len({question.id for question in questions}) == count
    # Booleans only: no text of a row is to be printed if this fails.
    odd = [q.id for q in questions if q.kind == "choice" and (q.gold or "-") not in q.letters]
    odd += [q.id for q in questions if q.kind == "number" and not (q.gold or "").lstrip("-")]
    assert not odd
    found = {split: len(read_task(path, task, split=split)) for split in splits}
    assert found == splits
    assert sum(splits.values()) == count
