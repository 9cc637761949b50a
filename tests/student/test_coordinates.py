from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from influcoder.metrics import per_query_spearman
from student.coordinates import principal_coordinates, projected


def drawn(rows: int, dim: int, decay: float, seed: int = 0) -> NDArray[np.float32]:
    """Return features with singular values about `1 / place ** decay`; 0 is a flat spectrum."""
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.normal(size=(dim, dim)))[0]
    features: NDArray[np.float32] = (random.normal(size=(rows, dim)) / np.arange(1, dim + 1) ** decay @ rotation).astype(np.float32)
    return features


@pytest.mark.parametrize(("rows", "dim"), [(300, 120), (120, 300)])
@pytest.mark.parametrize("width", [1, 8, 50])
def test_products_and_energy_equal_the_truncated_svd(rows: int, dim: int, width: int) -> None:
    features = drawn(rows, dim, decay=1.0)
    left, values, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    best = left[:, :width] * values[:width] ** 2 @ left[:, :width].T
    found = principal_coordinates(torch.from_numpy(features), width)
    assert found.coordinates.shape == (rows, width)
    np.testing.assert_allclose(found.coordinates @ found.coordinates.T, best, atol=1e-4 * values[0] ** 2)
    assert found.energy_share == pytest.approx((values[:width] ** 2).sum() / (values**2).sum(), rel=1e-5)


def test_axes_are_orthonormal_and_strongest_first() -> None:
    features = drawn(200, 90, decay=0.5)
    values = np.linalg.svd(features, compute_uv=False)
    found = principal_coordinates(torch.from_numpy(features), 20)
    np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(20), atol=1e-5)
    np.testing.assert_allclose(found.coordinates.norm(dim=0), values[:20], rtol=1e-3)


def test_a_flat_spectrum_loses_next_to_nothing() -> None:
    features = drawn(600, 500, decay=0.0)
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    best = (values[:64] ** 2).sum() / (values**2).sum()
    assert 0.998 * best < principal_coordinates(torch.from_numpy(features), 64).energy_share < best * (1 + 1e-5)


def test_a_width_beyond_the_rank_is_exact_and_filled_with_zeros() -> None:
    features = drawn(30, 12, decay=0.5)
    found = principal_coordinates(torch.from_numpy(features), 16)
    assert found.coordinates.shape == (30, 16) and bool((found.coordinates[:, 12:] == 0).all())
    np.testing.assert_allclose(found.coordinates @ found.coordinates.T, features @ features.T, atol=1e-4)
    assert found.energy_share == pytest.approx(1, abs=1e-5)


def test_equal_features_give_equal_coordinates_whatever_the_seed_which_stays() -> None:
    features = torch.from_numpy(drawn(200, 150, decay=0.2))
    torch.manual_seed(1)
    first = principal_coordinates(features, 10).coordinates
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(principal_coordinates(features, 10).coordinates, first)


def test_rows_outside_the_fit_are_placed_as_the_svd_places_them() -> None:
    features, others = drawn(300, 120, decay=1.0), drawn(40, 120, decay=1.0, seed=1)
    right = np.linalg.svd(features.astype(np.float64), full_matrices=False)[2][:10]
    found = principal_coordinates(torch.from_numpy(features), 10)
    products = projected(torch.from_numpy(others), found.axes) @ found.coordinates.T
    np.testing.assert_allclose(products, others @ right.T @ right @ features.T, atol=1e-3)
    torch.testing.assert_close(projected(torch.from_numpy(features), found.axes), found.coordinates)


def test_the_oracle_ranks_better_with_every_width_and_as_the_whole_at_full_rank() -> None:
    queries, features = np.split(drawn(210, 60, decay=0.5), [10])
    rhos = []
    for width in (2, 8, 24, 60):
        found = principal_coordinates(torch.from_numpy(features), width)
        oracle = projected(torch.from_numpy(queries), found.axes) @ found.coordinates.T
        rhos.append(per_query_spearman(oracle.numpy(), queries @ features.T).mean())
    assert rhos == sorted(rhos) and rhos[0] < 0.9 and rhos[-1] > 0.9999
