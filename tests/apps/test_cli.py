"""The command line: results for people and programs, one sentence for what is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

QUESTIONS = [
    {"id": "a", "text": "What is 1 + 1?", "gold": "2", "skills": ["sums"]},
    {"id": "b", "text": "Red?", "options": ["yes", "no"], "gold": "B"},
    {"id": "c", "text": "Name it.", "gold": "Rome || Roma"},
]


class CommandLine:
    """Set by a fixture, so that the helpers below need no argument for it."""

    run: Any = None


@pytest.fixture(scope="module", autouse=True)
def command_line(expertmix: Any) -> None:
    CommandLine.run = staticmethod(expertmix)


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return CommandLine.run(*arguments, cwd=cwd, **env)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    script = {"a": "Answer: 2", "b": "Answer: (B)", "c": "Answer: Rome"}
    (tmp_path / "right.json").write_text(json.dumps(script))
    (tmp_path / "wrong.json").write_text(json.dumps({"*": ""}))
    rows = [
        {"alias": "right", "engine": "scripted", "script": "right.json"},
        {"alias": "wrong", "engine": "scripted", "script": "wrong.json"},
    ]
    (tmp_path / "pool.yaml").write_text(json.dumps({"experts": rows}))
    write_lines(tmp_path / "questions.jsonl", QUESTIONS)
    return tmp_path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def solve_json(place: Path, *more: str) -> dict[str, Any]:
    done = run("solve", "questions.jsonl", "--out", "run", "--json", *more, cwd=place)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_solve_writes_one_line_per_question_and_the_ledger(place: Path) -> None:
    done = run("solve", "questions.jsonl", "--out", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (place / "run/answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row["answer"] for row in rows] == ["2", "B", "Rome"]
    assert {"confidence", "experts", "votes", "dissent", "usage"} <= set(rows[0])
    assert all(expert["reason"] for expert in rows[0]["experts"])
    ledger = json.loads((place / "run/ledger.json").read_text())
    assert (ledger["calls"], ledger["failures"], ledger["loads"]) == (6, 0, 0)
    for word in ("Answers", "right", "chance", "What it cost", "run/answers.jsonl"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout, "no colours in a pipe"


def test_a_second_run_asks_nothing_twice(place: Path) -> None:
    first = solve_json(place)
    second = solve_json(place)
    assert second["answers"] == first["answers"]
    assert second["ledger"]["calls"] == first["ledger"]["calls"] == 6


def test_an_interrupted_run_goes_on_where_it_was(place: Path) -> None:
    whole = solve_json(place)
    answers = place / "run/answers.jsonl"
    lines = answers.read_text().splitlines()
    answers.write_text(lines[0] + "\n" + lines[1][:25])  # the crash came in the middle of a line
    resumed = solve_json(place)
    assert resumed["answers"] == whole["answers"]
    assert resumed["ledger"]["calls"] == 6
    assert resumed["ledger"]["reused"] == 4


def test_a_profile_says_who_is_recruited(place: Path) -> None:
    made = run("profile", "questions.jsonl", "--out", "profile", "--json", cwd=place)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["experts"]["right"]["overall"] == [3, 0]
    solved = solve_json(place, "--profile", "profile", "-k", "1")
    assert {row["experts"][0]["expert"] for row in solved["answers"]} == {"right"}
    assert solved["ledger"]["calls"] == 3
    again = run("profile", "questions.jsonl", "--out", "profile", "--json", cwd=place)
    assert json.loads(again.stdout)["ledger"]["calls"] == 0


def test_profiling_again_changes_nothing_that_a_run_depends_on(place: Path) -> None:
    profiling = ("profile", "questions.jsonl", "--out", "profile", "--json")
    run(*profiling, cwd=place)
    solve_json(place, "--profile", "profile")
    made = run(*profiling, cwd=place)
    solved = solve_json(place, "--profile", "profile")
    assert solved["ledger"]["calls"] == 6
    seconds = json.loads(made.stdout)["experts"]["right"]["seconds_per_call"]
    assert seconds > 0, "what an expert took is remembered"


def test_what_utf8_cannot_write_does_not_lose_the_run(place: Path) -> None:
    (place / "right.json").write_text(json.dumps({"*": "Answer: 2 \ud800"}))
    first = solve_json(place)
    answers = place / "run/answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-40] + "é".encode()[:1])
    assert [row["id"] for row in solve_json(place)["answers"]] == ["a", "b", "c"]
    assert len(first["answers"]) == 3


def test_a_plan_is_printed_before_anything_runs(place: Path) -> None:
    done = run("plan", "questions.jsonl", "--json", cwd=place)
    plan = json.loads(done.stdout)
    assert (plan["loads"], plan["calls"]) == (0, 6)
    assert not (place / "run").exists()


def test_ask_shows_who_answered_and_why(place: Path) -> None:
    (place / "right.json").write_text(json.dumps({"*": "Because.\nAnswer: 42"}))
    done = run("ask", "What is 6 x 7?", cwd=place)
    assert done.returncode == 0, done.stderr
    for word in ("42", "right", "wrong", "drawn at random", "confidence", "What it cost"):
        assert word in done.stdout
    told = json.loads(run("ask", "What is 6 x 7?", "--json", cwd=place).stdout)
    assert told["answer"] == "42"
    assert told["ledger"]["calls"] == 2


def test_what_a_model_says_cannot_command_the_terminal(place: Path) -> None:
    (place / "right.json").write_text(json.dumps({"*": "[red]x[/nope] \x1b[2J\u202e Answer: 42"}))
    done = run("ask", "What?", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "[red]x[/nope]" in done.stdout


def test_a_failed_expert_is_reported_and_retried_by_the_next_run(place: Path) -> None:
    (place / "wrong.json").write_text(json.dumps({"a": "Answer: 3", "b": "Answer: (A)"}))
    done = run("solve", "questions.jsonl", "--out", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "wrong failed:" in done.stderr
    rows = [json.loads(line) for line in (place / "run/answers.jsonl").read_text().splitlines()]
    assert list(rows[2]["missing"]) == ["wrong"]
    resumed = solve_json(place)
    assert resumed["ledger"]["calls"] == 7, "only the failed request is asked again"


def test_schema_and_check(place: Path) -> None:
    assert "VllmExpert" in json.loads(run("schema", cwd=place).stdout)["$defs"]
    events = json.loads(run("schema", "--of", "events", cwd=place).stdout)
    assert "ExpertStarted" in events["$defs"]
    assert run("pool", "check", "pool.yaml", cwd=place).returncode == 0


BAD: list[tuple[str, list[str], dict[str, Any], str]] = [
    ("missing questions", ["solve", "nowhere.jsonl"], {}, "no question file at nowhere.jsonl"),
    ("empty questions", ["solve", "q.jsonl"], {"q.jsonl": "\n\n"}, "holds no questions"),
    (
        "not JSON",
        ["solve", "q.jsonl"],
        {"q.jsonl": '{"text": "x"}\n{"text": \n'},
        "q.jsonl, line 2: not JSON",
    ),
    ("no text", ["solve", "q.jsonl"], {"q.jsonl": '{"id": "x"}'}, 'line 1: it has no "text"'),
    (
        "repeated id",
        ["solve", "q.jsonl"],
        {"q.jsonl": '{"id": 1, "text": "x"}\n\n{"id": 1, "text": "y"}'},
        'line 3: the id "1" was already used in line 1',
    ),
    ("k too large", ["solve", "questions.jsonl", "-k", "3"], {}, "k is 3, but there are 2 experts"),
    (
        "unknown key",
        ["solve", "questions.jsonl"],
        {"pool.yaml": '{"experts": [{"alias": "a", "engine": "replay", "tabel": "t"}]}'},
        "unknown key",
    ),
    (
        "unknown engine",
        ["solve", "questions.jsonl"],
        {"pool.yaml": '{"experts": [{"alias": "a", "engine": "llama"}]}'},
        'unknown engine "llama"',
    ),
    (
        "weights that leave the root",
        ["solve", "questions.jsonl"],
        {
            "pool.yaml": '{"experts": [{"alias": "a", "engine": "vllm", "weights": {"path": "../x"}}]}'
        },
        "leaves the root",
    ),
    (
        "weights that do not exist",
        ["ask", "What?"],
        {"pool.yaml": '{"experts": [{"alias": "a", "engine": "vllm", "weights": {"path": "x"}}]}'},
        'expert "a": There is no weights folder',
    ),
    (
        "revision that is not pinned",
        ["pool", "check", "pool.yaml"],
        {
            "pool.yaml": '{"experts": [{"alias": "a", "engine": "vllm",'
            ' "weights": {"hub": "a/b", "revision": "main"}}]}'
        },
        "40 hexadecimal digits",
    ),
    (
        "another folder's content",
        ["solve", "questions.jsonl", "--out", "full"],
        {"full/notes.txt": "mine"},
        "is not empty and holds no run",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "files", "words"), [c[1:] for c in BAD], ids=[c[0] for c in BAD]
)
def test_bad_input_gets_one_sentence_and_a_non_zero_exit(
    place: Path, arguments: list[str], files: dict[str, str], words: str
) -> None:
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(content)
    done = run(*arguments, cwd=place)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error:")
    assert done.stderr.strip().count("\n") == 0
    assert words in done.stderr


def test_an_unreachable_address_is_one_sentence(place: Path) -> None:
    address = {"alias": "far", "engine": "openai", "address": "http://127.0.0.1:9/v1", "model": "m"}
    (place / "pool.yaml").write_text(json.dumps({"experts": [{**address, "retries": 0}]}))
    done = run("ask", "What?", cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith("far failed: http://127.0.0.1:9/v1 cannot be reached")
    assert done.stderr.strip().count("\n") == 0
    assert run("pool", "check", "pool.yaml", cwd=place).returncode == 1


def test_a_run_folder_of_other_questions_is_refused(place: Path) -> None:
    solve_json(place)
    write_lines(place / "questions.jsonl", QUESTIONS[:2])
    done = run("solve", "questions.jsonl", "--out", "run", cwd=place)
    assert done.returncode == 2
    assert "belongs to other questions" in done.stderr


def test_a_run_folder_of_other_settings_says_which(place: Path) -> None:
    solve_json(place)
    done = run("solve", "questions.jsonl", "--out", "run", "-k", "1", cwd=place)
    assert done.returncode == 2
    assert "k was None, is 1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_keeps_what_is_finished_and_says_how_to_go_on(
    place: Path, number: signal.Signals
) -> None:
    slow = place / "slow.py"
    slow.write_text(SLOW)
    work = subprocess.Popen(
        [sys.executable, str(slow)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (place / "asked").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    work.send_signal(number)
    _, told = work.communicate(timeout=30)
    assert work.returncode == (143 if number == signal.SIGTERM else 130), told
    assert "run the same command to go on" in told
    assert "Traceback" not in told
    resumed = solve_json(place)
    assert resumed["ledger"]["reused"] >= 1
    assert resumed["ledger"]["calls"] == 6, "both runs together ask everything once"
    assert [row["answer"] for row in resumed["answers"]] == ["2", "B", "Rome"]


# The real command line over an engine that answers two questions and then takes its time.
SLOW = """
import sys
from pathlib import Path
from expertmix.agents.engines import scripted
from expertmix.apps import cli

def late(request):
    Path("asked").touch()
    return 60.0 if request.question_id == "c" else 0.1

plain = scripted.ScriptedEngine.from_file
def slow(name, path, **rest):
    return plain(name, path, latency=late)
scripted.ScriptedEngine.from_file = slow
sys.argv = ["expertmix", "solve", "questions.jsonl", "--out", "run"]
cli.main()
"""
