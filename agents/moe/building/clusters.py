"""Clusters of equal size: which neurons fire together and should become one expert.

Shapes: N points, F features, E clusters, M = N / E points in each.
"""

from __future__ import annotations

import torch

__all__ = ["balanced_clusters"]

ROUNDS = 12
"""Most rounds of assigning and averaging; the loop ends earlier once nothing moves."""


def balanced_clusters(points_NF: torch.Tensor, number: int) -> torch.Tensor:
    """Return the members of each cluster, `[E, M]`, ascending; clusters in the order of their first.

    Spherical k-means in which every cluster has a fixed number of places. The centres begin with the
    points that are farthest from those chosen before, and pairs are served in the order of their
    similarity, of equal ones the lower index: nothing is drawn by chance, so a repeat gives the same.

    Args:
        points_NF: Only their directions count; N must be divisible by `number`.
        number: How many clusters.
    """
    points_NF = torch.nn.functional.normalize(points_NF.float(), dim=-1)
    size = points_NF.shape[0] // number
    assert size * number == points_NF.shape[0], "the points cannot be shared out evenly"
    centres_EF = points_NF[_spread(points_NF, number)]
    owners_N = torch.full((points_NF.shape[0],), -1)
    for _ in range(ROUNDS):
        before_N, owners_N = owners_N, _assign(points_NF @ centres_EF.T, size)
        if torch.equal(before_N, owners_N):
            break
        sums_EF = torch.zeros_like(centres_EF).index_add_(0, owners_N, points_NF)
        centres_EF = torch.nn.functional.normalize(sums_EF, dim=-1)
    members = [torch.nonzero(owners_N == cluster)[:, 0] for cluster in range(number)]
    return torch.stack(sorted(members, key=lambda indices: int(indices[0])))


def _spread(points_NF: torch.Tensor, number: int) -> list[int]:
    """Indices of points that are far from each other, the one nearest to all others first."""
    chosen = [int((points_NF @ points_NF.sum(0)).argmax())]
    nearest_N = points_NF @ points_NF[chosen[0]]
    while len(chosen) < number:
        nearest_N[chosen[-1]] = torch.inf
        chosen.append(int(nearest_N.argmin()))
        nearest_N = torch.maximum(nearest_N, points_NF @ points_NF[chosen[-1]])
    return chosen


def _assign(similarity_NE: torch.Tensor, size: int) -> torch.Tensor:
    """The cluster of each point: pairs by what the point would lose elsewhere, most first.

    A full cluster drops out, and the points that are still without a place are ranked anew.
    """
    points, number = similarity_NE.shape
    owners_N = torch.full((points,), -1)
    open_NE = similarity_NE.clone()
    room = [size] * number
    while bool((waiting_R := torch.nonzero(owners_N < 0)[:, 0]).numel()):
        rows_RE = open_NE[waiting_R]
        best_R = rows_RE.argmax(-1)
        if sum(places > 0 for places in room) > 1:
            top_R2 = rows_RE.topk(2, dim=-1).values
            loss_R = top_R2[:, 0] - top_R2[:, 1]
        else:
            loss_R = rows_RE.max(-1).values
        order_R = torch.sort(loss_R, descending=True, stable=True).indices
        for cluster in range(number):
            wanting = waiting_R[order_R[best_R[order_R] == cluster]][: room[cluster]]
            owners_N[wanting] = cluster
            room[cluster] -= len(wanting)
            if not room[cluster]:
                open_NE[:, cluster] = -torch.inf
    return owners_N
