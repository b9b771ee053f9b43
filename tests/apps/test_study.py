"""`expertmix study`: files that others read, a picture, and one sentence for what is wrong."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from typer.testing import CliRunner

from expertmix.apps import study
from expertmix.apps.cli import app
from expertmix.apps.study import StudySettings, run_study, tabulate_study
from expertmix.apps.study_files import SeedFile
from expertmix.graph.replay import RULES
from expertmix.retrieval import InputError

pa = pytest.importorskip("pyarrow", reason="recordings are parquet tables: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MODELS = ("ada", "bob", "cy", "di")
REQUIRED = {"policy", "calls", "calls_mean", "accuracy", "low", "high", "n"}


class Hashing:
    """Vectors that show which words a text has."""

    name, revision = "hashing", "1"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.full((len(texts), 16), 0.01)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, sum(map(ord, word)) % 16] += 1
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eighty questions on two topics; ada knows birds, bob knows sums, the others guess."""
    return write_table(tmp_path / "table", 80)


def write_table(folder: Path, number: int, *, drop: Sequence[str] = ()) -> Path:
    folder.mkdir()
    chance = np.random.default_rng(0)
    questions: list[dict[str, Any]] = []
    outcomes: list[dict[str, Any]] = []
    for n in range(number):
        topic = ("birds", "sums")[n % 2]
        gold = int(chance.integers(4))
        questions.append(
            {
                "question_id": f"q{n}",
                "split": "profile" if n < number // 2 else "dev",
                "category": topic,
                "question": f"{topic} number {n}",
                "options": list("wxyz"),
                "gold": "ABCD"[gold],
            }
        )
        for model in MODELS:
            good = 0.9 if (model, topic) in (("ada", "birds"), ("bob", "sums")) else 0.35
            is_right = chance.random() < good
            said = gold if is_right else (gold + int(chance.integers(1, 4))) % 4
            outcomes.append(
                {
                    "question_id": f"q{n}",
                    "model": model,
                    "predicted": "ABCD"[said],
                    "correct": is_right,
                    "answered": True,
                    "output_chars": 100,
                }
            )
    for name, rows in (("questions", questions), ("outcomes", outcomes)):
        kept = [{key: value for key, value in row.items() if key not in drop} for row in rows]
        pq.write_table(pa.Table.from_pylist(kept), folder / f"{name}.parquet")
    return folder


def settings(**other: Any) -> StudySettings:
    told: dict[str, Any] = {"profile_split": "profile", "test_split": "dev", "seeds": 2}
    return StudySettings(**told | other)


