"""A small comparison with everything in it, for every test of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from expertmix.agents import ExpertRecord, Outcome, Profile, Reference, Timeline
from expertmix.agents.pool.timeline import Span
from expertmix.apps.report import ReportContent
from expertmix.graph import Solution
from expertmix.retrieval import Question

Answers = Mapping[str, str | None]
Solve = Callable[..., Solution]


def solve_question(
    question: Question, answers: Answers, answer: str | None, **row: Any
) -> Solution:
    """A solution as a panel makes it, whose experts gave these answers."""
    votes: dict[str, list[str]] = {}
    for name, given in answers.items():
        if given is not None:
            votes.setdefault(given, []).append(name)
    experts = [
        {
            "expert": name,
            "weight": 0.61,
            "reason": f"{name} knows it, 0.61",
            "question_id": question.id,
            "sample": 0,
            "answer": given,
            "text": f"{name} thinks. Answer: {given}",
            "prompt_tokens": 20,
            "completion_tokens": 7,
            "error": None,
        }
        for name, given in answers.items()
    ]
    told: dict[str, Any] = {
        "id": question.id,
        "answer": answer,
        "confidence": 0.75,
        "method": "posterior",
        "abstained": False,
        "skills": {"logic": 0.6, "sums": 0.4},
        "experts": experts,
        "votes": votes,
        "dissent": {given: who for given, who in votes.items() if given != answer},
        "chances": {given: 0.5 for given in votes},
        "unread": [name for name, given in answers.items() if given is None],
        "missing": {},
        "note": "",
        "aggregation": "",
        "usage": {"prompt_tokens": 40, "completion_tokens": 14},
    }
    return Solution(question=question, row=told | row)


def ask(at: int, gold: str = "B") -> Question:
    """A choice of three."""
    return Question(
        id=f"q{at}",
        text=f"Question number {at}?",
        options=("red", "green", "blue"),
        gold=gold,
        kind="choice",
    )


def build_profile() -> Profile:
    """Two experts on four references; ann gets all right."""
    references = {
        f"r{at}": Reference(f"r{at}", "A", 3, "choice", {"logic": 1.0}) for at in range(4)
    }
    outcomes = [Outcome(f"r{at}", "ann", 0, "A", True, 5) for at in range(4)]
    outcomes += [Outcome(f"r{at}", "bob", 0, "B", False, 5) for at in range(4)]
    experts = {name: ExpertRecord(identity=name) for name in ("ann", "bob")}
    return Profile(
        references="r", prompts="p", seed=0, experts=experts, questions=references, outcomes=tuple(outcomes)
    )  # fmt: skip


def build_rows() -> list[dict[str, Any]]:
    """Ours, two others and a bound."""
    ours: dict[str, Any] = {
        "label": "panel@2",
        "method": "panel",
        "title": "Recruited by skill",
        "source": "this project",
        "calls": 2,
        "calls_mean": 2.0,
        "tokens_mean": 14.0,
        "prompt_tokens_mean": 40.0,
        "seconds_mean": 0.5,
        "loads": 2,
        "energy_mean": None,
        "accuracy": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 60,
        "seeds": 1,
        "ece": 0.04,
        "unread": 0,
        "failed": 0,
        "delta": None,
        "against": None,
        "p": None,
        "p_holm": None,
        "is_ours": True,
        "is_bound": False,
        "note": "",
    }
    compared = {
        "delta": {"mean": -0.1, "low": -0.2, "high": -0.01},
        "against": "panel@2",
        "is_ours": False,
    }
    debate = {
        "label": "debate@6",
        "method": "debate",
        "title": "Debate",
        "accuracy": 0.4,
        "calls_mean": 6.0,
    }
    single = {
        "label": "single",
        "method": "single",
        "title": "Best single",
        "accuracy": 0.45,
        "calls_mean": 1.0,
    }
    oracle = {
        "label": "oracle",
        "method": "oracle",
        "title": "Any expert",
        "accuracy": 0.7,
        "is_bound": True,
    }
    return [
        ours,
        ours | compared | debate | {"low": 0.3, "high": 0.5, "tokens_mean": 300.0, "p": 0.01, "p_holm": 0.03},
        ours | compared | single | {"low": 0.35, "high": 0.55, "tokens_mean": 7.0, "p": 0.2, "p_holm": 0.4},
        ours | oracle | {"is_ours": False, "low": 0.6, "high": 0.8},
    ]  # fmt: skip


@pytest.fixture(scope="session")
def solve() -> Solve:
    """Makes solutions."""
    return solve_question


@pytest.fixture(scope="session")
def content() -> ReportContent:
    """Sixty questions in three patterns: right and agreed, wrong and disputed, abstained."""
    solutions: list[Solution] = []
    for at in range(60):
        if at % 3 == 0:
            made = solve_question(ask(at), {"ann": "B", "bob": "B"}, "B", confidence=0.9)
        elif at % 3 == 1:
            made = solve_question(ask(at), {"ann": "B", "cat": "C"}, "C", skills={"logic": 1.0})
        else:
            made = solve_question(ask(at), {"ann": "A"}, None, abstained=True, confidence=0.1)
        solutions.append(made)
    pathway = [[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0]]
    remix = {
        "verdict": "changed",
        "before": "A",
        "after": "B",
        "probabilities_before": [0.5, 0.3, 0.2],
        "probabilities_after": [0.3, 0.6, 0.1],
        "neighbours": [["r1", 0.81]],
        "curve": [1.2, 0.9],
        "pathway_before": pathway,
        "pathway_after": [pathway[1], pathway[0]],
    }
    experts = [dict(row) for row in solutions[0].experts]
    experts[0]["details"] = {"remix": remix}
    solutions[0] = replace(solutions[0], row={**solutions[0].row, "experts": experts})
    others = {
        "debate@6": {f"q{at}": ("B", True) if at % 2 else ("A", False) for at in range(60)},
        "single": {f"q{at}": ("B", True) for at in range(0, 60, 3)},
    }
    account = {"calls": 3, "reused": 1, "failures": 0, "prompt_tokens": 9, "completion_tokens": 4}
    load = {"weights": "org/a", "key": "k", "memory_bytes": 2**30, "device": "cpu", "way": "fresh"}
    return ReportContent(
        title="A comparison",
        main="panel@2",
        findings=["The first finding.", "The second finding."],
        facts={"Data set": "sixty made-up questions"},
        rows=build_rows(),
        matched=[
            {
                "by": "calls",
                "at": 2,
                "method": "panel@2",
                "against": "debate@6",
                "mean": 0.1,
                "low": 0.02,
                "high": 0.18,
                "p": 0.01,
                "p_holm": 0.02,
                "tokens_ratio": 0.05,
                "verdict": "better",
            }
        ],
        skipped={"frugal": "the pool states no prices"},
        solutions=solutions,
        others=others,
        profile=build_profile(),
        timeline=Timeline([Span(device="cpu", weights="org/a", kind="load", start=0, end=2)]),
        ledger={
            **account,
            "seconds": 1.5,
            "loads": 1,
            "distinct_weights": 1,
            "experts": [{"expert": "ann", "stage": "reason", "seconds": 1.5, **account}],
            "loaded": [{**load, "seconds": 2.0, "replica": False}],
            "forecast": [{"figure": "loads", "planned": 1, "real": 1, "error": 0.0}],
        },
    )
