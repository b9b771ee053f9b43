"""`solve`, `plan`, `ask` and `aggregators` with a profile: growing panels, and going on after a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from typer.testing import CliRunner

from expertmix.agents import Catalog
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.apps.cli import app
from expertmix.apps.session import PanelSettings, plan_run, profile_experts, solve_into
from expertmix.graph import Result, RunFolder
from expertmix.retrieval import InputError, Question

OPTIONS = ("red", "green", "blue", "black")
NAMES = "abcde"
REFERENCES = [
    Question(id=f"r{at}", text=f"Reference {at}?", options=OPTIONS, gold="A", kind="choice")
    for at in range(20)
]
QUESTIONS = [
    Question(id=f"q{at}", text=f"Question {at}?", options=OPTIONS, kind="choice")
    for at in range(10)
]


class Fake(DeterministicFakeEmbedding):
    """Stands in for MiniLM."""

    size: int = 16
    revision: str = "1"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool of five experts, each worse than the one before, and its profile in `made`."""
    for module in ("extractors", "resources"):
        monkeypatch.setattr(f"expertmix.graph.{module}.MiniLM", Fake)
    monkeypatch.chdir(tmp_path)
    for rank, name in enumerate(NAMES):
        script = {
            q.id: f"Answer: ({'A' if at >= 3 * rank else 'B'})" for at, q in enumerate(REFERENCES)
        }
        script |= {
            q.id: f"Answer: ({'A' if at < 4 else 'ABCD'[(at * rank + rank) % 4]})"
            for at, q in enumerate(QUESTIONS)
        }
        Path(f"{name}.json").write_text(json.dumps(script))
    rows = [{"alias": n, "engine": "scripted", "script": f"{n}.json"} for n in NAMES]
    Path("pool.yaml").write_text(json.dumps({"experts": rows}))
    for file, questions in (("references", REFERENCES), ("questions", QUESTIONS)):
        lines = (json.dumps(question.to_json()) + "\n" for question in questions)
        Path(f"{file}.jsonl").write_text("".join(lines))
    profile_experts(Path("made"), REFERENCES, Catalog.load("pool.yaml"), lambda _: None)
    return tmp_path


SETTINGS = PanelSettings(profile=Path("made"), adaptive=3)


def solve(out: str, settings: PanelSettings = SETTINGS, **more: Any) -> Result:
    catalog = Catalog.load("pool.yaml")
    return solve_into(Path(out), QUESTIONS, catalog, settings, lambda _: None, **more)


def watch_engines(monkeypatch: pytest.MonkeyPatch, **faults: Faults) -> list[ScriptedEngine]:
    """The engines that are made from now on."""
    made: list[ScriptedEngine] = []
    plain = ScriptedEngine.from_file

    def make(name: str, path: Path, **rest: Any) -> ScriptedEngine:
        rest["faults"] = faults.get(Path(path).stem)
        made.append(plain(name, path, **rest))
        return made[-1]

    monkeypatch.setattr(ScriptedEngine, "from_file", make)
    return made


def count_requests(engines: list[ScriptedEngine]) -> Counter[tuple[str, str]]:
    return Counter((engine.name, r.id) for engine in engines for r in engine.requests)