def test_a_study_writes_what_others_read(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_study(table, settings(), out, encoder=Hashing())
    rows = json.loads((out / "result.json").read_text())
    assert rows == found.rows
    assert {row["policy"] for row in rows} == set(RULES)
    for row in rows:
        assert set(row) >= REQUIRED
        assert all(isinstance(row[key], int | float) for key in REQUIRED - {"policy"})
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert (row["n"], row["seeds"]) == (40, 2)
    assert {row["calls"] for row in rows if row["policy"] == "skill"} == {3, 4}
    with (out / "result.csv").open(encoding="utf-8", newline="") as file:
        tidy = list(csv.DictReader(file))
    assert len(tidy) == 2 * len(rows)
    mean = np.mean([float(r["accuracy"]) for r in tidy if r["policy"] == "random"])
    shares = [row["accuracy"] for row in rows if row["policy"] == "random"]
    assert mean == pytest.approx(np.mean(shares), abs=1e-4)


def test_a_study_repeats_to_the_bit(table: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_study(table, settings(), tmp_path / name, encoder=Hashing())
    for file in ("result.json", "result.csv"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "two" / file).read_text()


def test_finished_seeds_are_kept_and_used_again(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replayed = tmp_path / "out", list[int]()
    real = study.replay_seed

    def counting(*given: Any, **named: Any) -> Any:
        if named["seed"] == 2 and not replayed[2:]:
            replayed.append(-1)
            raise KeyboardInterrupt
        replayed.append(named["seed"])
        return real(*given, **named)

    monkeypatch.setattr(study, "replay_seed", counting)
    with pytest.raises(KeyboardInterrupt):
        run_study(table, settings(seeds=3), out, encoder=Hashing())
    assert not (out / "result.json").exists()
    with (out / "seeds.jsonl").open("a") as file:
        file.write('\n{"key": "cut o')
    found = run_study(table, settings(seeds=3), out, encoder=Hashing())
    assert replayed == [0, 1, -1, 2]
    whole = run_study(table, settings(seeds=3), tmp_path / "whole", encoder=Hashing())
    assert found.rows == whole.rows
    run_study(table, settings(seeds=3, calls=[2]), out, encoder=Hashing())
    assert replayed[-3:] == [0, 1, 2], "other settings are another study"
    assert SeedFile(out / "seeds.jsonl", "another").read() == {}


def test_a_picture_is_drawn_the_same_every_time(table: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    pictures: list[bytes] = []
    for name in ("one", "two"):
        run_study(table, settings(calls=[1, 2, 3]), tmp_path / name, encoder=Hashing())
        pictures.append((tmp_path / name / "study.svg").read_bytes())
    assert pictures[0] == pictures[1]
    assert (tmp_path / "one/study.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_rest_is_written(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = run_study(table, settings(), tmp_path, encoder=Hashing())
    assert (tmp_path / "result.json").is_file()
    assert not (tmp_path / "study.svg").exists()
    assert any("expertmix[viz]" in note for note in found.notes)


def test_only_the_policies_asked_for_are_told_with_all_differences(
    table: Path, tmp_path: Path
) -> None:
    found = run_study(table, settings(policies=["skill"], calls=[2]), tmp_path, encoder=Hashing())
    [row] = found.rows
    assert (row["policy"], row["calls"]) == ("skill", 2)
    deltas = [row[key] for key in row if key.startswith("delta_")]
    assert len(deltas) == 4
    assert None not in deltas


def test_a_small_pool_gets_smaller_panels_unless_they_were_asked_for(
    table: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("ada\nbob\n")
    small = settings(models=tmp_path / "models")
    found = run_study(table, small, tmp_path / "out", encoder=Hashing())
    assert {row["calls"] for row in found.rows} == {1, 2}
    assert any("only 2 models" in note for note in found.notes)
    with pytest.raises(InputError, match="there are 2 models"):
        run_study(
            table, settings(models=tmp_path / "models", calls=[3]), tmp_path, encoder=Hashing()
        )


def test_few_questions_without_categories_options_or_splits(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "bare", 20, drop=("category", "options", "split", "correct", "answered")
    )
    divided = StudySettings(split_half=0, seeds=1)
    found = run_study(table, divided, tmp_path / "out", encoder=Hashing())
    assert {row["policy"] for row in found.rows} == set(RULES)
    assert 0 < found.rows[0]["n"] < 20


def test_right_and_wrong_alone_are_told_in_a_sentence(tmp_path: Path) -> None:
    table = write_table(tmp_path / "marks", 80, drop=("predicted",))
    found = run_study(table, settings(), tmp_path / "out", encoder=Hashing())
    assert any("nothing can be merged" in note for note in found.notes)
    assert {row["calls_mean"] for row in found.rows if row["policy"] != "oracle"} == {1.0}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"profile_split": None}, "--split-half 0"),
        ({"split_half": 1}, "not both"),
        ({"profile_split": "dev"}, "both the split"),
        ({"test_split": "gone"}, 'no questions with split "gone"'),
        ({"policies": ["magic"]}, 'no policy "magic"; a study has skill'),
        ({"policies": []}, "no policy is named"),
        ({"calls": [5]}, "there are 4 models"),
        ({"calls": [0]}, "from 1 to 4"),
        ({"seeds": 0}, "seeds is 0"),
        ({"models": Path("/nowhere")}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_used(
    table: Path, tmp_path: Path, wrong: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        run_study(table, settings(**wrong), tmp_path / "out", encoder=Hashing())


def test_the_table_for_people_shows_the_best_fixed_panel(table: Path, tmp_path: Path) -> None:
    found = run_study(table, settings(calls=[3]), tmp_path, encoder=Hashing())
    console = Console(width=120, record=True, file=(tmp_path / "log").open("w"))
    console.print(tabulate_study(found.rows))
    console.file.close()
    text = console.export_text()
    for word in ("skill", "adaptive", "top k vote", "oracle", "paired bootstrap", "±"):
        assert word in text
    assert "…" not in text, "nothing is cut off at the width of a pipe"
    fixed = [row for row in found.rows if row["policy"] == "top_k_vote"]
    best = max(fixed, key=lambda row: row["accuracy"])
    assert f"{100 * best['accuracy']:.2f}" in text


def test_the_command_prints_json_and_nothing_else(table: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    given = ["study", str(table), "--profile-split", "profile", "--test-split", "dev"]
    given += ["--skills", "category", "--policies", "skill,top_k_vote", "--calls", "2, 3"]
    done = CliRunner().invoke(app, [*given, "--seeds", "1", "--out", out, "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {row["policy"] for row in rows} == {"skill", "top_k_vote"}
    done = CliRunner().invoke(app, [*given, "--seeds", "1", "--out", out])
    assert "Results and the plot are in" in done.stdout
    done = CliRunner().invoke(app, [*given[:-1], "2.5", "--out", out])
    assert isinstance(done.exception, InputError)
    assert "whole numbers" in str(done.exception)
