"""`expertmix remix study` on a tiny random mixture: files, resume, controls, and bad input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("faiss", reason="needs faiss")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from moe_families import make_model
from moe_wording import make_questions, make_tokenizer
from typer.testing import CliRunner

from expertmix.agents.moe.settings import RemixSettings
from expertmix.apps import remix_study
from expertmix.apps.cli import app
from expertmix.apps.remix_commands import repeat_options, tabulate_remixing
from expertmix.apps.remix_study import RemixStudySettings, read_sets, run_remix_study
from expertmix.retrieval import InputError, Question


class Words:
    """Texts → vectors by the words that they hold."""

    name, revision = "words", "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, sum(word.encode()) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_table(path: Path, questions: Sequence[Question], split: str) -> Path:
    rows = [
        {
            "id": question.id,
            "split": split if at else "other",
            "question": question.text,
            "options": list(question.options),
            "gold": question.gold,
        }
        for at, question in enumerate(questions)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two files of references and two of tests."""
    folder = tmp_path_factory.mktemp("study")
    model = make_model("qwen2_moe", dtype=torch.float32)
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    for name, seed, split in (("ra", 1, "train"), ("rb", 2, "train"), ("ta", 3, "test")):
        write_table(folder / f"{name}.parquet", make_questions(25, seed=seed), split)
    write_table(folder / "tb.parquet", make_questions(8, seed=4), "valid")
    return folder


def make_settings(place: Path, **changes: Any) -> RemixStudySettings:
    given: dict[str, Any] = {
        "references": [place / "ra.parquet", place / "rb.parquet"],
        "tests": [place / "ta.parquet", place / "tb.parquet"],
        "limit": 12,
        "reference_limit": 20,
        "seeds": 2,
        "remix": RemixSettings(layers=2, steps=3),
        "epochs": 1,
    }
    return RemixStudySettings(**(given | changes))


def run(place: Path, out: Path, **changes: Any) -> Any:
    return run_remix_study(
        str(place / "model"), make_settings(place, **changes), out, encoder=Words()
    )


@pytest.fixture(scope="module")
def found(place: Path) -> Any:
    """One whole study, for all tests that read it."""
    return run(place, place / "out"), place / "out"


def test_every_method_has_a_row_with_what_was_promised(found: Any) -> None:
    outcome, out = found
    rows = json.loads((out / "result.json").read_text())
    assert rows == json.loads(json.dumps(outcome.rows))
    for test, number in (("ta", 12), ("tb", 8)):  # tb has no split `test`: all of it
        of_test = {row["method"]: row for row in rows if row["test"] == test}
        assert next(iter(of_test)) == "base"
        assert {"remix", "ngd", "oracle", "task_bias", "random_neighbours"} <= set(of_test)
        for row in of_test.values():
            assert row["n"] == number
            assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
            assert row["flops_ratio"] >= 1
            assert 0 <= row["accepted"] <= 1
            assert [third["n"] for third in row["by_confidence"]]
        base = of_test["base"]
        assert (base["flops_ratio"], base["accepted"], base["delta_base"]["mean"]) == (1, 0, 0)
        assert of_test["oracle"]["accuracy"] >= base["accuracy"]
        assert of_test["oracle"]["gap_closed"] in (1.0, None)
        assert of_test["knn_few_shot"]["flops_ratio"] > 2
        assert of_test["random_neighbours"]["seeds"] == 2
    assert (out / "remix.svg").is_file()
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 20
    assert set(samples[0]["answers"]) == {row["method"] for row in rows}
    assert tabulate_remixing(rows).row_count == len(rows)


