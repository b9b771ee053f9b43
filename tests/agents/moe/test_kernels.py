"""Kernels against their formulas, written out for vectors."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents.moe.kernels import (
    Kernel,
    Smoothness,
    gaussian,
    linear,
    matern,
    median_bandwidth,
    polynomial,
    take_distances,
    weigh_neighbours,
)
from expertmix.retrieval import InputError

KERNELS: tuple[Kernel, ...] = get_args(Kernel)
COSINES = st.lists(st.floats(-1, 1), min_size=1, max_size=6)


def tensor(values: list[float] | list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unit_vectors(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def test_distances_and_the_gaussian_are_those_of_the_vectors() -> None:
    query, others = unit_vectors(1, 0), unit_vectors(7, 1)
    square = (others - query).square().sum(-1)
    similarity = others @ query[0]
    torch.testing.assert_close(take_distances(similarity), square.sqrt())
    torch.testing.assert_close(gaussian(similarity, 0.6), (-square / (2 * 0.6**2)).exp())


def test_the_matern_kernel_is_the_general_formula() -> None:
    special = pytest.importorskip("scipy.special")
    similarity = tensor([0.95, 0.5, -0.3])
    distance = take_distances(similarity).numpy()
    orders: list[tuple[Smoothness, float]] = [("1/2", 0.5), ("3/2", 1.5), ("5/2", 2.5)]
    for smoothness, order in orders:
        scaled = math.sqrt(2 * order) * distance / 0.7
        factor = 2 ** (1 - order) / special.gamma(order)
        expected = factor * scaled**order * special.kv(order, scaled)
        np.testing.assert_allclose(matern(similarity, 0.7, smoothness).numpy(), expected)


def test_the_published_weights_are_cosines_over_their_sum() -> None:
    similarity = tensor([[0.8, 0.72, 0.65]])
    expected = similarity / similarity.sum()
    for kernel in ("cosine", "linear"):
        torch.testing.assert_close(weigh_neighbours(similarity, kernel), expected)
    # The specs' example for a Gaussian with σ = 1 (c3po.md §0, item 7).
    weights = weigh_neighbours(similarity, "gaussian", bandwidth=1.0)
    assert weights[0].numpy().round(2).tolist() == [0.36, 0.33, 0.31]


def test_weights_are_the_kernel_over_its_sum() -> None:
    similarity = tensor([[0.9, 0.2, 0.4]])
    expected = {
        "gaussian": gaussian(similarity, 0.8),
        "matern": matern(similarity, 0.8, "5/2"),
        "polynomial": polynomial(similarity, 3),
        "linear": linear(similarity),
    }
    for kernel in KERNELS:
        values = expected.get(kernel, linear(similarity))
        found = weigh_neighbours(similarity, kernel, bandwidth=0.8, degree=3, smoothness="5/2")
        torch.testing.assert_close(found, values / values.sum())


def test_the_median_is_each_questions_own_over_the_neighbours_that_exist() -> None:
    distance = tensor([[1.0, 2.0, 9.0, 5.0], [4.0, 1.0, 1.0, 1.0]])
    present = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert median_bandwidth(distance, present).tolist() == [[2.0], [2.5]]
    assert median_bandwidth(distance).tolist() == [[3.5], [1.0]]
    similarity = tensor([[0.9, 0.5, 0.2], [0.3, 0.1, -0.4]])
    widths = np.median(take_distances(similarity).numpy(), axis=1)
    for row, width in enumerate(widths.tolist()):
        alone = weigh_neighbours(similarity[row : row + 1], bandwidth=width)
        torch.testing.assert_close(weigh_neighbours(similarity)[row : row + 1], alone)


@given(COSINES, st.sampled_from(KERNELS), st.data())
def test_rows_sum_to_one_over_the_neighbours_that_exist(
    cosines: list[float], kernel: Kernel, data: st.DataObject
) -> None:
    size = len(cosines)
    present = torch.tensor([data.draw(st.lists(st.booleans(), min_size=size, max_size=size))])
    weights = weigh_neighbours(tensor([cosines]), kernel, present_QN=present)
    assert (weights >= 0).all()
    assert (weights[~present] == 0).all()
    lowest = {"linear": 0.0, "cosine": 0.0, "polynomial": -1.0}.get(kernel, -2.0)
    usable = [cosine for cosine, is_there in zip(cosines, present[0], strict=True) if is_there]
    # So near the end of a kernel, whether it rounds to zero is of no interest.
    if not any(lowest < cosine < lowest + 1e-9 for cosine in usable):
        expected = float(any(cosine > lowest for cosine in usable))
        assert float(weights.sum()) == pytest.approx(expected)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.sampled_from(KERNELS))
def test_the_nearer_neighbour_never_weighs_less(cosines: list[float], kernel: Kernel) -> None:
    weights = weigh_neighbours(tensor([sorted(cosines)]), kernel)[0]
    assert (weights.diff() >= -1e-12).all()


def test_neighbours_far_beyond_the_bandwidth_still_have_weights() -> None:
    weights = weigh_neighbours(tensor([[0.1, 0.0]]), bandwidth=0.01)
    assert weights.sum() == 1
    assert weights[0, 0] > 0.99
    same = weigh_neighbours(tensor([[1.0, 1.0, 1.0]]))
    torch.testing.assert_close(same, torch.full_like(same, 1 / 3))


def test_no_neighbour_and_opposite_neighbours_leave_rows_of_zero() -> None:
    similarity = tensor([[-0.5, -0.2], [0.5, 0.2]])
    absent = torch.tensor([[True, True], [False, False]])
    assert weigh_neighbours(similarity, "linear", present_QN=absent).tolist() == [[0, 0], [0, 0]]
    assert weigh_neighbours(similarity[:, :0]).shape == (2, 0)


def test_a_similarity_that_is_no_number_is_no_neighbour() -> None:
    weights = weigh_neighbours(tensor([[math.nan, 0.5, math.inf, 0.5]]))
    assert weights.tolist() == [[0, 0.5, 0, 0.5]]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="positive number or 'median'"):
        weigh_neighbours(tensor([[0.5]]), bandwidth=0)
    with pytest.raises(InputError, match="at least 1"):
        weigh_neighbours(tensor([[0.5]]), "polynomial", degree=0)
