from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import spearmanr

from influcoder.errors import DataError
from influcoder.lds import half_masks, lds


def test_it_equals_the_worked_example_of_dattri() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4]])
    masks = np.array([[True, True, False, False], [True, False, True, False], [False, True, True, False]])
    outputs = np.array([[0.3, 0.3], [0.4, 0.4], [0.5, 0.3]])
    np.testing.assert_allclose(lds(scores, masks, outputs), [1.0, 0.8660254], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_equals_scipy_query_by_query(dtype: type[np.floating]) -> None:
    random = np.random.default_rng(0)
    scores, masks = random.normal(size=(6, 30)).astype(dtype), random.random((20, 30)) < 0.4
    outputs = random.integers(0, 8, (20, 6)).astype(dtype)  # with ties
    expected = []
    for query in range(6):
        summed = [sum(float(scores[query, row]) for row in range(30) if mask[row]) for mask in masks]
        expected.append(spearmanr(summed, outputs[:, query]).statistic)
    np.testing.assert_allclose(lds(scores, masks, outputs), expected, atol=1e-12)


def test_an_additive_world_is_predicted_and_its_negative_is_not() -> None:
    random = np.random.default_rng(1)
    effects, masks = random.normal(size=(3, 40)), half_masks(25, 40, 0)
    np.testing.assert_allclose(lds(effects, masks, masks @ effects.T), 1)
    np.testing.assert_allclose(lds(-effects, masks, masks @ effects.T), -1)


def test_what_is_constant_over_subsets_scores_zero() -> None:
    masks = half_masks(12, 200, 0)
    scores = np.stack([np.full(200, 0.1), np.arange(200.0), np.zeros(200)])
    rounding = (scores @ masks.T)[0] - 10  # halves of equal rows sum alike, up to this
    outputs = np.random.default_rng(0).normal(size=(12, 3))
    outputs[:, 0] = rounding * 1e12
    assert np.ptp(outputs[:, 0]) > 0
    outputs[:, 1] = 0.7
    assert lds(scores, masks, outputs).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [10, 11])
def test_half_masks_hold_half_the_rows_each_and_follow_their_seed(rows: int) -> None:
    masks = half_masks(40, rows, 3)
    assert masks.shape == (40, rows) and masks.dtype == np.bool_
    assert (masks.sum(1) == 5).all()
    assert np.array_equal(masks, half_masks(40, rows, 3)) and not np.array_equal(masks, half_masks(40, rows, 4))
    assert len({mask.tobytes() for mask in masks}) > 35
    assert 0.3 < masks.mean(0).min() < masks.mean(0).max() < 0.7, "every row has the same chance"


@pytest.mark.parametrize(
    "shapes",
    [((2, 5), (4, 6), (4, 2)), ((2, 5), (4, 5), (4, 3)), ((2, 5), (3, 5), (4, 2)), ((2, 5), (2, 5), (2, 2)), ((5,), (4, 5), (4, 2))],
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    scores, masks, outputs = shapes
    message = re.escape(f"lds: scores {scores}, masks {masks} of bool, outputs {outputs}; expected (queries, rows)")
    with pytest.raises(DataError, match=message):
        lds(np.zeros(scores), np.zeros(masks, dtype=bool), np.zeros(outputs))


def test_masks_of_places_are_refused() -> None:
    with pytest.raises(DataError, match="of int64"):
        lds(np.zeros((2, 5)), np.zeros((4, 5), dtype=np.int64), np.zeros((4, 2)))
