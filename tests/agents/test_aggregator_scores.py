"""Who is chosen, how sure one may be, and whom the scores refuse to speak for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import Catalog, Pool
from expertmix.agents.aggregator_scores import AggregatorScore, AggregatorScores
from expertmix.agents.drafts import aggregation_prompt_hash
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.retrieval import InputError


def score(right: float, total: float, **rest: Any) -> AggregatorScore:
    told: dict[str, Any] = {"identity": "i", "chance": 1 / 3, "calls": round(total), **rest}
    return AggregatorScore(right=right, total=total, **told)


def scores(**candidates: AggregatorScore) -> AggregatorScores:
    return AggregatorScores(
        cases="c",
        prompts=aggregation_prompt_hash(),
        seed=1,
        samples=2,
        number=40,
        chance=1 / 3,
        vote=0.2,
        dropped={"no right draft": 3},
        candidates=candidates,
    )


LAWYER = score(20, 40, skills={"law": (18, 20), "algebra": (2, 20)})
COUNTER = score(22, 40, skills={"law": (4, 20), "algebra": (18, 20)})


def test_the_best_at_the_skills_is_chosen_else_the_best_of_the_task() -> None:
    both = scores(counter=COUNTER, lawyer=LAWYER)
    assert both.choose() == "counter"
    assert both.choose({}) == "counter"
    assert both.choose({"law": 1.0}) == "lawyer"
    assert both.choose({"algebra": 0.9, "law": 0.1}) == "counter"
    assert both.choose({"cooking": 1.0}) == "counter", "an unknown skill says nothing"


def test_ties_go_to_the_first_of_the_alphabet() -> None:
    same = {"b": score(5, 9), "a": score(5, 9), "c": score(5, 9)}
    assert scores(**same).choose() == "a"
    assert scores(**dict(reversed(same.items()))).choose({"x": 0.5}) == "a"


def test_a_lucky_few_do_not_beat_a_proven_many() -> None:
    lucky = score(2, 2, calls=40, failed=38)
    assert scores(lucky=lucky, proven=score(30, 40)).choose() == "proven"
    thin = score(20, 40, skills={"law": (1, 1)})
    assert scores(thin=thin, lawyer=LAWYER).choose({"law": 1.0}) == "lawyer"


def test_who_fits_no_prompt_is_not_chosen_even_among_the_bad() -> None:
    tight = score(0, 40, too_long=40)
    assert scores(a_tight=tight, bad=score(0, 40)).choose() == "bad"
    with pytest.raises(InputError, match='"a_tight": the prompt'):
        scores(a_tight=replace(tight, reason="the prompt has 9 tokens")).choose()
    with pytest.raises(InputError, match="there are none"):
        scores().choose()


@given(
    st.floats(0, 1),
    st.integers(0, 200),
    st.floats(0, 1),
    st.floats(0, 50),
)
def test_estimates_lie_between_what_was_seen_and_what_was_expected(
    share: float, total: int, skill_share: float, seen: float
) -> None:
    one = score(share * total, total, skills={"law": (skill_share * seen, seen)})
    ends = sorted((1 / 3, share if total else 1 / 3))
    assert ends[0] - 1e-9 <= one.overall <= ends[1] + 1e-9
    ends = sorted((one.overall, skill_share if seen else one.overall))
    assert ends[0] - 1e-9 <= one.estimate("law") <= ends[1] + 1e-9
    assert one.weigh({"law": 1.0}) == pytest.approx(one.estimate("law"))
    assert one.weigh({"unknown": 1.0}) == pytest.approx(one.overall)


def test_intervals_narrow_with_cases_and_hold_the_estimate() -> None:
    few, many = score(3, 6).interval(), score(300, 600).interval()
    assert many[1] - many[0] < few[1] - few[0]
    low, high = LAWYER.interval("law")
    assert low < LAWYER.estimate("law") < high
    unknown = score(30, 600).interval("cooking")
    assert unknown[0] < score(30, 600).overall < unknown[1]


def test_scores_come_back_from_a_profile_folder(tmp_path: Path) -> None:
    told = scores(lawyer=LAWYER, gone=score(0, 0, calls=4, failed=4, reason="no weights"))
    path = told.save(tmp_path / "profile")
    assert path.name == "aggregators.json"
    assert [found.name for found in path.parent.iterdir()] == ["aggregators.json"]
    assert AggregatorScores.load(path) == AggregatorScores.load(path.parent) == told
    assert AggregatorScores.from_json(told.to_json()) == told


def test_a_folder_without_scores_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make them with `expertmix aggregators`"):
        AggregatorScores.load(tmp_path)


def _without(key: str) -> dict[str, Any]:
    return {k: v for k, v in scores(a=LAWYER).to_json().items() if k != key}


def _changed(**rest: Any) -> dict[str, Any]:
    content = scores(a=LAWYER).to_json()
    content["candidates"]["a"].update(rest)
    return content


@pytest.mark.parametrize(
    "content",
    [
        "",
        [],
        "abc",
        {},
        {"format": 99},
        _without("candidates"),
        _without("chance"),
        {**_without(""), "more": 1},
        {**_without(""), "candidates": []},
        _changed(right=41),
        _changed(right=-1),
        _changed(total=math.nan),
        _changed(total="many"),
        _changed(skills={"law": [1]}),
        _changed(calls="4"),
        _changed(more=1),
    ],
)
def test_what_is_no_scores_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "aggregators.json"
    path.write_text(json.dumps(content) if content != "" else "")
    with pytest.raises(InputError, match=r"aggregators\.json"):
        AggregatorScores.load(path)


def engine() -> ScriptedEngine:
    return ScriptedEngine("e", {"*": "?"})


def pool_of(persona: str | None = None) -> Pool:
    expert = {"alias": "e", "engine": "given"} | ({"persona": persona} if persona else {})
    return Pool(Catalog.from_dict({"experts": [expert]}), engines={"e": engine()})


def test_scores_refuse_experts_they_were_not_made_for() -> None:
    mine = scores(e=score(3, 4, identity=pool_of().identity("e")))
    mine.check(pool_of())
    mine.check(pool_of(), ["e"])
    with pytest.raises(InputError, match='"e" is not the one that was benchmarked'):
        mine.check(pool_of("Someone else."))
    with pytest.raises(InputError, match='"x" was not benchmarked as an aggregator, only e'):
        mine.check(pool_of(), ["x"])
    with pytest.raises(InputError, match='"e" is not in the pool, which has x'):
        mine.check(Pool.from_engines({"x": engine()}))


def test_unusable_candidates_need_not_be_there_any_more() -> None:
    dead = score(0, 0, calls=4, failed=4)
    scores(e=score(3, 4, identity=pool_of().identity("e")), dead=dead).check(pool_of())


def test_scores_refuse_another_prompt() -> None:
    old = replace(scores(e=score(3, 4)), prompts="other")
    with pytest.raises(InputError, match="another prompt"):
        old.check(pool_of())
