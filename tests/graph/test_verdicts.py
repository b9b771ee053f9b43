"""What the sentences say, and that they say no more than the figures."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from expertmix.graph.matching import Pair
from expertmix.graph.significance import Difference
from expertmix.graph.verdicts import count, tell_findings

Verdict = Literal["better", "worse", "no significant difference"]
LEVEL: Verdict = "no significant difference"


def row(
    label: str, accuracy: float = 0.5, verdict: Verdict | None = LEVEL, **more: Any
) -> dict[str, Any]:
    """A row as `Comparison.rows`; its difference is to a strongest expert that is right on half of them."""
    method, calls = label.split("@")
    gain = accuracy - 0.5
    delta = {"mean": gain, "low": gain - 0.05, "high": gain + 0.05}
    told = {"label": label, "method": method, "calls": int(calls), "calls_mean": float(calls)}
    told |= {"accuracy": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.04, "n": 500}
    told |= {"tokens_mean": 10.0 * int(calls), "failed": 0.0, "is_bound": False}
    return {**told, "delta": delta, "verdict": verdict, **more}


SINGLE = row("single_best@1", delta=None, verdict=None)
CHANCE = row("chance@0", 0.25, delta=None, verdict=None, is_bound=True)
ORACLE = row("oracle@5", 0.9, delta=None, verdict=None, is_bound=True)


def pair(
    other: str,
    verdict: Verdict = LEVEL,
    gain: float = 0.0,
    *,
    ours: str = "panel@3",
    by: Literal["calls", "tokens"] = "calls",
    at: float = 3,
    dearer: float | None = None,
) -> Pair:
    """Ours against another method."""
    found = Difference(
        mean=gain if verdict == LEVEL else abs(gain) * (1 if verdict == "better" else -1),
        low=0,
        high=0,
        p=1.0 if verdict == LEVEL else 0.001,
        p_holm=1.0 if verdict == LEVEL else 0.001,
        wins=0 if verdict == "worse" else 9,
        losses=9 if verdict == "worse" else 0,
    )
    assert found.verdict == verdict
    return Pair(
        by=by,
        at=at,
        ours=ours,
        other=other,
        calls_ratio=1,
        tokens_ratio=dearer or 1,
        is_dearer=dearer is not None,
        difference=found,
    )


def tell(
    *rows: dict[str, Any],
    pairs: tuple[Pair, ...] = (),
    skipped: dict[str, str] | None = None,
    remarks: tuple[str, ...] = (),
) -> list[str]:
    return tell_findings(
        [SINGLE, *rows, CHANCE], pairs, skipped=skipped or {}, remarks=list(remarks)
    )


STRONGEST = "The strongest expert alone is right on 50.0 % of 500 questions [46.0 %, 54.0 %]."


def test_nothing_beats_the_strongest_expert() -> None:
    first, *_ = tell(row("majority@3", 0.48), row("debate@6", 0.5), row("knn_router@1", 0.6))
    assert first == (
        f"{STRONGEST} Mixing does not help here: none of 2 ways to make several calls is right more often."
    )


def test_a_gain_that_may_be_noise_is_told_as_that() -> None:
    first, *_ = tell(row("majority@3", 0.51), row("debate@6", 0.53))
    assert first == (
        f"{STRONGEST} Mixing does not help significantly here: of 2 ways to make several calls, the best is "
        "debate@6, right on 53.0 % of 500 questions [49.0 %, 57.0 %], +3.0 [-2.0, +8.0] points."
    )


def test_what_beats_the_strongest_expert_is_counted_and_the_best_is_named() -> None:
    rows = row("majority@3", 0.6, "better"), row("debate@6", 0.7, "better"), row("panel@3", 0.71)
    first, *_ = tell(*rows)
    assert first == (
        f"{STRONGEST} Of 3 ways to make several calls, 2 are significantly better; the best: debate@6, right on "
        "70.0 % of 500 questions [66.0 %, 74.0 %], +20.0 [+15.0, +25.0] points."
    )
    first, *_ = tell(rows[0], row("panel@3", 0.4))
    assert "Of 2 ways to make several calls, 1 is significantly better; the best: maj" in first


def test_one_way_to_mix_is_told_in_the_singular() -> None:
    assert tell(row("panel@3", 0.6, "better"))[0].startswith(
        f"{STRONGEST} Mixing helps: panel@3, right on 60.0 % of"
    )
    assert tell(row("panel@3", 0.52))[0].startswith(
        f"{STRONGEST} Mixing does not help significantly here: panel@3, right on 52.0 % of"
    )
    assert tell(row("panel@3", 0.4, "worse"))[0] == (
        f"{STRONGEST} Mixing does not help here: panel@3 is not right more often."
    )


def test_who_is_worse_than_one_call_is_named_always() -> None:
    worse = [row(f"debate@{calls}", 0.3, "worse") for calls in range(2, 12)]
    told = tell(row("knn_router@1", 0.3, "worse"), *worse)
    assert told[1].startswith("Significantly worse than the strongest expert alone: knn_router@1,")
    assert all(str(bad["label"]) in told[1] for bad in worse)


def test_a_router_that_beats_the_strongest_mixes_nothing_and_is_told() -> None:
    told = tell(row("knn_router@1", 0.6, "better"), row("panel@1", 0.6, "better"))
    assert told[0] == STRONGEST, "nobody makes several calls"
    assert told[1] == "Significantly better with a single call: knn_router@1 and panel@1."


def test_ours_is_better_worse_and_level() -> None:
    family = (
        pair("debate@3", "better", 0.051),
        pair("majority@3", "worse", 0.02),
        pair("self_moa@3", LEVEL, 0.01),
        pair("single_best@1", "better", 0.104),
    )
    assert tell(row("panel@3"), pairs=family)[1] == (
        "With at most 3 calls per question, panel@3 is significantly better than single_best@1 (+10.4 points) and "
        "debate@3 (+5.1 points); it is significantly worse than majority@3 (-2.0 points); it does not differ "
        "significantly from self_moa@3."
    )


def test_ours_is_level_with_all() -> None:
    level = [pair(f"m{at}@3") for at in range(7)]
    others = [pair(f"m{at}@3", ours="adaptive@3") for at in range(7)]
    assert tell(row("panel@3"), pairs=(*level, *others))[1] == (
        "With at most 3 calls per question, panel@3 and adaptive@3 do not differ significantly from any other method."
    )
    tokens = [
        pair(f"t{at}@3", ours=f"panel@{at % 2}", by="tokens", at=30 + at % 2) for at in range(4)
    ]
    assert tell(row("panel@3"), pairs=tuple(tokens))[1] == (
        "At about equal tokens, panel@0 and panel@1 do not differ significantly from any other method."
    )
    assert tell(row("panel@3"), pairs=(level[0],))[1].endswith("significantly from m0@3.")
    some = (*level, pair("m8@3", "better", 0.1))
    assert tell(row("panel@3"), pairs=some)[1].endswith(
        "(+10.0 points); it does not differ significantly from the other 7."
    )


def test_long_lists_are_cut_but_whoever_beats_ours_is_named() -> None:
    better = [pair(f"b{at}@3", "better", (9 - at) / 100) for at in range(9)]
    worse = [pair(f"w{at}@3", "worse", 0.05) for at in range(9)]
    told = tell(row("panel@3"), pairs=(*better, *worse))[1]
    assert "b0@3 (+9.0 points), b1@3 (+8.0 points), b2@3 (+7.0 points), b3@3 (+6.0" in told
    assert "b4@3" not in told
    assert "and 5 others;" in told
    assert all(bad.other in told for bad in worse)


def test_at_equal_tokens_who_is_dearer_is_told() -> None:
    pairs = (
        pair("debate@6", "worse", 0.08, by="tokens", at=41.6, dearer=2.06),
        pair("majority@3", "better", 0.09, by="tokens", at=41.6),
    )
    assert tell(row("panel@3"), pairs=pairs)[1] == (
        "At about 42 generated tokens per question, panel@3 is significantly better than majority@3 (+9.0 points); it is "
        "significantly worse than debate@6 (-8.0 points, at 2.1 times the tokens)."
    )


def test_equal_tokens_that_repeat_equal_calls_are_told_once() -> None:
    by_calls = pair("majority@3", "better", 0.1), pair("debate@3")
    by_tokens = (
        pair("majority@3", "better", 0.1, by="tokens", at=30),
        pair("debate@3", by="tokens", at=30),
    )
    told = tell(row("panel@3"), pairs=(*by_calls, *by_tokens))
    assert sum("panel@3" in line and "per question, panel@3" in line for line in told) == 1
    other = (by_tokens[0], pair("debate@4", by="tokens", at=30))
    assert any(
        line.startswith("At about 30") for line in tell(row("panel@3"), pairs=(*by_calls, *other))
    )


def test_bounds_and_the_highest_accuracy() -> None:
    told = tell_findings(
        [SINGLE, row("panel@6", 0.6), row("majority@3", 0.6), ORACLE, CHANCE], [], skipped={}
    )
    assert (
        "The highest accuracy is that of majority@3: 60.0 % of 500 questions [56.0 %, 64.0 %]; blind guessing would "
        "be right on 25.0 %, whoever picked a right expert wherever there is one, on 90.0 %."
        in told
    ), "of two with the same, the cheaper"
    assert not any("wherever" in line for line in tell(row("panel@6", 0.6)))


def test_costs_are_told_where_they_differ() -> None:
    dear = row("debate@6", tokens_mean=95.0)
    assert "panel@3 generates 30 tokens per question, debate@6 3.2 times as many." in tell(
        row("panel@3"), dear
    )
    for rows in ([row("panel@3", tokens_mean=94.0), dear], [row("panel@3", tokens_mean=0.0), dear]):
        assert not any("times as many" in line for line in tell(*rows))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "With 1 question, hardly any difference can be told from chance."),
        (9, "With 9 questions, hardly any difference can be told from chance."),
        (100, "With 100 questions, only differences of about 16 points or more are likely to be "),
        (399, "With 399 questions, only differences of about 8 points or more are likely to be "),
        (400, None),
    ],
)
def test_few_questions_are_told(number: int, words: str | None) -> None:
    told = tell_findings([{**SINGLE, "n": number}, {**CHANCE, "n": number}], [], skipped={})
    about = [line for line in told if line.startswith("With ")]
    assert (about == []) if words is None else about[0].startswith(words)
    assert not any("1 questions" in line for line in told)


def test_failures_are_told_with_where_they_are_most() -> None:
    told = tell(row("panel@3", failed=0.02), row("debate@6", failed=0.25), row("majority@3"))
    assert (
        "Experts failed: debate@6 lacks answers on 25.0 % of its questions, others on some. Another run asks again, "
        "unless the prompt was too long." in told
    )
    told = tell(row("panel@3", failed=0.02))
    assert any(line.startswith("Experts failed: panel@3 lacks") for line in told)
    assert not any("others on" in line for line in told)
    assert not any("failed" in line for line in tell(row("panel@3")))


def test_what_was_not_run_is_told_by_reason_and_remarks_come_last() -> None:
    skipped = {"debate": "asks more", "self_moa": "asks more", "adaptive": "has no form for that"}
    told = tell(row("panel@3"), skipped=skipped, remarks=("By the way.",))
    assert told[-3:] == [
        "Not run: debate and self_moa; each asks more.",
        "Not run: adaptive; it has no form for that.",
        "By the way.",
    ]


def test_without_any_method_there_is_little_to_tell() -> None:
    assert tell_findings([ORACLE, CHANCE], [], skipped={"a": "is not here"}, remarks=["So."]) == [
        "Not run: a; it is not here.",
        "So.",
    ]
    told = tell_findings([row("panel@3", delta=None, verdict=None), CHANCE], [], skipped={})
    assert told[0].startswith("The highest accuracy is that of panel@3")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 calls"),
        (1, "1 call"),
        (1.2, "1 call"),
        (2, "2 calls"),
        (0.4, "0 calls"),
        (12000, "12,000 calls"),
    ],
)
def test_counted_things(number: float, words: str) -> None:
    assert count(number, "call") == words
