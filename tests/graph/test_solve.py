"""The plain-Python face, in scripts and under a running loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents import Catalog, Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import Result, asolve, make_resources, solve, solve_many, wilson_interval
from expertmix.retrieval import InputError, Question

SUM = {"id": "sum", "text": "What is 1 + 1?", "gold": "2"}


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    for name, line in (("one", "Answer: 2"), ("two", "Answer: 2.0"), ("three", "Answer: 3")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"*": line}))
    path = tmp_path / "pool.yaml"
    path.write_text(
        "experts:\n"
        + "".join(
            f"  - {{alias: {n}, engine: scripted, script: {n}.json}}\n"
            for n in ("one", "two", "three")
        )
    )
    return path


def test_one_text_is_one_question(pool_file: Path) -> None:
    result = solve("What is 1 + 1?", str(pool_file))
    assert len(result) == 1
    assert result[0].question.text == "What is 1 + 1?"
    assert result[0].answer in ("2", "2.0", "3")
    assert result.score is None


def test_equal_numbers_agree_however_they_are_written(pool_file: Path) -> None:
    result = solve(SUM, pool_file)
    assert result[0].confidence == pytest.approx(2 / 3)
    assert result.score is not None
    assert (result.score.right, result.score.total) == (1, 1)


async def test_solve_works_where_a_loop_runs_already(pool_file: Path) -> None:
    assert solve(SUM, pool_file)[0].correct is True
    assert (await asolve(SUM, pool_file))[0].correct is True


def test_each_solution_says_who_was_recruited_and_why(pool_file: Path) -> None:
    row = solve(SUM, pool_file, k=2, seed=3)[0].row
    assert len(row["experts"]) == 2
    assert all("seed 3" in expert["reason"] for expert in row["experts"])
    assert row["usage"]["completion_tokens"] > 0


def test_more_samples_are_more_votes(pool_file: Path) -> None:
    result = solve(SUM, pool_file, k=1, samples=3)
    assert [row["sample"] for row in result[0].experts] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"questions": []}, "no questions"),
        ({"questions": [{"id": "x"}]}, 'question 1: it has no "text"'),
        ({"questions": [SUM, SUM]}, 'two questions have the id "sum"'),
        ({"questions": "x", "k": 4}, "k is 4, but there are 3 experts"),
        ({"questions": "x", "k": 0}, "k is 0"),
        ({"questions": "x", "aggregator": "judge"}, 'no expert named "judge"'),
        ({"questions": "x", "policy": "best"}, 'unknown policy "best"'),
        ({"questions": "x", "profile": "nowhere"}, "no profile at nowhere"),
    ],
)
def test_bad_settings_get_one_sentence(
    pool_file: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        solve(arguments.pop("questions"), pool_file, **arguments)


async def test_windows_give_what_one_batch_gives() -> None:
    batch = [Question(id=str(i), text=f"{i}?", gold=str(i), kind="number") for i in range(7)]
    engines = {"a": ScriptedEngine("a", lambda r: f"Answer: {r.question_id}")}
    async with Pool.from_engines(engines) as pool:
        windows = [w async for w in solve_many(batch, make_resources(pool), window=3)]
        whole = await asolve(batch, pool)
    assert [len(window) for window in windows] == [3, 3, 1]
    assert [s.answer for window in windows for s in window] == [s.answer for s in whole]
    assert whole.score is not None
    assert whole.score.right == 7


def test_a_result_escapes_what_models_say() -> None:
    row: dict[str, Any] = {
        "answer": "<script>alert(1)</script>",
        "confidence": 1.0,
        "skills": [],
        "experts": [
            {"expert": "a", "answer": "<b>", "error": None, "reason": "<i>", "weight": 0.5}
        ],
    }
    from expertmix.graph import Solution

    question = Question(id="x", text="<img src=x onerror=alert(1)>")
    page = Result([Solution(question=question, row=row)], {})._repr_html_()  # pyright: ignore[reportPrivateUsage]
    for tag in ("<script", "<img", "<b><", "<i>"):
        assert tag not in page
    assert "&lt;script&gt;" in page
    half = Question(id="x", text="half a pair \ud800 " + "long " * 200)
    Result([Solution(question=half, row=row)], {})._repr_html_().encode()  # pyright: ignore[reportPrivateUsage]


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)


async def test_a_closed_vocabulary_makes_skills(pool_file: Path) -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding

    from expertmix.agents import EmbeddingSkills

    _ = Catalog.load(pool_file)
    encoder = DeterministicFakeEmbedding(size=16)
    extractor = EmbeddingSkills(encoder, {"sums": "adding numbers"}, floor=-1.0)
    result = await asolve(SUM, pool_file, extractor=extractor)
    assert result[0].skills == {"sums": 1.0}
