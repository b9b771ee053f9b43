"""A run's folder becomes a report: with the questions' texts where they are given, else with their ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from expertmix.agents import Catalog
from expertmix.apps.report import build_report
from expertmix.apps.report.run import content_of_run
from expertmix.apps.report_commands import report
from expertmix.apps.session import PanelSettings, solve_into
from expertmix.retrieval import InputError, Question, read_questions

OPTIONS = ("red", "teal", "blue")
QUESTIONS = [
    Question(id=f"q{at}", text=f"Colour {at}?", options=OPTIONS, gold="A", kind="choice")
    for at in range(24)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two experts: one always right, one every second time."""
    folder = tmp_path_factory.mktemp("report")
    scripts = {
        "always": {"*": "I see red. Answer: A"},
        "half": {q.id: f"Answer: {'AB'[at % 2]}" for at, q in enumerate(QUESTIONS)},
    }
    for name, script in scripts.items():
        (folder / f"{name}.json").write_text(json.dumps(script))
    rows = [{"alias": name, "engine": "scripted", "script": f"{name}.json"} for name in scripts]
    (folder / "pool.yaml").write_text(json.dumps({"experts": rows}))
    lines = (json.dumps(question.to_json()) + "\n" for question in QUESTIONS)
    (folder / "questions.jsonl").write_text("".join(lines))
    catalog = Catalog.load(folder / "pool.yaml")
    solve_into(folder / "run", QUESTIONS, catalog, PanelSettings(k=2), lambda _: None)
    return folder / "run"


def test_a_run_with_its_questions_says_what_was_right(run: Path) -> None:
    content = content_of_run(run, read_questions(run.parent / "questions.jsonl"))
    assert "of 24 questions were answered right" in content.findings[0]
    assert "Blind guessing would get 33.3 %." in content.findings[0]
    assert "The experts disagreed on 12 questions" in content.findings[1]
    assert content.findings[2].startswith(
        "On the 24 questions for which always was asked, it alone"
    )
    assert content.findings[2].endswith("mixing did not help.")
    assert content.facts["Question file"] == "the one that was asked"
    assert content.facts["Experts per question"] == "2"
    assert content.ledger["calls"] == 48
    assert content.timeline is not None
    assert content.timeline.spans
    page = build_report(content)
    assert "Colour 7?" in page
    assert "I see red." in page


def test_without_questions_there_are_ids_and_it_says_so(run: Path) -> None:
    content = content_of_run(run, None)
    assert content.findings[0] == "24 questions were answered."
    assert "Give their file with --questions" in content.findings[-1]
    page = build_report(content)
    assert "Colour 7?" not in page
    assert '"q7"' in page
    assert "I see red." in page


def test_a_run_may_keep_its_questions_and_replies_to_itself(run: Path) -> None:
    page = build_report(content_of_run(run, QUESTIONS, hides=True))
    assert "Colour 7?" not in page
    assert "teal" not in page
    assert "I see red." not in page
    assert '"q7"' in page


def test_other_questions_are_told(run: Path) -> None:
    changed = [*QUESTIONS[:-1], Question(id="q23", text="Changed?", gold="A")]
    facts = content_of_run(run, changed).facts
    assert facts["Question file"].startswith("not exactly the one that was asked")
    more = [*QUESTIONS, Question(id="more", text="Never asked?")]
    assert content_of_run(run, more).facts["Question file"] == "the one that was asked"
    with pytest.raises(
        InputError, match=r"none of the 1 questions given was answered .*q0, q1, q2"
    ):
        content_of_run(run, more[-1:])


def test_a_folder_that_holds_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no answers\.jsonl in .*nowhere: give the run folder"):
        content_of_run(tmp_path / "nowhere", None)
    (tmp_path / "answers.jsonl").write_text('{"id": "q1", "answ')
    with pytest.raises(InputError, match="holds no finished answer"):
        content_of_run(tmp_path, None)


def test_answers_alone_are_enough_and_a_damaged_ledger_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_bytes((run / "answers.jsonl").read_bytes())
    content = content_of_run(tmp_path, QUESTIONS)
    assert len(content.solutions) == 24
    assert "Questions, one by one" in build_report(content)
    for broken in ("{", "{}"):
        (tmp_path / "ledger.json").write_text(broken)
        with pytest.raises(InputError, match=r"ledger\.json is damaged"):
            content_of_run(tmp_path, QUESTIONS)


def test_the_command_writes_into_the_run_folder_and_says_where(run: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    plain = CliRunner().invoke(app, [str(run)])
    assert plain.exit_code == 0, plain.output
    assert (run / "report.html").is_file()
    assert "--questions" in plain.stderr
    out = tmp_path / "page.html"
    questions = str(run.parent / "questions.jsonl")
    full = CliRunner().invoke(app, [str(run), "--questions", questions, "--out", str(out)])
    assert full.exit_code == 0, full.output
    assert "MB" in full.stdout
    assert full.stderr == ""
    assert "Colour 7?" in out.read_text(encoding="utf-8")
    (run / "report.html").unlink()
