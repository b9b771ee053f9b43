"""Who is recruited, and that chance and order have no say in it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import ExpertProfile, Profile, Tally, recruit
from expertmix.retrieval import InputError


def make_profile(**experts: dict[str, tuple[int, int]]) -> Profile:
    made = {
        alias: ExpertProfile(
            identity="",
            skills={skill: Tally(*counts) for skill, counts in skills.items()},
            overall=sum((Tally(*c) for c in skills.values()), Tally()),
        )
        for alias, skills in experts.items()
    }
    return Profile(references="", prompts="", seed=0, experts=made)


PROFILE = make_profile(
    algebra={"maths": (9, 1), "law": (1, 9)},
    lawyer={"maths": (2, 8), "law": (9, 1)},
    average={"maths": (5, 5), "law": (5, 5)},
)
ALIASES = list(PROFILE.experts)


def chosen(skills: tuple[str, ...], k: int = 1, policy: str = "skill") -> list[str]:
    found = recruit({"q": skills}, ALIASES, k=k, profile=PROFILE, policy=policy)  # pyright: ignore[reportArgumentType]
    return [r.expert for r in found["q"]]


def test_the_question_decides_who_is_best() -> None:
    assert chosen(("maths",)) == ["algebra"]
    assert chosen(("law",)) == ["lawyer"]


def test_without_skills_the_strongest_overall_come_first() -> None:
    assert chosen((), k=3) == ["lawyer", "algebra", "average"]
    assert chosen(("maths",), k=3, policy="top_k") == ["lawyer", "algebra", "average"]


def test_an_unknown_skill_counts_as_overall_strength() -> None:
    assert chosen(("poetry",), k=3) == chosen((), k=3)


def test_an_estimate_is_shrunk_towards_overall_strength() -> None:
    expert = make_profile(a={"x": (2, 0), "y": (10, 90)}).experts["a"]
    strength = (12 + 1) / (102 + 2)
    assert expert.estimate("x") == pytest.approx((2 + 4 * strength) / (2 + 4))
    assert expert.estimate("x") < 0.5, "two lucky answers do not make an expert"


def test_reasons_are_words_and_numbers() -> None:
    reason = recruit({"q": ("maths",)}, ALIASES, k=1, profile=PROFILE)["q"][0].reason
    assert reason == "maths 0.79 (9 of 10), overall 0.50 (10 of 20)"


@given(st.permutations(ALIASES), st.integers(0, 5), st.sampled_from(["skill", "top_k", "random"]))
def test_no_order_of_experts_or_questions_changes_who_is_recruited(
    aliases: list[str], seed: int, policy: str
) -> None:
    skills: dict[str, tuple[str, ...]] = {"1": ("law",), "2": (), "3": ("maths", "law")}
    shuffled = dict(random.Random(seed).sample(list(skills.items()), 3))
    plain = recruit(skills, ALIASES, k=2, profile=PROFILE, policy=policy, seed=seed)  # pyright: ignore[reportArgumentType]
    other = recruit(shuffled, aliases, k=2, profile=PROFILE, policy=policy, seed=seed)  # pyright: ignore[reportArgumentType]
    assert plain == {qid: other[qid] for qid in plain}
    assert all(len({r.expert for r in rs}) == 2 for rs in plain.values())


def test_random_recruits_vary_with_the_question_and_the_seed() -> None:
    skills: dict[str, tuple[str, ...]] = {str(i): () for i in range(60)}
    draws = [recruit(skills, ALIASES, k=1, policy="random", seed=s) for s in (0, 1)]
    firsts = [[draw[q][0].expert for q in skills] for draw in draws]
    assert set(firsts[0]) == set(ALIASES)
    assert firsts[0] != firsts[1]


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_must_fit_the_pool(k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}, but the pool has 3 experts"):
        recruit({"q": ()}, ALIASES, k=k)


def test_an_expert_without_a_profile_is_named() -> None:
    with pytest.raises(InputError, match='does not know the expert "new"'):
        recruit({"q": ()}, [*ALIASES, "new"], k=1, profile=PROFILE)
