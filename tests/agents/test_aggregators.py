"""The benchmark asks as the graph asks, counts what is right, and never counts what failed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from expertmix.agents import Answer, AnswerStore, Catalog, Pool, build_aggregation
from expertmix.agents.aggregator_cases import Cases, build_cases
from expertmix.agents.aggregator_scores import AggregatorScores
from expertmix.agents.aggregators import benchmark_aggregators
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.agents.outcomes import SkillWeights
from expertmix.retrieval import InputError, Question

OPTIONS = ("north", "east", "south", "west")
QUESTIONS = [
    Question(
        id=f"q{at}", text=f"Where is {at}?", options=OPTIONS, gold="ABCD"[at % 4], kind="choice"
    )
    for at in range(12)
]
SKILLS: dict[str, SkillWeights] = {
    question.id: {"algebra": 0.75} if at < 8 else {"law": 0.5}
    for at, question in enumerate(QUESTIONS)
}


def make_cases(seed: int = 0) -> Cases:
    """For even numbers both wrong drafts agree, for odd ones all three differ."""
    answers = [
        Answer(
            question_id=question.id, expert=f"m{place}", answer=letter, text=f"I say ({letter})."
        )
        for at, question in enumerate(QUESTIONS)
        for place, letter in enumerate(_say(at, question.gold or ""))
    ]
    return build_cases(QUESTIONS, answers, seed=seed)


def _say(at: int, gold: str) -> list[str]:
    wrong = [letter for letter in "ABCD" if letter != gold]
    return [gold, wrong[0], wrong[0] if at % 2 == 0 else wrong[1]]


def read_drafts(request: Request) -> list[str]:
    """The letters that the prompt's drafts name, in the prompt's order."""
    return re.findall(r"I say \((\w)\)", request.messages[-1]["content"])


def pick_most_common(request: Request) -> str:
    letters = read_drafts(request)
    return f"Answer: ({max(letters, key=letters.count)})"


def know(*, but: tuple[str, ...] = ()) -> Callable[[Request], str]:
    gold = {question.id: question.gold for question in QUESTIONS}
    return lambda request: (
        "Hm." if request.question_id in but else f"Answer: ({gold[request.question_id or '']})"
    )


def run(
    engines: dict[str, ScriptedEngine], store: AnswerStore | None = None, samples: int = 1
) -> AggregatorScores:
    async def measure() -> AggregatorScores:
        async with Pool.from_engines(engines, store=store) as pool:
            return await benchmark_aggregators(
                pool, list(engines), make_cases(), SKILLS, seed=3, samples=samples
            )

    return asyncio.run(measure())


def test_candidates_are_asked_with_the_prompt_of_deployment() -> None:
    engine = ScriptedEngine("e", know())
    run({"e": engine})
    cases = {case.question.id: case for case in make_cases().cases}
    assert len(engine.requests) == 12
    for request in engine.requests:
        case = cases[request.question_id or ""]
        sampling = request.sampling
        asked = build_aggregation(case.question, case.drafts, sampling=sampling, seed=3)
        assert request.messages == asked.messages
        assert sampling.seed == asked.sampling.seed
        assert len(read_drafts(request)) == 3
        assert not re.search(r"\bm[012]\b", request.messages[-1]["content"])


def test_right_answers_count_over_the_task_and_by_skill() -> None:
    scores = run({"knower": ScriptedEngine("k", know(but=("q0", "q8", "q9")))})
    score = scores.candidates["knower"]
    assert (score.right, score.total, score.unreadable, score.calls) == (9, 12, 3, 12)
    assert score.skills["algebra"] == pytest.approx((7 * 0.75, 8 * 0.75))
    assert score.skills["law"] == pytest.approx((2 * 0.5, 4 * 0.5))
    assert score.overall == pytest.approx((9 + 5 / 3) / 17)
    assert score.estimate("law") == pytest.approx((1 + 20 * score.overall) / 22)
    assert scores.chance == pytest.approx(1 / 3)
    assert scores.vote == pytest.approx(6 / 12 / 3)
    low, high = score.interval()
    assert low < score.overall < high


def test_following_the_crowd_is_told() -> None:
    scores = run(
        {"sheep": ScriptedEngine("s", pick_most_common), "ada": ScriptedEngine("a", know())}
    )
    sheep, ada = scores.candidates["sheep"], scores.candidates["ada"]
    assert (sheep.crowded, sheep.followed) == (6, 6)
    assert (ada.crowded, ada.followed) == (6, 0)
    assert sheep.right <= 6
    assert scores.choose() == "ada"


def test_a_failed_call_is_no_wrong_answer() -> None:
    broken = ScriptedEngine("b", know(), faults=Faults(fail_ids={"q1", "q2"}))
    score = run({"b": broken}).candidates["b"]
    assert (score.right, score.total, score.failed, score.calls) == (10, 10, 2, 12)
    assert "told to fail" in score.reason


def test_a_prompt_that_does_not_fit_is_wrong_since_it_will_not_fit_later() -> None:
    score = run({"tiny": ScriptedEngine("t", know(), context_length=5)}).candidates["tiny"]
    assert (score.right, score.total, score.too_long, score.failed) == (0, 12, 12, 0)
    assert not score.usable


def test_who_always_fails_is_reported_and_never_chosen() -> None:
    dead = ScriptedEngine("d", know(), faults=Faults(load="its file is broken"))
    scores = run({"a-dead": dead, "wrong": ScriptedEngine("w", {"*": "Hm."})})
    assert scores.candidates["a-dead"].failed == 12
    assert "its file is broken" in scores.candidates["a-dead"].reason
    assert scores.choose({"law": 1.0}) == "wrong"
    only = run({"a-dead": ScriptedEngine("d", know(), faults=Faults(load="its file is broken"))})
    with pytest.raises(InputError, match=r"no candidate can merge drafts .*file is broken"):
        only.choose()


def test_weights_that_are_not_there_are_reported(tmp_path: Path) -> None:
    experts = [
        {"alias": "gone", "engine": "scripted", "script": "script.json"},
        {"alias": "here", "engine": "given"},
    ]
    (tmp_path / "script.json").write_text("{}")
    catalog = Catalog.from_dict({"experts": experts}, base=tmp_path)
    (tmp_path / "script.json").unlink()

    async def measure() -> AggregatorScores:
        async with Pool(catalog, engines={"here": ScriptedEngine("h", know())}) as pool:
            return await benchmark_aggregators(pool, ["gone", "here"], make_cases(), {}, seed=0)

    scores = asyncio.run(measure())
    gone = scores.candidates["gone"]
    assert (gone.calls, gone.failed, gone.identity) == (12, 12, "")
    assert "script.json" in gone.reason
    assert scores.choose() == "here"


def test_samples_are_drawn_anew_and_a_case_still_counts_once() -> None:
    engine = ScriptedEngine("e", pick_most_common)
    score = run({"e": engine}, samples=4).candidates["e"]
    assert (score.calls, score.total, score.crowded) == (48, 12, 24)
    seeds = {request.sampling.seed for request in engine.requests}
    orders = {tuple(read_drafts(r)) for r in engine.requests if r.question_id == "q1"}
    assert len(seeds) == 48
    assert len(orders) > 1


def test_neither_batch_nor_order_changes_a_score() -> None:
    one = run({"a": ScriptedEngine("a", pick_most_common), "b": ScriptedEngine("b", know())})
    two = run({"b": ScriptedEngine("b", know()), "a": ScriptedEngine("a", pick_most_common)})
    assert one.to_json() == two.to_json()


def test_nothing_is_asked_twice_with_a_store(tmp_path: Path) -> None:
    first, again = ScriptedEngine("e", know()), ScriptedEngine("e", know())
    one = run({"e": first}, AnswerStore(tmp_path / "r.sqlite"))
    two = run({"e": again}, AnswerStore(tmp_path / "r.sqlite"))
    assert (first.calls, again.calls) == (1, 0)
    assert one == two


async def test_bad_input_is_told() -> None:
    async with Pool.from_engines({"e": ScriptedEngine("e", know())}) as pool:
        with pytest.raises(InputError, match="x"):
            await benchmark_aggregators(pool, ["x"], make_cases(), {}, seed=0)
        with pytest.raises(InputError, match="samples is 0"):
            await benchmark_aggregators(pool, ["e"], make_cases(), {}, seed=0, samples=0)
        empty = build_cases(QUESTIONS, [], seed=0)
        with pytest.raises(InputError, match="12 with no right draft"):
            await benchmark_aggregators(pool, ["e"], empty, {}, seed=0)
