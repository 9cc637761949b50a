from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from influcoder import metrics

Vector = NDArray[np.float64]


def tied(rng: np.random.Generator, shape: int | tuple[int, ...], values: int = 5) -> Vector:
    """Return scores of which many are equal, some negative."""
    return rng.integers(-values, values, size=shape).astype(np.float64)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_scipy_with_ties(seed: int) -> None:
    values = tied(np.random.default_rng(seed), 40)
    np.testing.assert_array_equal(metrics.average_ranks(values), rankdata(values))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_spearman_equals_scipy_with_ties(seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = tied(rng, 30, values), tied(rng, 30, values)
    assert metrics.spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_negative_zero_ties_with_zero() -> None:
    zeros = np.array([0.0, -0.0, 1.0, -1.0, 0.0])
    assert metrics.average_ranks(zeros).tolist() == [3, 3, 5, 1, 3]
    assert metrics.average_ranks(-zeros).tolist() == [3, 3, 1, 5, 3]


def test_spearman_of_a_constant_is_zero() -> None:
    rising = np.arange(5.0)
    assert metrics.spearman(np.full(5, 0.1), rising) == 0
    assert metrics.spearman(rising, np.full(5, 0.1)) == 0


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30))
def test_spearman_sees_order_alone(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=np.float64).T
    rho = metrics.spearman(first, second)
    assert metrics.spearman(np.exp(first / 10), second**3) == pytest.approx(rho, abs=1e-12)
    assert metrics.spearman(-first, second) == pytest.approx(-rho, abs=1e-12)
    assert -1 - 1e-12 <= rho <= 1 + 1e-12


def test_per_query_spearman_equals_scipy_row_by_row() -> None:
    rng = np.random.default_rng(0)
    predicted, target = tied(rng, (4, 20)), tied(rng, (4, 20))
    expected = [spearmanr(mine, theirs).statistic for mine, theirs in zip(predicted, target, strict=True)]
    np.testing.assert_allclose(metrics.per_query_spearman(predicted, target), expected, atol=1e-12)


def test_per_query_spearman_keeps_to_the_mask_and_has_no_rho_for_queries_with_few_candidates() -> None:
    rng = np.random.default_rng(1)
    predicted, target = rng.normal(size=(4, 12)), rng.normal(size=(4, 12))
    mask = np.zeros((4, 12), dtype=bool)
    mask[0, :6], mask[1, :2], mask[3, ::2] = True, True, True
    first, last = spearmanr(predicted[0, :6], target[0, :6]).statistic, spearmanr(predicted[3, ::2], target[3, ::2]).statistic
    np.testing.assert_allclose(metrics.per_query_spearman(predicted, target, mask), [first, np.nan, np.nan, last], atol=1e-12)


@pytest.mark.parametrize(("rows", "known"), [(0, False), (2, False), (3, True)])
def test_per_query_spearman_takes_three_rows(rows: int, known: bool) -> None:
    rising = np.tile(np.arange(float(rows)), (2, 1))
    np.testing.assert_allclose(metrics.per_query_spearman(rising, rising), [1.0 if known else np.nan] * 2)


def test_aggregated_spearman_is_that_of_the_means() -> None:
    rng = np.random.default_rng(2)
    predicted, target = rng.normal(size=(5, 20)), rng.normal(size=(5, 20))
    assert metrics.aggregated_spearman(predicted, target) == pytest.approx(
        spearmanr(predicted.mean(0), target.mean(0)).statistic, abs=1e-12
    )


def test_double_centred_has_no_row_or_column_level() -> None:
    centred = metrics.double_centred(np.random.default_rng(3).normal(size=(6, 9)) + 100)
    np.testing.assert_allclose(centred.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(centred.mean(1), 0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residual_of_a_query_blind_matrix_is_zero_at_any_scale(scale: float, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(4)
    blind = np.broadcast_to(rng.normal(size=31) * scale, (17, 31)).astype(dtype)
    assert (metrics.residual_spearman(blind, rng.normal(size=(17, 31))) == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_residual_sees_what_is_left_beside_levels(scale: float) -> None:
    rng = np.random.default_rng(5)
    target = rng.normal(size=(8, 30))
    levels = rng.normal(size=(8, 1)) + 10 * rng.normal(size=(1, 30))
    np.testing.assert_allclose(metrics.residual_spearman((target + levels) * scale, target), 1, atol=1e-9)


def best(scores: list[float], k: int) -> set[int]:
    """Return the places of the k largest, the first of equal ones."""
    return set(sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("values", [1, 3, 1000])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 7), (7, 3), (10, 100), (100, 5)])
def test_top_recall_equals_a_loop_with_ties_and_negatives(seed: int, values: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, target = tied(rng, (4, 20), values), tied(rng, (4, 20), values)
    predicted[0], target[1] = -3, 0
    target[2] *= -1  # zeros turn into negative ones
    pairs = zip(predicted.tolist(), target.tolist(), strict=True)
    expected = [len(best(mine, n) & best(theirs, k)) / min(k, 20) for mine, theirs in pairs]
    np.testing.assert_allclose(metrics.top_recall(predicted, target, k, n), expected)


def test_top_overlap_counts_shared_rows_and_breaks_ties_by_row_order() -> None:
    target = np.array([[5.0, 4, 3, 2, 1], [0, 0, -0.0, 0, 0]])
    predicted = np.array([[5.0, 1, 2, 3, 4], [9, -0.0, 0, 0, 9]])
    np.testing.assert_allclose(metrics.top_overlap(predicted, target, 2), [0.5, 0.5])
    np.testing.assert_allclose(metrics.top_overlap(target, target, 3), 1)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_top_recall_sees_order_alone_and_grows_with_what_is_inspected(seed: int, k: int, n: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, target = tied(rng, (3, 12)), tied(rng, (3, 12))
    found = metrics.top_recall(predicted, target, k, n)
    np.testing.assert_array_equal(metrics.top_recall(np.exp(predicted / 3) - 2, target**3, k, n), found)
    assert (metrics.top_recall(predicted, target, k, n + more) >= found).all()
    assert (metrics.top_recall(predicted, target, k, 12) == 1).all()
    np.testing.assert_array_equal(metrics.top_overlap(predicted, target, k), metrics.top_recall(predicted, target, k, k))
