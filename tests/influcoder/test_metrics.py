from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import average_precision_score

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


def test_per_query_spearman_keeps_to_the_mask_and_leaves_out_queries_with_few_candidates() -> None:
    rng = np.random.default_rng(1)
    predicted, target = rng.normal(size=(3, 12)), rng.normal(size=(3, 12))
    mask = np.zeros((3, 12), dtype=bool)
    mask[0, :6], mask[1, :2], mask[2, ::2] = True, True, True
    expected = [spearmanr(predicted[0, :6], target[0, :6]).statistic, spearmanr(predicted[2, ::2], target[2, ::2]).statistic]
    np.testing.assert_allclose(metrics.per_query_spearman(predicted, target, mask), expected, atol=1e-12)


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


def test_top_overlap_counts_shared_rows_and_breaks_ties_by_row_order() -> None:
    target = np.array([[5.0, 4, 3, 2, 1], [0, 0, 0, 0, 0]])
    predicted = np.array([[5.0, 1, 2, 3, 4], [9, 0, 0, 0, 9]])
    np.testing.assert_allclose(metrics.top_overlap(predicted, target, 2), [0.5, 0.5])
    np.testing.assert_allclose(metrics.top_overlap(target, target, 3), 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_average_precision_equals_scikit_learn_with_ties_and_negatives(seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positive = tied(rng, 50, values), rng.random(50) < 0.2
    positive[0] = True
    assert metrics.average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


def test_average_precision_of_a_constant_is_the_base_rate() -> None:
    positive = np.arange(20) < 3
    assert metrics.average_precision(np.zeros(20), positive) == pytest.approx(0.15)


@given(st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=30))
def test_detection_sees_order_alone(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([pair[0] for pair in pairs], dtype=np.float64), np.array([pair[1] for pair in pairs])
    assume(positive.any())
    moved = np.exp(scores / 10) - 3
    assert metrics.average_precision(moved, positive) == pytest.approx(metrics.average_precision(scores, positive), abs=1e-12)
    assert metrics.recall_at(moved, positive, 3) == metrics.recall_at(scores, positive, 3)


def test_recall_counts_negative_scores_and_breaks_ties_by_row_order() -> None:
    scores = np.array([-1.0, -2, -2, -3])
    assert metrics.recall_at(scores, np.array([True, False, True, False]), 2) == 0.5
    assert metrics.recall_at(scores, np.array([True, True, False, False]), 2) == 1


def test_bootstrap_interval_holds_the_mean_and_narrows_with_n() -> None:
    values = np.random.default_rng(6).normal(0.5, 0.2, size=400)
    many, few = metrics.bootstrap_mean(values), metrics.bootstrap_mean(values[:25])
    assert many.mean == pytest.approx(values.mean())
    assert many.n == 400
    assert many.low < many.mean < many.high
    error = values.std() / 20
    assert many.high - many.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert few.high - few.low > 2 * (many.high - many.low)
    assert metrics.bootstrap_mean(values, seed=1) == metrics.bootstrap_mean(values, seed=1) != many
