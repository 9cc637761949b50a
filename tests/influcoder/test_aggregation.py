from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import zscore

from influcoder.aggregation import aggregate, standardised


def naive(scores: list[list[float]], weights: list[float], top: int | None) -> list[float]:
    """Return what `aggregate` should, one row and one query at a time."""
    totals = []
    for row in range(len(scores[0])):
        total = 0.0
        for sign in (1, -1):
            pairs = [(query[row], abs(weight)) for query, weight in zip(scores, weights, strict=True) if weight * sign > 0]
            best = sorted(pairs, key=lambda pair: -pair[0])[:top]
            if best:
                total += sign * sum(score * weight for score, weight in best) / sum(weight for _, weight in best)
        totals.append(total)
    return totals


@pytest.mark.parametrize("top", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_loop(top: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(9, 13))
    for weights in (np.ones(9), -np.ones(9), rng.choice([-1.0, 1.0], 9), rng.choice([-2.0, -0.5, 0.5, 2.0], 9)):
        np.testing.assert_allclose(aggregate(scores, weights, top), naive(scores.tolist(), weights.tolist(), top), atol=1e-12)


def test_default_is_the_mean_of_the_five_best() -> None:
    scores = np.arange(8.0)[:, None]
    assert aggregate(scores, np.ones(8)) == pytest.approx([5.0])
    assert aggregate(scores, np.ones(8), 1) == pytest.approx([7.0])
    assert aggregate(scores, np.ones(8), None) == pytest.approx([3.5])


def test_contrast_is_subtracted() -> None:
    scores = np.array([[1.0, 2.0], [0.5, 3.0]])
    assert aggregate(scores, np.array([1.0, -1.0])) == pytest.approx([0.5, -1.0])


@given(st.integers(0, 1000), st.floats(1e-6, 1e6), st.sampled_from([None, 1, 3, 5]))
def test_query_blind_scores_cancel_exactly_between_behaviour_and_contrast(seed: int, scale: float, top: int | None) -> None:
    rng = np.random.default_rng(seed)
    blind = np.broadcast_to(rng.normal(size=20) * scale, (11, 20))
    weights = np.array([1.0] * 7 + [-1.0] * 4)
    assert len(set(aggregate(blind, weights, top))) == 1, "rounding left a ranking where there is none"


@pytest.mark.parametrize(
    ("shape", "weights", "top"), [((3,), [1, 1, 1], 5), ((3, 4), [1, 1], 5), ((3, 4), [1, 0, 1], 5), ((3, 4), [1, 1, 1], 0)]
)
def test_refuses_shapes_zero_weights_and_no_rows_to_take(shape: tuple[int, ...], weights: list[float], top: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        aggregate(np.zeros(shape), np.array(weights, dtype=np.float64), top)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_standard_scores_equal_scipy(seed: int, dtype: type[np.floating]) -> None:
    scores = (np.random.default_rng(seed).normal(size=(5, 30)) * [[1], [2], [0.1], [30], [4]] + [[0], [-5], [1], [7], [-100]]).astype(dtype)
    found = standardised(scores)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, zscore(scores.astype(np.float64), axis=1), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -1e30, 1e-30])
def test_a_constant_has_standard_scores_of_zero(value: float, dtype: type[np.floating]) -> None:
    scores = np.stack([np.full(7, value), np.arange(7.0)]).astype(dtype)
    assert (standardised(scores)[0] == 0).all(), "rounding left a ranking where there is none"
    np.testing.assert_allclose(standardised(scores)[1], zscore(np.arange(7.0)))


@given(st.integers(0, 1000), st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_no_query_outweighs_the_others_whatever_their_scales(seed: int, powers: list[float]) -> None:
    scores = np.random.default_rng(seed).normal(size=(3, 15))
    np.testing.assert_allclose(standardised(scores * 10.0 ** np.array(powers)[:, None]), standardised(scores), atol=1e-9)