def test_a_second_run_computes_nothing_and_says_the_same(
    place: Path, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, out = found

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was computed again")

    import expertmix.agents.moe.bank_files as bank_files
    import expertmix.graph.remix_methods as methods
    import expertmix.graph.remix_tuning as tuning

    monkeypatch.setattr(bank_files, "capture", never)
    monkeypatch.setattr(methods, "replay_method", never)
    monkeypatch.setattr(tuning, "tune", never)
    assert run(place, out).rows == outcome.rows


def test_an_interrupted_study_goes_on(
    place: Path, tmp_path: Path, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import expertmix.graph.remix_methods as methods

    done: list[str] = []
    real = methods.replay_method

    def stop(name: str, *rest: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(name)
        return real(name, *rest)

    monkeypatch.setattr(methods, "replay_method", stop)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path)
    monkeypatch.setattr(methods, "replay_method", real)
    assert run(place, tmp_path).rows == found[0].rows


def test_other_settings_do_not_use_what_was_found_before(place: Path, found: Any) -> None:
    outcome, out = found
    one_method = run(place, out, methods=["ngd"], remix=RemixSettings(layers=2, steps=1))
    assert [row["method"] for row in one_method.rows] == ["base", "ngd"] * 2
    ngd = next(row for row in outcome.rows if row["method"] == "ngd")
    assert one_method.rows[1]["flops_ratio"] != ngd["flops_ratio"]
    run(place, out)  # for whoever reads the folder next


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["magic"]}, "no method 'magic'"),
        ({"tests": []}, "at least one file"),
        ({"test_splits": ["dev"]}, "no split 'dev'; it has other, test"),
        ({"remix": RemixSettings(layers=7)}, "7 critical layers"),
    ],
)
def test_bad_settings_are_one_sentence(
    place: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run(place, tmp_path, **changes)


def test_a_model_that_is_not_there_is_one_sentence(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be loaded: there is no folder"):
        run_remix_study("no/such", make_settings(place), tmp_path, encoder=Words())


def test_nothing_is_learnt_from_test_questions(place: Path, tmp_path: Path) -> None:
    both = run(
        place,
        tmp_path,
        references=[place / "ra.parquet", place / "ta.parquet"],
        limit=25,
        reference_limit=25,
        tests=[place / "ta.parquet"],
        methods=["ngd"],
    )
    assert "24 references were left out because they are test questions as well." in both.notes
    with pytest.raises(InputError, match="all 24 references are test questions"):
        run(
            place,
            tmp_path,
            references=[place / "ta.parquet"],
            tests=[place / "ta.parquet"],
            reference_splits=["test"],
            limit=25,
            reference_limit=25,
        )


def test_files_that_number_their_questions_alike_lose_none(place: Path, tmp_path: Path) -> None:
    for name in ("ra", "rb"):
        table = pq.read_table(place / f"{name}.parquet").drop(["id"])
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "train.parquet")
    files = [tmp_path / name / "train.parquet" for name in ("ra", "rb")]
    references, _, _ = read_sets(
        make_settings(place, references=files, limit=None, reference_limit=None)
    )
    assert len(references) == 48
    assert len({question.id for question in references}) == 48


def test_a_set_of_one_question_is_studied_as_well(place: Path, tmp_path: Path) -> None:
    one = run(place, tmp_path, limit=1, tests=[place / "tb.parquet"], seeds=1)
    text = (tmp_path / "result.json").read_text() + (tmp_path / "alignment.json").read_text()
    assert "NaN" not in text
    assert {row["n"] for row in one.rows} == {1}


def test_several_files_stand_behind_one_option() -> None:
    a, b, c, d = (f"{name}.parquet" for name in "abcd")
    words = ["M", "--references", a, b, "--test", c, "--limit", "3", f"--test={c}", d]
    assert repeat_options(words) == [
        *("M", "--references", a, "--references", b, "--test", c),
        *("--limit", "3", f"--test={c}", "--test", d),
    ]
    assert repeat_options(["--test", a, b, "models/m"]) == ["--test", a, "--test", b, "models/m"]
    assert repeat_options(["--test", "odd.name", "M"]) == ["--test", "odd.name", "M"]


def test_the_command_takes_many_files_and_shows_a_table(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remix_study, "MiniLM", Words)
    files = [str(place / f"{name}.parquet") for name in ("ra", "rb", "ta", "tb")]
    command = ["remix", "study", str(place / "model"), "--references", *files[:2], "--test"]
    command += [*files[2:], "--limit", "6", "--layers", "2", "--no-tune", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--methods", "ngd,oracle"])
    assert done.exit_code == 0, done.output
    assert "ta (6)" in done.output
    assert "tb (6)" in done.output
    assert json.loads((tmp_path / "result.json").read_text())
