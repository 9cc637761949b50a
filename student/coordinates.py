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
ITERATIONS = 8
"""of the subspace; the spectra of gradients fall slowly, and cutting a flat one, torch's default of 2 misses 3 % of the energy"""


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
    4.4): some passes over the features, where an exact decomposition of 8,000 rows takes minutes; as good as exact where
    width + 32 reaches min(N, D). The start is seeded: equal features give equal coordinates.

    Args:
        features: (N, D) float32.
        width: K, 1 or more.
    """
    rank = min(*features.shape, width + OVERSAMPLE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        axes = torch.svd_lowrank(features, q=rank, niter=ITERATIONS)[2][:, :width]
    axes = torch.nn.functional.pad(axes, (0, width - axes.shape[1]))
    coordinates = projected(features, axes)
    return PrincipalCoordinates(coordinates, axes, float(coordinates.square().sum() / features.square().sum()))


def projected(features: Tensor, axes: Tensor) -> Tensor:
    """Return the coordinates of any rows (N, D), of the fit or not, along its axes (D, K): (N, K)."""
    return features @ axes
