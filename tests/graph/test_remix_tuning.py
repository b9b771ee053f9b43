"""When a gain on the references is more than luck."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from expertmix.graph.remix_tuning import is_reliable


def judge(fixed: int, broken: int, same: int = 50) -> bool:
    base_Q = np.array([0.0] * fixed + [1.0] * broken + [1.0] * same)
    right_Q = np.array([1.0] * fixed + [0.0] * broken + [1.0] * same)
    return is_reliable(right_Q, base_Q)


@pytest.mark.parametrize(
    ("fixed", "broken", "expected"),
    [(0, 0, False), (3, 0, False), (7, 0, True), (9, 2, False), (20, 5, True), (5, 20, False)],
)
def test_a_few_more_right_answers_prove_nothing(fixed: int, broken: int, expected: bool) -> None:
    assert judge(fixed, broken) is expected


def test_pure_luck_opens_the_gate_rarely() -> None:
    chance = np.random.default_rng(0)
    opened = [judge(int(fixed), 20 - int(fixed)) for fixed in chance.binomial(20, 0.5, 2000)]
    assert np.mean(opened) < 0.01
