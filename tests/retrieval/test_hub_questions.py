"""Data sets of the hub become questions, whatever their columns are called; never without a commit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.retrieval import InputError, Question, read_questions
from expertmix.retrieval.hub_questions import HubName, is_hub_name, normalise_row

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"hf:someone/things@{COMMIT}"

ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "our own": (
        {"id": "x", "text": "Q?", "options": ["a", "b"], "gold": "B", "skills": ["s"]},
        {"id": "x", "text": "Q?", "options": ["a", "b"], "gold": "B", "skills": ["s"]},
    ),
    "a letter, with the index beside it": (
        {
            "question_id": 70,
            "question": "Q?",
            "options": ["a", "b", "c"],
            "answer": "C",
            "answer_index": 2,
            "category": "law",
        },
        {"id": "70", "text": "Q?", "options": ["a", "b", "c"], "gold": "C", "skills": "law"},
    ),
    "an index": (
        {"question": "Q?", "subject": "art", "choices": ["a", "b"], "answer": 1},
        {"text": "Q?", "options": ["a", "b"], "gold": "B", "skills": "art"},
    ),
    "choices with labels": (
        {
            "id": "x",
            "question": "Q?",
            "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        {"id": "x", "text": "Q?", "options": ["a", "b", "c"], "gold": "B"},
    ),
    "a mapping of letters": (
        {
            "question": "Q?",
            "options": {"A": "a", "B": "b", "C": None},
            "answer_idx": "B",
            "answer": "b",
        },
        {"text": "Q?", "options": ["a", "b"], "gold": "B"},
    ),
    "columns of letters": (
        {"Question": "Q?", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "(D)"},
        {"text": "Q?", "options": ["a", "b", "c", "d"], "gold": "D"},
    ),
    "columns of numbers": (
        {"question": "Q?", "option1": "a", "option2": "b", "answer": "2"},
        {"text": "Q?", "options": ["a", "b"], "gold": "B"},
    ),
    "columns opa to opd": (
        {"question": "Q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 0},
        {"text": "Q?", "options": ["a", "b", "c", "d"], "gold": "A"},
    ),
    "the text of an option": (
        {"question": "Q?", "choices": ["red", "blue"], "answer": "blue"},
        {"text": "Q?", "options": ["red", "blue"], "gold": "B"},
    ),
    "worked steps": (
        {"question": "Q?", "answer": "5 + 5 = <<5+5=10>>10\n#### 10"},
        {"text": "Q?", "gold": "10"},
    ),
    "a list of right answers": (
        {
            "question": "Q?",
            "context": "Once.",
            "answers": {"text": ["x", "y", "x"], "answer_start": [1]},
        },
        {"text": "Once.\n\nQ?", "gold": "x || y"},
    ),
    "a value with aliases": (
        {"question": "Q?", "answer": {"value": "x", "aliases": ["y", "z"], "type": "W"}},
        {"text": "Q?", "gold": "x || y || z"},
    ),
    "a truth value": (
        {"question": "Q?", "passage": "Once.", "answer": True},
        {"text": "Once.\n\nQ?", "gold": "yes || true"},
    ),
    "a number": ({"problem": "Q?", "answer": 12.0}, {"text": "Q?", "gold": "12"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_known_layouts_are_understood(name: str) -> None:
    row, wanted = ROWS[name]
    normal = normalise_row(row)
    assert normal == wanted
    assert Question.from_json(normal).gold == wanted["gold"]


def test_a_class_column_gives_the_options() -> None:
    row = {"text": "Fine film.", "label": 1}
    wanted = {"text": "Fine film.", "options": ["bad", "good"], "gold": "B"}
    assert normalise_row(row, {"label": ["bad", "good"]}) == wanted


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"body": "Q?", "answer": "x"}, "no question in the columns body, answer; one of text, "),
        ({"question": " ", "answer": "x"}, "no question"),
        (
            {"question": "Q?", "reply": "x"},
            "no answer in the columns question, reply; one of gold,",
        ),
        ({"question": "Q?", "answer": None}, "no answer"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": -1}, "-1 is none of its 2 options"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": 2}, "2 is none of its 2 options"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": "E"}, "'E' is none of its 2 options"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": "1"}, "'1' is none of its 2 options"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": True}, "True is none of"),
        ({"question": "Q?", "answers": []}, "list of answers is empty"),
    ],
)
def test_rows_without_a_question_or_an_answer_are_refused(row: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        normalise_row(row)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
columns = st.sampled_from(
    ["question", "options", "choices", "answer", "label", "A", "B", "id", "x"]
)


@given(st.dictionaries(columns, values), st.text(min_size=1, max_size=5))
def test_no_row_is_more_than_refused(row: dict[str, Any], text: str) -> None:
    try:
        normal = normalise_row({**row, "text": text})
    except InputError:
        return
    assert isinstance(normal["gold"], str)
    assert isinstance(normal["text"], str)
    if "options" in normal and len(normal["options"]) > 1:
        assert normal["gold"] in Question.from_json({**normal, "skills": None}).letters


def test_names_are_read_in_parts() -> None:
    assert HubName.parse(f"hf:a/b/c:test@{COMMIT}") == HubName("a/b", COMMIT, "c", "test")
    assert HubName.parse(f"hf:a/b:test@{COMMIT}") == HubName("a/b", COMMIT, None, "test")
    assert HubName.parse(f"hf:old@{COMMIT}") == HubName("old", COMMIT)
    assert is_hub_name("hf:a/b")
    assert not is_hub_name(Path("some/hf:a.jsonl"))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("hf:a/b", "is not pinned: it has no revision; append @ and the 40 hexadecimal digits"),
        ("hf:a/b@main", "the revision 'main' is no commit; append .*datasets/a/b/commits/main"),
        ("hf:a/b@0123abc", "is no commit"),
        (f"hf:@{COMMIT}", "names no data set; write hf:OWNER/NAME"),
        (f"hf:a/b/c/d@{COMMIT}", "names no data set"),
        (f"hf:a/b:@{COMMIT}", "names no data set"),
        (f"hf:a//b@{COMMIT}", "names no data set"),
        (f"hf:a/b c@{COMMIT}", "names no data set"),
        ("hf:", "names no data set"),
    ],
)
def test_names_that_are_not_pinned_or_malformed_are_refused(name: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_questions(name)


@given(st.text())
def test_any_name_is_read_or_refused(text: str) -> None:
    try:
        parsed = HubName.parse(f"hf:{text}")
    except InputError:
        return
    assert parsed.revision in text


def serve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: dict[str, list[dict[str, Any]]]
) -> Any:
    """Let `load_dataset` read local parquet files, one a split, as it would read the hub's."""
    datasets = pytest.importorskip("datasets", reason="pip install 'expertmix[eval]'")
    import pyarrow as pa
    from pyarrow import parquet

    files: dict[str, str] = {}
    for split, table in rows.items():
        files[split] = str(tmp_path / f"{split}.parquet")
        parquet.write_table(pa.Table.from_pylist(table), files[split])
    load, asked = datasets.load_dataset, list[tuple[Any, ...]]()

    def read(name: str, config: str | None, *, split: str | None, revision: str) -> Any:
        asked.append((name, config, split, revision))
        return load("parquet", data_files=files, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", read)
    return asked


ARC = [
    {"question": "1 + 1?", "choices": {"text": ["2", "3"], "label": ["A", "B"]}, "answerKey": "A"},
    {"question": "Red?", "choices": {"text": ["no", "yes"], "label": ["1", "2"]}, "answerKey": "2"},
]


def test_a_data_set_is_read_through_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = serve(monkeypatch, tmp_path, {"train": ARC[:1], "test": ARC})
    questions = read_questions(f"hf:someone/things/easy:test@{COMMIT}")
    assert asked == [("someone/things", "easy", "test", COMMIT)]
    assert [(q.id, q.options, q.gold) for q in questions] == [
        ("things-test-0", ("2", "3"), "A"),
        ("things-test-1", ("no", "yes"), "B"),
    ]
    assert read_questions(f"hf:someone/things:test@{COMMIT}", limit=1) == questions[:1]


def test_a_split_is_named_unless_there_is_only_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(monkeypatch, tmp_path, {"train": ARC[:1], "test": ARC})
    with pytest.raises(
        InputError, match="has the splits test, train; name one: hf:someone/things:test@"
    ):
        read_questions(NAME)
    (tmp_path / "one").mkdir()
    monkeypatch.undo()
    serve(monkeypatch, tmp_path / "one", {"validation": ARC})
    assert read_questions(NAME)[0].id == "things-validation-0"


def test_an_unusable_row_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = {**ARC[1], "answerKey": "9"}
    serve(monkeypatch, tmp_path, {"test": [ARC[0], broken]})
    with pytest.raises(
        InputError, match=f"^{NAME}, row 1: the answer '9' is none of its 2 options"
    ):
        read_questions(NAME)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"needs the library datasets: pip install 'expertmix\[eval\]'"
    ):
        read_questions(NAME)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (ConnectionError("Couldn't reach"), "hub cannot be reached .Couldn't reach.; go online"),
        (
            FileNotFoundError("Dataset 'x' doesn't exist\nmore"),
            "cannot be read: Dataset 'x' doesn't exist$",
        ),
        (ValueError("Unknown split"), "at revision 0123456789ab cannot be read: Unknown split"),
        (
            RuntimeError("Dataset scripts are no longer supported"),
            "scripts are no longer supported",
        ),
    ],
)
def test_what_the_library_says_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, match: str
) -> None:
    double, errors = ModuleType("datasets"), ModuleType("datasets.exceptions")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    vars(double)["load_dataset"] = fail
    vars(errors)["DatasetsError"] = type("DatasetsError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "datasets", double)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)
    with pytest.raises(InputError, match=match):
        read_questions(NAME)


def test_the_real_library_offline_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'expertmix[eval]'")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="not in the local cache and the hub cannot be reached"):
        read_questions(NAME)
