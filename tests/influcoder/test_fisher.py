from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from influcoder.influence import fisher
from influcoder.influence.fisher import SecondMoment, inverse_root, mix, mixing_weight, precondition, split, unit_blocks

BLOCKS = (3, 5, 2)
Array = NDArray[np.float64]


def gradients(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, sum(BLOCKS))).astype(np.float32)


def moment(size: int, seed: int) -> Array:
    vectors = np.random.default_rng(seed).normal(size=(2 * size, size)) * np.arange(1, size + 1)
    product: Array = vectors.T @ vectors
    return product / (2 * size)


def test_split_gives_the_blocks_in_order() -> None:
    rows = np.arange(20.0).reshape(2, 10)
    assert [block.tolist() for block in split(rows, BLOCKS)] == [
        [[0, 1, 2], [10, 11, 12]],
        [[3, 4, 5, 6, 7], [13, 14, 15, 16, 17]],
        [[8, 9], [18, 19]],
    ]


def test_second_moments_of_a_stream_are_the_blocks_of_the_dense_mean() -> None:
    rows = gradients(23)
    streamed = SecondMoment(BLOCKS)
    for part in (rows[:10], rows[10:11], rows[11:]):
        streamed.add(part)
    dense = np.mean([np.outer(row, row) for row in rows.astype(np.float64)], axis=0)
    assert streamed.count == 23
    for found, start, size in zip(streamed.means(), (0, 3, 8), BLOCKS, strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, dense[start : start + size, start : start + size], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_an_inverse_root_undoes_the_damped_moment(damping: float) -> None:
    second = moment(6, 0)
    root = inverse_root(second, damping)
    damped = second + damping * np.trace(second) / 6 * np.eye(6)
    np.testing.assert_allclose(root @ root @ damped, np.eye(6), atol=1e-9)
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    assert np.linalg.eigvalsh(root).min() > 0


def test_an_inverse_root_takes_a_moment_of_fewer_rows_than_coordinates() -> None:
    row = np.random.default_rng(0).normal(size=4)
    second = np.outer(row, row)
    root = inverse_root(second, 0.1)
    np.testing.assert_allclose(root @ root @ (second + 0.1 * row @ row / 4 * np.eye(4)), np.eye(4), atol=1e-9)


def test_negative_eigenvalues_of_rounding_count_as_zero() -> None:
    root = inverse_root(np.diag([1.0, -1e-3]), 1e-4)
    np.testing.assert_allclose(root, np.diag([(1 + 0.5e-4) ** -0.5, 0.5e-4**-0.5]))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.55])
def test_the_mixing_weight_makes_the_kth_singular_values_alike(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "DOWNWEIGHTED", share)
    rows, queries = ([moment(size, seed + offset) * scale for seed, size in enumerate(BLOCKS)] for offset, scale in ((0, 1.0), (7, 0.3)))
    weight = mixing_weight(rows, queries)
    of_rows, of_queries = (
        sorted((value for block in side for value in np.linalg.svd(block)[1]), reverse=True)[int(share * 10)] for side in (rows, queries)
    )
    assert 0 < weight < 1
    assert weight * of_queries == pytest.approx((1 - weight) * of_rows, rel=1e-9)
    mixed, same = mix(rows, queries)
    assert same == weight
    for found, row, query in zip(mixed, rows, queries, strict=True):
        np.testing.assert_allclose(found, weight * query + (1 - weight) * row)


def test_the_share_is_trackstars() -> None:
    assert round(65536 * fisher.DOWNWEIGHTED) == 1000


def test_moments_without_energy_are_not_mixed() -> None:
    assert mixing_weight([np.zeros((2, 2))], [np.zeros((2, 2))]) == 0
    assert mixing_weight([np.eye(2)], [np.zeros((2, 2))]) == 1
    assert mixing_weight([np.zeros((2, 2))], [np.eye(2)]) == 0


def test_a_singular_value_below_zero_by_rounding_counts_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "DOWNWEIGHTED", 0.5)
    rows, queries = np.diag([1.0, -1e-9]), np.diag([1.0, 0.5])
    assert mixing_weight([rows], [queries]) == 0
    assert mixing_weight([queries], [rows]) == 1


def test_preconditioned_inner_products_are_those_of_the_inverse() -> None:
    rows, queries = gradients(4), gradients(3, seed=1)
    moments = [moment(size, seed) for seed, size in enumerate(BLOCKS)]
    roots = [inverse_root(second, 0.1) for second in moments]
    dense = np.zeros((10, 10))
    for second, start, size in zip(moments, (0, 3, 8), BLOCKS, strict=True):
        damped = second + 0.1 * np.trace(second) / size * np.eye(size)
        dense[start : start + size, start : start + size] = np.linalg.inv(damped)
    found = precondition(queries, roots) @ precondition(rows, roots).T
    np.testing.assert_allclose(found, queries.astype(np.float64) @ dense @ rows.T, rtol=1e-4, atol=1e-5)
    assert precondition(rows, roots).dtype == np.float32


def test_unit_blocks_make_a_cosine_the_mean_of_the_blocks_cosines() -> None:
    rows = gradients(5) * np.array([1] * 3 + [50] * 5 + [0.01] * 2, np.float32)
    found = unit_blocks(rows, BLOCKS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    for first in range(5):
        for second in range(5):
            pairs = [(rows[first, start : start + size], rows[second, start : start + size]) for start, size in ((0, 3), (3, 5), (8, 2))]
            cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
            assert float(unit[first] @ unit[second]) == pytest.approx(np.mean(cosines), abs=1e-5)


def test_a_block_without_gradient_stays_zero() -> None:
    rows = gradients(2)
    rows[0, 3:8] = 0
    found = unit_blocks(rows, BLOCKS)
    assert np.isfinite(found).all()
    assert (found[0, 3:8] == 0).all() and (found[1, 3:8] != 0).all()


def test_a_layer_without_gradients_adds_nothing() -> None:
    assert not inverse_root(np.zeros((3, 3)), 0.1).any()
    rows = np.array([[3.0, 4.0, 0.0, 0.0]])
    found = unit_blocks(rows, (2, 2))
    np.testing.assert_allclose(found, rows, rtol=1e-6)
