"""`expertmix profile`: some experts, more samples, notes, and tables for people."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from expertmix.agents import Profile
from expertmix.agents.records import ExpertRecord, Outcome, Reference
from expertmix.apps.overviews import tabulate_profile

REFERENCES = [
    {"id": "a", "text": "What is 1 + 1?", "gold": "2", "skills": ["sums"]},
    {"id": "b", "text": "Red?", "options": ["yes", "no"], "gold": "B", "skills": ["sums", "law"]},
    {"id": "c", "text": "Name it.", "gold": "Rome || Roma"},
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    right = {"a": "Answer: 2", "b": "Answer: (B)", "c": "Answer: Rome"}
    (tmp_path / "right.json").write_text(json.dumps(right))
    (tmp_path / "wrong.json").write_text(json.dumps({"*": "I do not know"}))
    rows = [
        {"alias": name, "engine": "scripted", "script": f"{name}.json"}
        for name in ("right", "wrong")
    ]
    (tmp_path / "pool.yaml").write_text(json.dumps({"experts": rows}))
    write(tmp_path, REFERENCES)
    return tmp_path


def write(place: Path, rows: list[dict[str, Any]]) -> None:
    (place / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class CommandLine:
    """Set by a fixture, so that the helper below needs no argument for it."""

    run: Any = None


@pytest.fixture(scope="module", autouse=True)
def command_line(expertmix: Any) -> None:
    CommandLine.run = staticmethod(expertmix)


def profile(
    place: Path, *more: str, references: str = "references.jsonl"
) -> subprocess.CompletedProcess[str]:
    return CommandLine.run(
        "profile", references, "--out", "made", *more, cwd=place, HF_HUB_OFFLINE="1"
    )


def test_it_grows_by_experts_and_samples(place: Path) -> None:
    first = profile(place, "--experts", "right", "--json")
    assert first.returncode == 0, first.stderr
    assert list(json.loads(first.stdout)["experts"]) == ["right"]
    second = json.loads(profile(place, "--json", "--experts", "right, wrong").stdout)
    assert list(second["experts"]) == ["right", "wrong"]
    assert second["ledger"]["calls"] == 3
    third = json.loads(profile(place, "--json", "--samples", "2").stdout)
    assert third["ledger"]["calls"] == 6
    assert third["experts"]["right"]["overall"] == [3, 0], "a question counts once"
    assert third["experts"]["right"]["skills"] == {"law": [0.5, 0], "sums": [1.5, 0]}


def test_it_prints_a_table_and_the_notes(place: Path) -> None:
    write(place, [*REFERENCES, {**REFERENCES[0], "id": "d"}])
    done = profile(place)
    assert done.returncode == 0, done.stderr
    for word in ("sums", "law", "1.5/1.5", "0/3", "tokens per call", "The profile is in made"):
        assert word in done.stdout
    assert "note: 1 duplicate references were dropped: d is a" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "rows", "match"),
    [
        (["--experts", "right,nobody"], REFERENCES, '"nobody"'),
        ([], [{"id": "x", "text": "?"}], 'reference "x" has no "gold"'),
        (
            [],
            [{"id": "x", "text": "?", "gold": "080 or 081"}],
            'reference "x" has the malformed gold',
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    place: Path, arguments: list[str], rows: list[dict[str, Any]], match: str
) -> None:
    write(place, rows)
    done = profile(place, *arguments)
    assert done.returncode == 2
    assert match in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_set_without_a_commit_is_refused(place: Path) -> None:
    done = profile(place, references="hf:openai/gsm8k/main:test")
    assert done.returncode == 2
    assert "is not pinned: it has no revision; append @" in done.stderr


def test_an_old_profile_says_what_to_do(place: Path) -> None:
    (place / "old").mkdir()
    (place / "old/profile.json").write_text('{"format": 1}')
    (place / "old/references.jsonl").write_text((place / "references.jsonl").read_text())
    done = CommandLine.run("plan", "references.jsonl", "--profile", "old", cwd=place)
    assert done.returncode == 2
    assert "run `expertmix profile` again: only the missing calls are made" in done.stderr


def test_the_table_holds_experts_without_answers_and_untrusted_names() -> None:
    references = {"q": Reference("q", "A", 2, "choice", {"[red]x[/nope]": 0.5})}
    made = Profile(
        references="",
        prompts="",
        seed=0,
        experts={"a": ExpertRecord("", 1.5), "b": ExpertRecord("", failed=4)},
        questions=references,
        outcomes=(Outcome("q", "a", 0, "A", True, 7),),
    )
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(tabulate_profile(made))
    console.file.close()
    text = console.export_text()
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "0.5/0.5" in rows["[red]x[/nope]"]
    assert "—" in rows["[red]x[/nope]"]
    assert "1/1" in rows["all"]
    assert "4" in rows["without a reply"]
