from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")

import torch

from expertmix.agents.moe.building.clusters import balanced_clusters


def test_points_that_belong_together_come_together() -> None:
    generator = torch.Generator().manual_seed(0)
    centres_EF = torch.eye(4, 12)
    owners_N = torch.randperm(40, generator=generator) % 4
    points_NF = centres_EF[owners_N] + 0.1 * torch.randn(40, 12, generator=generator)
    for members in balanced_clusters(points_NF, 4):
        assert len(set(owners_N[members].tolist())) == 1


@pytest.mark.parametrize("kind", ["random", "equal", "lopsided"])
def test_clusters_are_equal_cover_all_and_repeat(kind: str) -> None:
    points_NF = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    if kind == "equal":
        points_NF = torch.ones(60, 5)
    if kind == "lopsided":  # nearly all points want the same cluster
        points_NF[5:] = points_NF[:1] + 0.01 * points_NF[5:]
    clusters_EM = balanced_clusters(points_NF, 6)
    assert clusters_EM.shape == (6, 10)
    assert clusters_EM.flatten().sort().values.tolist() == list(range(60))
    assert torch.equal(clusters_EM, clusters_EM.sort(-1).values)
    assert torch.equal(clusters_EM[:, 0], clusters_EM[:, 0].sort().values)
    assert torch.equal(clusters_EM, balanced_clusters(points_NF, 6))


def test_only_directions_count() -> None:
    points_NF = torch.randn(24, 4, generator=torch.Generator().manual_seed(2))
    lengths_N = torch.arange(1, 25.0)[:, None]
    assert torch.equal(balanced_clusters(points_NF, 3), balanced_clusters(points_NF * lengths_N, 3))
