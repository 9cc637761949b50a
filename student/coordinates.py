"""Principal coordinates of the teacher's features: the vectors of a given width whose products come closest to the teacher's scores.

A student whose embeddings have `width` dimensions scores with a kernel of rank `width`. The best such kernel is the target's
truncated singular value decomposition (Eckart and Young 1936), so it shows what the width alone costs.

Features are not centred: the scores are products of the features as they are. Legend: N rows, D features, K width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

OVERSAMPLE = 32
ITERATIONS = 4
"""of the subspace of products, whose spectrum falls twice as fast as that of the features"""
LEAST_VALUE = 1e-7
"""share of the largest squared singular value below which float32 knows no direction"""


class PrincipalCoordinates(NamedTuple):
    """The leading right singular vectors of features, and the features along them, strongest first."""

    coordinates: Tensor
    """(N, K)"""
    axes: Tensor
    """(D, K) orthonormal; beyond min(N, D) of them, zeros"""
    energy_share: float
    """of the features' sum of squares that the coordinates keep, 0 to 1"""


def principal_coordinates(features: Tensor, width: int) -> PrincipalCoordinates:
    """Return coordinates such that `coordinates @ coordinates.T` is the best approximation of rank `width` to `features @ features.T`.

    The first k < width columns are the best of rank k. Randomized subspace iteration (Halko, Martinsson and Tropp 2011, algorithm
    4.4) on the rows' products where rows are fewer than features, which is one pass over the features; as good as exact where
    width + 32 reaches min(N, D). The start is seeded: equal features give equal coordinates.

    Args:
        features: (N, D) float32.
        width: K, 1 or more.
    """
    by_rows = features.shape[0] < features.shape[1]
    moment = features @ features.T if by_rows else features.T @ features
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vectors, values, _ = torch.svd_lowrank(moment.double(), q=min(len(moment), width + OVERSAMPLE), niter=ITERATIONS)
    kept = values > values[0] * LEAST_VALUE
    vectors, values = vectors[:, kept][:, :width], values[kept][:width]
    axes = features.T @ (vectors / values.sqrt()).to(features.dtype) if by_rows else vectors.to(features.dtype)
    axes = torch.nn.functional.pad(axes, (0, width - axes.shape[1]))
    coordinates = projected(features, axes)
    return PrincipalCoordinates(coordinates, axes, float(coordinates.square().sum() / features.square().sum()))


def projected(features: Tensor, axes: Tensor) -> Tensor:
    """Return the coordinates of any rows (N, D), of the fit or not, along its axes (D, K): (N, K)."""
    return features @ axes
