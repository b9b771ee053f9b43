"""A run as RouterArena takes it: its fields, what a panel's entry says, and what stays open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from expertmix.agents import Catalog
from expertmix.apps.export_commands import export
from expertmix.apps.harness.router_arena import Price, Submission, read_prompts, read_run
from expertmix.apps.harness.spokesman import choose_spokesman, find_loss, speak
from expertmix.apps.session import PanelSettings, solve_into
from expertmix.graph import Solution
from expertmix.retrieval import InputError, Question

PROMPTS = [
    {"global index": f"MMLU_{number}", "prompt_formatted": f"Question {number}? Use \\boxed{{X}}."}
    for number in range(3)
]
QUESTIONS = [
    Question(id=str(row["global index"]), text=str(row["prompt_formatted"])) for row in PROMPTS
]


def told(expert: str, answer: str | None, **more: Any) -> dict[str, Any]:
    row = {
        "expert": expert,
        "weight": 0.5,
        "answer": answer,
        "text": f"{expert} says {answer}",
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "error": None,
    }
    return {**row, **more}


def solved(*experts: dict[str, Any], answer: str | None, **more: Any) -> Solution:
    question = more.pop("question", QUESTIONS[0])
    merging = more.pop("merging", (0, 0))
    usage = {
        "prompt_tokens": sum(row["prompt_tokens"] for row in experts) + merging[0],
        "completion_tokens": sum(row["completion_tokens"] for row in experts) + merging[1],
    }
    row = {"answer": answer, "experts": list(experts), "usage": usage, "aggregation": ""}
    return Solution(question=question, row={**row, "abstained": False, **more})


def entry_of(solution: Solution, **more: Any) -> dict[str, Any]:
    [entry] = Submission(router="r", solutions=[solution], **more).predictions()
    return entry


PRICES = {"small": Price(input=1, output=2), "large": Price(input=10, output=20)}


def test_one_recruit_is_one_entry_as_routerarena_has_it() -> None:
    solution = solved(told("small", "x"), answer="x")
    entry = entry_of(solution, names={"small": "org/small-7b"}, prices=PRICES)
    assert entry == {
        "global index": "MMLU_0",
        "prompt": "Question 0? Use \\boxed{X}.",
        "prediction": "org/small-7b",
        "generated_result": {
            "generated_answer": "small says x",
            "success": True,
            "token_usage": {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110},
            "provider": "expertmix",
            "error": None,
        },
        "cost": pytest.approx(120e-6),
        "accuracy": None,
        "for_optimality": False,
    }


def test_a_panel_is_named_by_its_spokesman_and_costs_what_all_cost() -> None:
    solution = solved(
        told("small", "y", weight=0.4),
        told("large", "y", weight=0.6),
        told("wrong", "z", weight=0.9),
        answer="y",
    )
    entry = entry_of(solution, prices={**PRICES, "wrong": Price(input=0, output=0)})
    assert entry["prediction"] == "large"
    assert entry["generated_result"]["generated_answer"] == "large says y"
    assert entry["generated_result"]["token_usage"]["total_tokens"] == 330
    assert entry["cost"] == pytest.approx((120 + 1200) * 1e-6)
    assert [row["expert"] for row in entry["panel"]] == ["small", "large", "wrong"]


def test_a_cost_without_its_prices_is_null_and_no_guess() -> None:
    solution = solved(told("small", "y"), told("large", "y"), answer="y")
    assert entry_of(solution)["cost"] is None
    assert entry_of(solution, prices={"small": PRICES["small"]})["cost"] is None


def test_who_merged_the_drafts_costs_too() -> None:
    solution = solved(told("small", "x"), answer="x", aggregation="So: x", merging=(200, 20))
    assert entry_of(solution, prices=PRICES)["cost"] is None  # the run does not say who it was
    entry = entry_of(solution, prices=PRICES, aggregator="large")
    assert entry["cost"] == pytest.approx((120 + 2400) * 1e-6)
    assert entry["generated_result"]["token_usage"]["total_tokens"] == 330


def test_an_answer_of_the_merging_model_alone_is_its_own() -> None:
    solution = solved(told("small", "x"), told("large", "y"), answer="z", aggregation="Both: z")
    entry = entry_of(solution, aggregator="judge")
    assert entry["prediction"] == "judge"
    assert entry["generated_result"]["generated_answer"] == "Both: z"
    assert Submission(router="r", solutions=[solution], aggregator="judge").config()[
        "pipeline_params"
    ]["models"] == ["judge", "large", "small"]


def test_a_question_that_nobody_answered_has_failed() -> None:
    lost = {"error": "out of memory", "text": "", "prompt_tokens": 0, "completion_tokens": 0}
    solution = solved(told("small", None, **lost), answer=None)
    entry = entry_of(solution, prices=PRICES)
    assert entry["prediction"] == "small"
    result = entry["generated_result"]
    assert (result["success"], result["generated_answer"]) == (False, "")
    assert result["error"] == "out of memory"
    assert entry["cost"] == 0


def test_a_panel_that_abstains_is_wrong_and_not_left_out() -> None:
    solution = solved(told("small", "x"), answer=None, abstained=True)
    result = entry_of(solution)["generated_result"]
    assert result["success"] is True
    assert "abstained" in result["generated_answer"]


def test_a_known_kind_of_answer_is_boxed_once() -> None:
    choice = Question(id="c", text="?", options=("red", "blue"), kind="choice")
    scored = told("small", "B", text="log-probability of each option: A -2, B -1")
    answer = entry_of(solved(scored, answer="B", question=choice))["generated_result"]
    assert answer["generated_answer"].endswith("B -1\n\n\\boxed{B}")
    boxed = told("small", "B", text="It is \\boxed{B}.")
    answer = entry_of(solved(boxed, answer="B", question=choice))["generated_result"]
    assert answer["generated_answer"] == "It is \\boxed{B}."


def test_a_query_without_recruits_is_refused() -> None:
    with pytest.raises(InputError, match="nobody was recruited"):
        entry_of(solved(answer=None))


def test_a_spokesman_without_an_answer_is_the_strongest_that_replied() -> None:
    failed = told("large", None, error="gone", weight=0.9)
    quiet = solved(failed, told("small", None, weight=0.2), answer=None)
    spokesman = choose_spokesman(quiet)
    assert spokesman is not None
    assert spokesman["expert"] == "small"
    assert speak(quiet, "text") == "small says None"
    assert speak(quiet, "answer") == ""
    assert find_loss(quiet) is None
    assert find_loss(solved(failed, answer=None)) == "gone"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RouterArena's prompts, and a finished run over them."""
    monkeypatch.chdir(tmp_path)
    Path("router_data.json").write_text(json.dumps(PROMPTS))
    rows: list[dict[str, str]] = []
    for name, line in (("small", "Answer: x"), ("large", "Answer: y")):
        Path(f"{name}.json").write_text(json.dumps({"*": line}))
        rows.append({"alias": name, "engine": "scripted", "script": f"{name}.json"})
    Path("pool.yaml").write_text(json.dumps({"experts": rows}))
    solve_into(
        Path("run"), QUESTIONS, Catalog.load("pool.yaml"), PanelSettings(k=1), lambda _: None
    )
    return tmp_path


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_the_command_writes_files_as_they_lie_in_routerarena(place: Path) -> None:
    prices = ("--price", "small=1/2", "--price", "large=10/20")
    result = run_command(
        "run", "router_data.json", *prices, "--out", "out", "--router", "mix", "--json"
    )
    assert result.exit_code == 0
    told = json.loads(result.output)
    assert (told["queries"], told["failed"], told["without_cost"]) == (3, 0, 0)
    assert told["usd"] > 0
    inference = place / "out" / "router_inference"
    predictions = json.loads((inference / "predictions" / "mix.json").read_text())
    assert [entry["global index"] for entry in predictions] == [q.id for q in QUESTIONS]
    assert [entry["prompt"] for entry in predictions] == [q.text for q in QUESTIONS]
    config = json.loads((inference / "config" / "mix.json").read_text())["pipeline_params"]
    assert config["router_name"] == "mix"
    assert {entry["prediction"] for entry in predictions} <= set(config["models"])
    costs = json.loads((place / "out" / "model_cost" / "mix-to-add.json").read_text())
    assert costs.keys() == set(config["models"])
    assert sum(entry["cost"] for entry in predictions) == pytest.approx(told["usd"])


