from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")

import torch

from expertmix.agents.moe.building.split import (
    FeedForward,
    Partition,
    Sizes,
    choose_sizes,
    split,
)
from expertmix.retrieval import InputError


def test_sizes_leave_nothing_over_and_suit_the_kernels() -> None:
    assert choose_sizes(1536, 16) == Sizes(shared=512, expert=64)
    assert choose_sizes(8960, 16) == Sizes(shared=2304, expert=416)
    assert choose_sizes(96, 8) == Sizes(shared=32, expert=8)  # too small for multiples of 32
    assert choose_sizes(97, 8) == Sizes(shared=33, expert=8)


def test_a_shared_size_is_taken_or_refused_with_one_that_would_do() -> None:
    assert choose_sizes(1536, 16, 256) == Sizes(shared=256, expert=80)
    with pytest.raises(InputError, match=r"A shared expert of 250 neurons .* 512 would do"):
        choose_sizes(1536, 16, 250)
    with pytest.raises(InputError, match="no multiple of 8"):
        choose_sizes(1536, 16, 0)
    with pytest.raises(InputError, match="no multiple of 8"):
        choose_sizes(1536, 16, 1536 - 16 * 60)
    with pytest.raises(InputError, match="fewer than 8"):
        choose_sizes(100, 16)
    with pytest.raises(InputError, match="fewer than 8"):
        choose_sizes(96, 8, 96)


@pytest.mark.parametrize("experts", [4, 5])
def test_all_experts_with_equal_weights_are_the_dense_network(experts: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dense = FeedForward(gate_ID=draw(30, 8), up_ID=draw(30, 8), down_DI=draw(8, 30))
    order = torch.randperm(30, generator=generator)
    partition = Partition(shared_S=order[:10], routed_EM=order[10:].view(experts, -1))
    made = split(dense, partition)
    x_TD = draw(7, 8)

    def run(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.silu(x_TD @ gate.T) * (x_TD @ up.T)) @ down.T

    routed = sum(
        run(*matrices) / experts
        for matrices in zip(made.gate_EMD, made.up_EMD, made.down_EDM, strict=True)
    )
    shared = run(made.shared_gate_SD, made.shared_up_SD, made.shared_down_DS) / 2
    expected = run(dense.gate_ID, dense.up_ID, dense.down_DI)
    torch.testing.assert_close(routed + shared, expected, atol=1e-12, rtol=0)


def test_a_partition_knows_whether_it_covers_every_neuron_once() -> None:
    whole = Partition(shared_S=torch.tensor([0, 3]), routed_EM=torch.tensor([[1, 5], [2, 4]]))
    assert whole.covers(6)
    assert not whole.covers(7)
    assert not Partition(shared_S=whole.shared_S, routed_EM=whole.routed_EM % 4).covers(6)
