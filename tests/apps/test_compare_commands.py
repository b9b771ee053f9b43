"""`compare`: files in a folder, sentences for what is wrong, and going on wherever it was interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from typer.testing import CliRunner, Result

from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.apps.cli import app
from expertmix.graph.compare import KeptAnswers
from expertmix.retrieval import InputError

OPTIONS = ["red", "green", "blue", "black"]
NAMES = "abcd"
REFERENCES = [
    {"id": f"r{at}", "text": f"Reference {at}?", "options": OPTIONS, "gold": "A"}
    for at in range(20)
]
QUESTIONS = [
    *({"id": f"q{at}", "text": f"Question {at}?", "options": OPTIONS, "gold": "A"} for at in range(8)),
    {"id": "q8", "text": "How many?", "gold": 42},
    {"id": "q9", "text": "Which town?", "gold": "Rome || Roma"},
]  # fmt: skip
FILES = {
    "answers", "comparison.json", "ledger.json", "profile", "report.html", "result.json", "run.json", "timeline.json",
}  # fmt: skip
PLAIN = "panel,adaptive,majority,knn_router,oracle"


class Fake(DeterministicFakeEmbedding):
    """Stands in for MiniLM."""

    size: int = 16
    revision: str = "1"


def write_lines(name: str, rows: Sequence[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four experts, each worse than the one before; questions of every kind, and references."""
    for module in ("extractors", "resources"):
        monkeypatch.setattr(f"expertmix.graph.{module}.MiniLM", Fake)
    monkeypatch.chdir(tmp_path)
    lay_out()
    return tmp_path


def lay_out(**more: Any) -> None:
    """Files of a comparison; `more` is said of every expert."""
    for rank, name in enumerate(NAMES):
        chance = random.Random(rank)
        script: dict[str, str] = {}
        for row in [*REFERENCES, *QUESTIONS]:
            is_right = chance.random() < 0.85 - 0.15 * rank
            right = {"q8": "42", "q9": "Roma"}.get(str(row["id"]), "(A)")
            wrong = {"q8": "41", "q9": "Oslo"}.get(str(row["id"]), f"({chance.choice('BCD')})")
            script[str(row["id"])] = f"Because.\nAnswer: {right if is_right else wrong}"
        Path(f"{name}.json").write_text(json.dumps(script))
    rows = [{"alias": n, "engine": "scripted", "script": f"{n}.json", **more} for n in NAMES]
    Path("pool.yaml").write_text(json.dumps({"experts": rows}))
    write_lines("references.jsonl", REFERENCES)
    write_lines("questions.jsonl", QUESTIONS)


def invoke(*words: str, methods: str = PLAIN, calls: str = "3") -> Result:
    common = ["compare", "questions.jsonl", "--pool", "pool.yaml", "--methods", methods]
    return CliRunner().invoke(app, [*common, "--calls", calls, *words])


def compare(*words: str, **options: str) -> Result:
    """Compare into `out` with profiling, which works out."""
    outcome = invoke("--references", "references.jsonl", "--out", "out", *words, **options)
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome


def read_rows(folder: str = "out") -> list[dict[str, Any]]:
    return json.loads(Path(folder, "result.json").read_text())


def read_ids(folder: str, name: str) -> list[str]:
    """Of the questions that a method has answered."""
    [file] = Path(folder).rglob(name)
    return [json.loads(line)["id"] for line in file.read_text().splitlines()]


def forget_time(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "seconds_mean": None} for row in rows]


def count_calls(folder: str = "out") -> int:
    return json.loads(Path(folder, "ledger.json").read_text())["calls"]


