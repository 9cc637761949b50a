from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder.aggregation import aggregate


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