def test_the_robustness_split_is_predictions_alone(place: Path) -> None:
    result = run_command("run", "router_data.json", "--out", "out", "--robustness")
    assert result.exit_code == 0
    assert "3 have no cost: give --price for every expert" in " ".join(result.output.split())
    files = [path.name for path in (place / "out").rglob("*") if path.is_file()]
    assert files == ["expertmix-robustness.json"]


def test_names_at_routerarena_are_given_to_aliases(place: Path) -> None:
    names = ("--model", "small=org/a", "--model", "large=org/b")
    assert run_command("run", "router_data.json", *names, "--out", "out").exit_code == 0
    path = place / "out" / "router_inference" / "predictions" / "expertmix.json"
    assert {entry["prediction"] for entry in json.loads(path.read_text())} <= {"org/a", "org/b"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "router_data.json"), "nowhere holds no run"),
        (("run", "other.jsonl"), "answers other questions"),
        (("run", "router_data.json", "--limit", "2"), "the same --limit"),
        (("run", "pool.yaml.json"), "cannot be read"),
        (("run", "small.json"), "no list of prompts"),
        (("run", "bad.json"), 'entry 1: no "prompt_formatted" and "global index"'),
        (("run", "router_data.json", "--price", "small"), "--price takes ALIAS=VALUE"),
        (("run", "router_data.json", "--price", "small=cheap"), "ALIAS=IN/OUT"),
        (("run", "router_data.json", "--price", "small=-1/2"), "not negative"),
        (("run", "router_data.json", "--router", "../up"), "cannot be a router's name"),
        (("run", "router_data.json", "--router", "two words"), "cannot be a router's name"),
    ],
)
def test_what_a_person_can_correct_is_one_sentence(
    place: Path, arguments: tuple[str, ...], words: str
) -> None:
    Path("other.jsonl").write_text('{"text": "Another question?"}\n')
    Path("bad.json").write_text("[{}]")
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        run_command(*arguments)


def test_an_interrupted_run_is_not_exported(place: Path) -> None:
    answers = place / "run" / "answers.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(InputError, match=r"no answer to 1 of 3 questions \(MMLU_2"):
        read_run(place / "run", QUESTIONS)
    answers.write_text("{half a li")
    with pytest.raises(InputError, match="run `expertmix solve` again"):
        read_run(place / "run", QUESTIONS)


def test_questions_of_ours_are_read_as_everywhere(place: Path) -> None:
    file = place / "ours.jsonl"
    file.write_text("".join(json.dumps(question.to_json()) + "\n" for question in QUESTIONS))
    assert read_prompts(file) == QUESTIONS == read_prompts(place / "router_data.json")
    assert read_prompts(place / "router_data.json", limit=1) == QUESTIONS[:1]