def test_a_growing_panel_that_met_a_fault_ends_as_one_without(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = solve("whole").to_rows()
    sizes = [len(row["experts"]) for row in whole]
    assert sum(sizes) <= 3 * len(QUESTIONS)
    assert max(sizes) > min(sizes) == 2
    # Alone, the largest panels could not have grown so far: they use what the agreeing ones left.
    broken = {row["id"] for row in whole if len(row["experts"]) == max(sizes)}
    with monkeypatch.context() as patch:
        first = watch_engines(patch, b=Faults(fail_ids=broken))
        assert solve("cut").to_rows() != whole
    second = watch_engines(monkeypatch)
    assert solve("cut").to_rows() == whole
    twice = [key for key, times in count_requests(first + second).items() if times > 1]
    assert {request for _, request in twice} == {f"{qid}#0" for qid in broken}, "only what failed"
    assert len(twice) == len(broken)


def test_a_growing_panel_that_was_killed_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = solve("whole", window=4).to_rows()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    first = watch_engines(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", die)
        with pytest.raises(KeyboardInterrupt):
            solve("cut", window=4)
    assert solve("cut", window=4).to_rows() == whole
    assert max(count_requests(first).values()) == 1
    assert solve("cut", window=4).to_rows() == whole


def test_a_plan_of_a_growing_panel_counts_its_mean(place: Path) -> None:
    catalog = Catalog.load("pool.yaml")
    assert plan_run(QUESTIONS, catalog, SETTINGS).calls == 3 * len(QUESTIONS)
    drawn = replace(SETTINGS, adaptive=None, policy="reference", k=3)
    assert plan_run(QUESTIONS, catalog, drawn).calls == 3 * len(QUESTIONS)


def test_other_scores_of_aggregators_are_another_run(place: Path) -> None:
    ranked = CliRunner().invoke(app, ["aggregators", "made", "--json", "--experts", "a,b"])
    assert ranked.exit_code == 0, ranked.output
    assert sorted(json.loads(ranked.stdout)["candidates"]) == ["a", "b"]
    best = replace(SETTINGS, adaptive=None, aggregator="best")
    rows = solve("best", best).to_rows()
    assert {row["method"] for row in rows} >= {"model", "posterior"}
    assert plan_run(QUESTIONS, Catalog.load("pool.yaml"), best).calls == 4 * len(QUESTIONS)
    assert CliRunner().invoke(app, ["aggregators", "made", "--limit", "9"]).exit_code == 0
    with pytest.raises(InputError, match="aggregators was"):
        solve("best", best)


def test_every_option_reaches_the_panel(place: Path) -> None:
    common = ["questions.jsonl", "--profile", "made", "--json"]
    options = ["--adaptive", "2.5", "--abstain-below", "0.99", "--cost-weight", "0.1"]
    done = CliRunner().invoke(app, ["solve", *common, *options, "--out", "one"])
    rows = json.loads(done.stdout)["answers"]
    assert all(row["answer"] is None and row["abstained"] for row in rows if row["dissent"])
    counted = ["--merging", "vote", "--policy", "knn", "-k", "3"]
    done = CliRunner().invoke(app, ["solve", *common, *counted, "--out", "two"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["answers"]
    assert {row["method"] for row in rows} == {"vote"}
    assert {len(row["experts"]) for row in rows} == {3}
    shown = [word for option in OPTIONS for word in ("--option", option)]
    asked = CliRunner().invoke(
        app, ["ask", "Which?", *shown, "--profile", "made", "--adaptive", "2", "--json"]
    )
    assert asked.exit_code == 0, asked.output
    told = json.loads(asked.stdout)
    assert (told["answer"], told["method"], told["ledger"]["calls"]) == ("A", "posterior", 2)


def test_bad_settings_are_one_sentence_on_the_command_line(place: Path) -> None:
    command = [sys.executable, "-m", "expertmix.apps.cli", "solve", "questions.jsonl"]
    done = subprocess.run(
        [*command, "--adaptive", "3"],
        cwd=place,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: an adaptive panel needs a profile: make one")
    assert done.stderr.strip().count("\n") == 0
    assert not (place / "runs").exists()


def run_cli(*words: str) -> Any:
    outcome = CliRunner().invoke(app, list(words))
    assert outcome.exit_code == 0, outcome.output
    return outcome


def write_questions() -> None:
    lines = (json.dumps(question.to_json()) for question in QUESTIONS)
    Path("q.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_runs_that_share_a_store_ask_nothing_twice(place: Path) -> None:
    write_questions()
    for run, calls in (("one", 20), ("two", 0)):
        words = ("--pool", "pool.yaml", "--out", run, "-k", "2", "--store", "shared.sqlite")
        run_cli("solve", "q.jsonl", *words)
        assert json.loads(Path(run, "ledger.json").read_text())["calls"] == calls
    assert Path("one/answers.jsonl").read_text() == Path("two/answers.jsonl").read_text()


def test_without_a_store_nothing_but_the_answers_is_kept(place: Path) -> None:
    write_questions()
    run_cli("solve", "q.jsonl", "--pool", "pool.yaml", "--out", "run", "--store", "off")
    assert not list(Path("run").glob("replies*"))


def test_a_run_tells_what_was_planned_and_draws_what_ran(place: Path) -> None:
    write_questions()
    pool = json.loads(Path("pool.yaml").read_text())
    for row in pool["experts"]:
        row |= {"memory_gib": 1, "load_seconds": 0.05, "latency": 0.05}
    Path("pool.yaml").write_text(json.dumps({**pool, "memory_gib": 2}))
    run_cli("solve", "q.jsonl", "--pool", "pool.yaml", "--out", "run", "--metrics", "run.prom")
    forecast = {f["figure"]: f for f in json.loads(Path("run/ledger.json").read_text())["forecast"]}
    assert forecast["loads"]["planned"] == forecast["loads"]["real"] == 5
    assert "<svg" in Path("run/timeline.svg").read_text()
    assert 'expertmix_loads_total{device="cpu"' in Path("run.prom").read_text()
    outcome = run_cli("timeline", "run", "--picture", "run.html")
    assert "idle" in outcome.output
    assert Path("run.html").read_text().lower().startswith("<!doctype html>")
    run_cli("plan", "q.jsonl", "--pool", "pool.yaml", "--picture", "plan.svg")
    assert "<svg" in Path("plan.svg").read_text()


def test_a_device_that_is_not_there_ends_a_run_before_it_begins(place: Path) -> None:
    write_questions()
    pool = json.loads(Path("pool.yaml").read_text())
    pool["experts"][0]["memory_gib"] = 1
    Path("pool.yaml").write_text(json.dumps({**pool, "devices": [{"name": "cuda:7"}]}))
    with pytest.raises(InputError, match='no device "cuda:7" here'):
        solve_into(Path("run"), QUESTIONS, Catalog.load("pool.yaml"), PanelSettings(k=2), print)
    assert not Path("run").exists()
