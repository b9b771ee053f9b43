"""How many questions per second every recruiting policy serves on one core, and how its memory grows.

    python benchmarks/recruiting.py [--json] [--quick]

Sixteen experts with 400 scripted profile answers each, 40 skills, five skills per question, three recruits. The
figures are CPU time of the whole process, the best of three passes, so that a busy machine does not change them.
Keys: `questions_per_second` (the default policy, arrays out), `questions_per_second_with_reasons` (what `recruit`
gives), `questions_per_second_POLICY` for the others, `bytes_per_question` and `memory_ratio` (peak of the default
policy at 2n questions over that at n; 2 is linear). `--quick` takes 20,000 questions instead of 100,000.
"""

from __future__ import annotations

import os

# One core: the figure is per core. Must be said before numpy is loaded.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from expertmix.agents.beliefs import Beliefs
from expertmix.agents.outcomes import OutcomeTable
from expertmix.agents.policies import POLICIES, Call, recruit_many
from expertmix.agents.recruit import recruit

EXPERTS, SKILLS, PER_QUESTION, REFERENCES, RECRUITS = 16, 40, 5, 400, 3


def make_skills(number: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """Five different skills for each question, the most needed first."""
    places_Q5 = np.argsort(rng.random((number, SKILLS)), axis=1)[:, :PER_QUESTION]
    shares_Q5 = -np.sort(-rng.dirichlet(np.ones(PER_QUESTION), number), axis=1)
    pairs = zip(places_Q5.tolist(), shares_Q5.tolist(), strict=True)
    return [
        {f"skill {place:02d}": share for place, share in zip(places, shares, strict=True)}
        for places, shares in pairs
    ]


def make_call(number: int) -> Call:
    """A profile whose experts differ in strength and skill, and questions to recruit for."""
    rng = np.random.default_rng(0)
    skills = make_skills(REFERENCES, rng)
    chance_E = np.linspace(0.2, 0.7, EXPERTS)
    right_NE = rng.random((REFERENCES, EXPERTS)) < chance_E
    labels_NE = np.where(right_NE, 0, rng.integers(1, 4, right_NE.shape)).astype(np.int16)
    table = OutcomeTable(
        experts=tuple(f"expert-{at:02d}" for at in range(EXPERTS)),
        questions=tuple(f"reference-{at}" for at in range(REFERENCES)),
        labels_NE=labels_NE,
        gold_N=np.zeros(REFERENCES, np.int16),
        options_N=np.full(REFERENCES, 4, np.int16),
        skills=tuple(skills),
    )
    return Call(
        ids=[f"question-{at}" for at in range(number)],
        skills=make_skills(number, rng),
        table=table,
        beliefs=Beliefs.fit(table),
        k=RECRUITS,
        near_QN=rng.integers(0, REFERENCES, (number, 20)),
    )


def rate(work: Callable[[], object], number: int, passes: int = 3) -> int:
    """Questions per second of CPU time, the best of some passes."""
    seconds: list[float] = []
    for _ in range(passes):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return round(number / max(min(seconds), 1e-9))


def peak_bytes(work: Callable[[], object]) -> int:
    """Most memory that was held at once, over what was held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def measure(number: int) -> dict[str, float]:
    """All figures at a number of questions."""
    call = make_call(number)
    half = replace(
        call,
        ids=call.ids[: number // 2],
        skills=call.skills[: number // 2],
    )
    told = dict(zip(call.ids, call.skills, strict=True))
    first: Sequence[str] = call.ids[: number // 10]
    few = {name: told[name] for name in first}

    def write_reasons() -> object:
        table, beliefs = call.table, call.beliefs
        return recruit(few, table.experts, k=RECRUITS, table=table, beliefs=beliefs)

    figures: dict[str, float] = {
        "questions_per_second": rate(lambda: recruit_many(call, "skill"), number),
        "questions_per_second_with_reasons": rate(write_reasons, len(few)),
    }
    for policy in POLICIES[1:]:
        key = f"questions_per_second_{policy.replace('-', '_')}"
        figures[key] = rate(lambda policy=policy: recruit_many(call, policy), number)
    at_half = peak_bytes(lambda: recruit_many(half, "skill"))
    at_whole = peak_bytes(lambda: recruit_many(call, "skill"))
    figures["bytes_per_question"] = round(at_whole / number)
    figures["memory_ratio"] = round(at_whole / at_half, 2)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="20,000 questions")
    arguments = parser.parse_args()
    figures = measure(20_000 if arguments.quick else 100_000)
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:<40} {value:>16,}")


if __name__ == "__main__":
    main()