def watch_requests(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Counts what is asked from now on, by expert and question."""
    asked: Counter[tuple[str, str]] = Counter()

    def make(name: str, path: Path, **rest: Any) -> ScriptedEngine:
        script: dict[str, str] = json.loads(Path(path).read_text())

        def say(request: Request) -> str:
            qid = str(request.question_id)
            asked[Path(path).stem, qid] += 1
            return script[qid]

        return ScriptedEngine(name, say)

    monkeypatch.setattr(ScriptedEngine, "from_file", make)
    return asked


def test_a_comparison_is_a_folder_with_figures_a_report_and_every_answer(place: Path) -> None:
    outcome = compare()
    assert {path.name for path in Path("out").iterdir()} >= FILES
    rows = read_rows()
    assert [row["label"] for row in rows] == [
        "panel@3",
        "adaptive@3",
        "single_best@1",
        "knn_router@1",
        "majority@3",
        "oracle@4",
        "chance",
    ]
    for row in rows:
        for name in (
            "method",
            "calls",
            "calls_mean",
            "tokens_mean",
            "accuracy",
            "low",
            "high",
            "n",
        ):
            assert row[name] is not None, name
        assert row["n"] == len(QUESTIONS)
        assert row["low"] <= row["accuracy"] <= row["high"]
    assert rows[-1]["accuracy"] == pytest.approx(0.2), "a quarter of eight, nothing of two"
    told = json.loads(Path("out/comparison.json").read_text())
    assert told["rows"] == rows
    assert told["facts"]["profile"] == "20 labelled references, disjoint from the questions"
    assert told["facts"]["questions"] == "10 questions of questions.jsonl"
    assert {pair["by"] for pair in told["matched"]} == {"calls", "tokens"}
    page = Path("out/report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    for words in ("majority@3", "Ways to answer 10 questions of questions.jsonl"):
        assert words in page
    assert read_ids("out", "panel@3-seed0.jsonl") == [row["id"] for row in QUESTIONS]
    for words in (
        "Right answers on 10 questions",
        "oracle@4",
        "out/report.html",
        "• The strongest",
    ):
        assert words in outcome.output, words
    assert count_calls() == 4 * (len(REFERENCES) + len(QUESTIONS)), "everything is asked once"


def test_all_methods_on_the_command_line(place: Path) -> None:
    told = json.loads(compare("--json", methods="all", calls="2,6").stdout)
    assert {"rows", "matched", "findings", "facts", "skipped", "budgets"} == set(told)
    assert told["rows"] == read_rows()
    assert len({row["method"] for row in told["rows"]}) == 16
    assert told["budgets"] == [2, 6]


def test_the_same_command_asks_nothing_twice(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare()
    first, findings = read_rows(), json.loads(Path("out/comparison.json").read_text())["findings"]
    asked = watch_requests(monkeypatch)
    told = json.loads(compare("--json").stdout)
    assert not asked
    assert forget_time(told["rows"]) == forget_time(first)
    assert told["findings"] == findings
    assert told["facts"]["calls made"] == "120 (0 of them now)"


def test_more_methods_calls_and_seeds_join_the_same_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(methods="single_best")
    asked = watch_requests(monkeypatch)
    compare(methods="majority", calls="2")
    assert set(asked) == {("b", f"q{at}") for at in range(10)}, "a is known, and all references"
    asked.clear()
    compare("--seeds", "2", methods="majority", calls="2,4")
    assert [row["label"] for row in read_rows()] == [
        "single_best@1",
        "majority@2",
        "majority@4",
        "chance",
    ]
    assert asked["a", "q0"] == asked["b", "q0"] == 1, "the second seed"
    assert asked["c", "q0"] == asked["d", "q0"] == 2
    assert max(asked.values()) == 2


def test_a_failed_expert_is_told_and_asked_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = json.loads(Path("b.json").read_text())

    def fail(request: Request) -> str:
        if request.question_id == "q3":
            raise RuntimeError("out of memory")
        return script[str(request.question_id)]

    plain = ScriptedEngine.from_file

    def make(name: str, path: Path, **rest: Any) -> ScriptedEngine:
        return ScriptedEngine(name, fail) if Path(path).stem == "b" else plain(name, path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(ScriptedEngine, "from_file", make)
        outcome = compare(methods="majority")
    assert "Experts failed: majority@3 lacks answers on 10.0 % of its questions." in " ".join(
        outcome.output.split()
    )
    asked = watch_requests(monkeypatch)
    told = json.loads(compare("--json", methods="majority").stdout)
    assert dict(asked) == {("b", "q3"): 1}
    assert not any("failed" in finding for finding in told["findings"])


def test_a_profile_takes_the_place_of_references(place: Path) -> None:
    words = ["profile", "references.jsonl", "--pool", "pool.yaml", "--out", "made"]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    outcome = invoke("--profile", "made", "--out", "out")
    assert outcome.exit_code == 0, outcome.output
    assert not Path("out/profile").exists()
    compare("--out", "other")
    names = ("label", "accuracy", "calls_mean", "tokens_mean", "delta")
    assert [{name: row[name] for name in names} for row in read_rows()] == [
        {name: row[name] for name in names} for row in read_rows("other")
    ]


def test_references_that_are_asked_are_left_out_and_told(place: Path) -> None:
    write_lines("references.jsonl", [*REFERENCES, {**QUESTIONS[0], "id": "copy"}])
    told = json.loads(compare("--json").stdout)
    assert "Left out because the questions hold the same: 1 reference." in told["findings"]
    assert told["facts"]["profile"] == "20 labelled references, disjoint from the questions"


def test_a_profile_that_has_seen_the_questions_is_told(place: Path) -> None:
    write_lines("seen.jsonl", [*REFERENCES, *QUESTIONS[:2]])
    made = CliRunner().invoke(
        app, ["profile", "seen.jsonl", "--pool", "pool.yaml", "--out", "made"]
    )
    assert made.exit_code == 0, made.output
    told = json.loads(invoke("--profile", "made", "--out", "out", "--json").stdout)
    assert any("hold 2 references of the profile" in line for line in told["findings"])
    assert told["facts"]["profile"] == "22 labelled references, 2 of them also asked"


def test_rows_without_ids_are_not_taken_for_each_other(place: Path) -> None:
    """They are numbered in each file: q1 of one is not q1 of the other."""
    for name in NAMES:
        lines = {"*": "Answer: (A)"} if name < "c" else {"*": "Answer: (B)"}
        Path(f"{name}.json").write_text(json.dumps(lines))
    nameless = [{k: v for k, v in row.items() if k != "id"} for row in REFERENCES]
    write_lines("references.jsonl", nameless[:12])
    write_lines("more.jsonl", nameless[12:])
    write_lines(
        "questions.jsonl", [{k: v for k, v in row.items() if k != "id"} for row in QUESTIONS]
    )
    told = json.loads(compare("--references", "more.jsonl", "--json", methods="majority").stdout)
    assert told["facts"]["profile"].startswith("20 labelled references, disjoint")
    assert not any("Left out" in line for line in told["findings"])
    assert told["rows"][0]["accuracy"] == 0.8


def test_questions_are_drawn_and_several_files_are_one_set(place: Path) -> None:
    write_lines(
        "more.jsonl",
        [{**row, "id": f"z{row['id']}", "text": f"{row['text']}!"} for row in QUESTIONS],
    )
    for name in NAMES:
        Path(f"{name}.json").write_text(json.dumps({"*": "Answer: (A)"}))
    common = ["compare", "questions.jsonl", "more.jsonl", "--pool", "pool.yaml", "--json"]
    common += ["--methods", "majority", "--calls", "3", "--references", "references.jsonl"]
    drawn = {}
    for limit in ("5", "12"):
        words = [*common, "--limit", limit, "--out", f"out{limit}", "--reference-limit", "9"]
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, outcome.output
        told = json.loads(outcome.stdout)
        assert told["rows"][0]["n"] == int(limit)
        assert told["facts"]["questions"] == f"{limit} questions of questions.jsonl, more.jsonl"
        assert told["facts"]["profile"].startswith("9 labelled references")
        drawn[limit] = read_ids(f"out{limit}", "majority@3-seed0.jsonl")
    assert set(drawn["5"]) < set(drawn["12"])


BAD: dict[str, tuple[list[str], dict[str, str], str]] = {
    "unknown method": (["--methods", "debait"], {}, 'there is no method "debait"; there are panel'),
    "too few calls": (["--methods", "debate"], {}, "the method debate cannot take part: it has no"),
    "calls in words": (["--calls", "three"], {}, '--calls is "three"; give numbers with commas'),
    "no calls": (["--calls", ","], {}, "calls per question are none"),
    "negative calls": (["--calls", "-3"], {}, "calls per question are -3"),
    "no gold": (
        [],
        {"questions.jsonl": '{"text": "Why?"}\n'},
        '1 of 1 questions have no gold answer, "q1" for',
    ),
    "nowhere": (["--references", "nowhere.jsonl"], {}, "no question file at nowhere.jsonl"),
    "references that are the questions": (
        ["--references", "questions.jsonl"],
        {"references.jsonl": json.dumps(QUESTIONS[0])},
        "all references are among the questions; give others",
    ),
    "both": (["--profile", "made"], {}, "leave out --references or --profile"),
    "foreign folder": ([], {"out/notes.txt": "mine"}, "out is not empty and holds no run"),
    "unknown task": (["--task", "riddles"], {}, "riddles"),
    "pool that is no pool": ([], {"pool.yaml": "experts: 3"}, "experts"),
}


@pytest.mark.parametrize(("words", "files", "told"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_one_sentence_before_anything_is_asked(
    place: Path, words: list[str], files: dict[str, str], told: str
) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    outcome = invoke("--references", "references.jsonl", "--out", "out", *words)
    assert isinstance(outcome.exception, InputError), outcome.output
    assert told in str(outcome.exception)
    assert "\n" not in str(outcome.exception)
    assert not Path("out/ledger.json").exists()
    assert not list(Path().rglob("*.sqlite"))


def test_without_references_or_profile_nobody_is_the_strongest(place: Path) -> None:
    outcome = invoke("--out", "out")
    assert isinstance(outcome.exception, InputError)
    assert "give labelled questions with --references, or --profile" in str(outcome.exception)
    empty = CliRunner().invoke(app, ["compare", "--out", "out"])
    assert "there is no examples/questions.jsonl here" in str(empty.exception)
    assert CliRunner().invoke(app, ["compare", "--seeds", "0"]).exit_code == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("questions", "out belongs to other questions; choose a new folder for --out"),
        ("pool", "the pool's experts changed"),
        ("references", "out belongs to a run with other settings (profile was"),
        ("solve", "out belongs to a run with other settings"),
    ],
)
def test_a_folder_of_something_else_is_refused(place: Path, change: str, told: str) -> None:
    if change == "solve":
        words = ["solve", "questions.jsonl", "--pool", "pool.yaml", "--out", "out"]
        assert CliRunner().invoke(app, words).exit_code == 0
    else:
        compare(methods="single_best")
    match change:
        case "questions":
            write_lines("questions.jsonl", QUESTIONS[1:])
        case "references":
            write_lines("references.jsonl", REFERENCES[1:])
        case "pool":
            Path("b.json").write_text(json.dumps({"*": "Answer: (B)"}))
        case _:
            pass
    before = {path: path.read_bytes() for path in Path("out").glob("*.json")}
    outcome = invoke("--references", "references.jsonl", "--out", "out", methods="single_best")
    assert isinstance(outcome.exception, InputError), outcome.output
    assert told in str(outcome.exception)
    assert {path: path.read_bytes() for path in Path("out").glob("*.json")} == before


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_wherever_it_was_interrupted_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    compare("--out", "whole")
    plain = KeptAnswers.keep

    def make_keep() -> Callable[..., None]:
        finished: list[object] = []

        def keep(self: KeptAnswers, *rest: Any) -> None:
            if len(finished) == kept:
                os.kill(os.getpid(), signal.SIGINT)
            finished.append(rest)
            plain(self, *rest)

        return keep

    with monkeypatch.context() as patch:
        patch.setattr(KeptAnswers, "keep", make_keep())
        outcome = invoke("--references", "references.jsonl", "--out", "out")
    assert outcome.exit_code == 130
    assert "is kept in out; run the same command to go on" in " ".join(outcome.stderr.split())
    assert not Path("out/result.json").exists()
    asked = watch_requests(monkeypatch)
    compare()
    assert forget_time(read_rows()) == forget_time(read_rows("whole"))
    assert not asked or max(asked.values()) == 1
    assert count_calls() == count_calls("whole"), "both runs together ask everything once"


def count_stored(folder: Path) -> int:
    """Replies that are kept."""
    try:
        with sqlite3.connect(f"file:{folder}/replies.sqlite?mode=ro", uri=True) as connection:
            found = int(connection.execute("SELECT count(*) FROM replies").fetchone()[0])
        connection.close()
    except sqlite3.OperationalError:
        return 0  # it is being made
    return found


# The real command line but for its encoder, which takes long to import.
STARTED = """
import sys
import expertmix.graph.extractors, expertmix.graph.resources
from expertmix.apps import cli
from langchain_core.embeddings import DeterministicFakeEmbedding

class Fake(DeterministicFakeEmbedding):
    size: int = 16
    revision: str = "1"

expertmix.graph.extractors.MiniLM = expertmix.graph.resources.MiniLM = Fake
sys.argv = ["expertmix", *sys.argv[1:]]
cli.main()
"""


def test_the_command_line_as_it_is_started_ends_in_order_and_goes_on(place: Path) -> None:
    compare("--out", "whole", methods="majority")
    lay_out(latency=1.0)
    command = [sys.executable, "-W", "ignore::SyntaxWarning", "-c", STARTED, "compare"]
    command += ["questions.jsonl", "--pool", "pool.yaml", "--references", "references.jsonl"]
    command += ["--methods", "majority", "--calls", "3", "--out", "out"]
    work = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while count_stored(Path("out")) < 4 * len(REFERENCES) and time.monotonic() < deadline:
        time.sleep(0.02)
    work.send_signal(signal.SIGTERM)
    _, told = work.communicate(timeout=60)
    assert work.returncode == 143, told
    assert "terminated: every finished answer is kept in out; run the same" in told
    assert "Traceback" not in told
    lay_out()
    compare(methods="majority")
    names = ("label", "accuracy", "calls_mean", "tokens_mean", "p")
    assert [[row[name] for name in names] for row in read_rows()] == [
        [row[name] for name in names] for row in read_rows("whole")
    ]
    assert count_calls() == count_calls("whole")
