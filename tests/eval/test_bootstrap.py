from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest, ttest_rel

from eval.bootstrap import Difference, Estimate, Resampler, difference

Vector = NDArray[np.float64]


def mean(resampler: Resampler, *values: Vector, name: str = "queries") -> Estimate:
    """Average values by fold; one seed's may come without the seeds' axis."""
    found = resampler.mean(name, [np.atleast_2d(fold) for fold in values])
    assert found is not None
    return found


def width(found: Estimate | Difference) -> float:
    low, high = found.interval if isinstance(found, Estimate) else (found.low, found.high)
    return high - low


def test_the_same_name_means_the_same_draws_whoever_asks_first() -> None:
    first, second = Resampler(30, seed=4), Resampler(30, seed=4)
    expected = {name: first.counts(name, 20) for name in ("queries:0", "queries:1", "poison")}
    for name in reversed(expected):
        np.testing.assert_array_equal(second.counts(name, 20), expected[name])
        np.testing.assert_array_equal(first.counts(name, 20), expected[name])
    assert not (expected["queries:0"] == expected["queries:1"]).all()
    assert not (Resampler(30, seed=5).counts("poison", 20) == expected["poison"]).all()


@pytest.mark.parametrize("size", [1, 2, 50])
def test_a_draw_takes_as_many_units_as_there_are(size: int) -> None:
    counts = Resampler(400, 0).counts("units", size)
    assert counts.shape == (400, size)
    assert (counts.sum(axis=1) == size).all() and (counts >= 0).all() and (counts == counts.round()).all()
    # a unit's count is binomial: mean 1, variance 1 - 1 / size
    np.testing.assert_allclose(counts.mean(), 1, atol=1e-6)
    np.testing.assert_allclose(counts.var(), 1 - 1 / size, atol=0.05)


def test_stratified_draws_keep_the_base_rate() -> None:
    positive = np.random.default_rng(0).random(60) < 0.2
    counts = Resampler(50, 0).stratified("poison", positive)
    assert (counts[:, positive].sum(axis=1) == positive.sum()).all()
    assert (counts[:, ~positive].sum(axis=1) == (~positive).sum()).all()
    assert len(np.unique(counts, axis=0)) == 50


def test_mean_has_the_interval_of_normal_theory() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, size=400)
    found = mean(Resampler(4000, 0), values)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), abs=0.1 * error)
    assert found.n == 400
    assert found.seeds == (found.value,)
    few = mean(Resampler(4000, 0), values[:25])
    assert width(few) == pytest.approx(2 * 1.96 * values[:25].std() / 5, rel=0.1)


def test_units_without_a_figure_are_left_out_of_the_mean_and_of_every_draw() -> None:
    rng = np.random.default_rng(2)
    folds = [rng.normal(size=(2, 12)), rng.normal(size=(2, 7))]
    for fold, missing in zip(folds, (5, 3), strict=True):
        fold[:, :missing] = np.nan
    resampler = Resampler(40, 3)
    found = mean(resampler, *folds)
    every = np.concatenate(folds, axis=1)
    by_seed = [np.mean([value for value in seed if np.isfinite(value)]) for seed in every]
    assert found.seeds == pytest.approx(by_seed)
    assert found.value == pytest.approx(np.mean(by_seed))
    assert found.n == 7 + 4
    # each draw: units repeated as often as they are drawn, then the mean of two seeds drawn with replacement
    possible = []
    for draw in range(40):
        taken = [
            np.repeat(fold, resampler.counts(f"queries:{number}", fold.shape[1])[draw].astype(int), axis=1)
            for number, fold in enumerate(folds)
        ]
        first, second = (float(np.nanmean(seed)) for seed in np.concatenate(taken, axis=1))
        possible.append([first, (first + second) / 2, second])
    nearest = np.abs(found.draws[:, None] - np.array(possible))
    assert nearest.min(axis=1) == pytest.approx(0, abs=1e-12)
    assert set(nearest.argmin(axis=1)) == {0, 1, 2}


def test_a_draw_without_any_unit_that_has_a_figure_says_what_the_sample_does() -> None:
    values = np.full(10, np.nan)
    values[3] = 0.7
    found = mean(Resampler(200, 0), values)
    assert (Resampler(200, 0).counts("queries:0", 10)[:, 3] == 0).any()
    assert found.draws == pytest.approx(0.7)
    assert found.n == 1


def test_folds_are_pooled_units_of_a_fold_are_drawn_within_it() -> None:
    found = mean(Resampler(300, 0), np.zeros(30), np.ones(10), np.zeros(0))
    assert found.value == pytest.approx(0.25)
    assert found.draws == pytest.approx(0.25)


def test_without_any_figure_there_is_no_estimate() -> None:
    resampler = Resampler(5, 0)
    assert resampler.mean("queries", [np.full((1, 4), np.nan), np.full((1, 3), np.nan)]) is None
    assert resampler.mean("queries", [np.zeros((1, 0))]) is None
    assert resampler.mean("queries", [np.array([[1.0, 2.0], [np.nan, np.nan]])]) is None, "a seed is missing"


def test_the_spread_of_seeds_widens_the_interval() -> None:
    values = np.random.default_rng(3).normal(size=(1, 200))
    offsets = np.array([[-0.5], [0.0], [0.8]])
    resampler = Resampler(2000, 0)
    alone, alike, apart = (mean(resampler, found) for found in (values, values + 0 * offsets, values + offsets))
    assert apart.value == pytest.approx(values.mean() + 0.1)
    assert apart.seeds == pytest.approx(values.mean() + offsets.ravel())
    np.testing.assert_allclose(alike.draws, alone.draws, atol=1e-12)
    # variances add: that of the units, and that of the mean of three seeds
    expected = np.sqrt(alone.draws.var() + offsets.var() / 3)
    assert apart.draws.std() == pytest.approx(expected, rel=0.05)
    assert width(apart) > 2 * width(alone)


def test_over_seeds_averages_seeds_and_mixes_draws_of_the_same_resample() -> None:
    draws = np.stack([np.arange(50.0), 1000 + np.arange(50.0)])
    found = Resampler(50, 0).over_seeds([1.0, 3.0], draws, 9)
    assert (found.value, found.seeds, found.n) == (2.0, (1.0, 3.0), 9)
    levels = found.draws - np.arange(50)
    assert set(levels) == {0, 500, 1000}


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(4)
    level = rng.normal(size=150)
    first, second = level + 0.05 * rng.normal(size=150) + 0.1, level + 0.05 * rng.normal(size=150)
    resampler = Resampler(1000, 0)
    paired = difference(mean(resampler, first), mean(resampler, second))
    unpaired = difference(mean(resampler, first), mean(resampler, second, name="other"))
    assert paired.value == pytest.approx((first - second).mean())
    assert 10 * width(paired) < width(unpaired)
    assert paired.low > 0 and paired.p < 0.01
    assert unpaired.low < 0 < unpaired.high and unpaired.p > 0.05
    # the same as the bootstrap of the differences themselves
    assert (paired.low, paired.high) == pytest.approx(mean(resampler, first - second).interval)


def test_a_difference_changes_its_sign_with_the_order() -> None:
    rng = np.random.default_rng(5)
    resampler = Resampler(500, 0)
    first, second = mean(resampler, rng.normal(size=40)), mean(resampler, rng.normal(size=40))
    one, other = difference(first, second), difference(second, first)
    assert (one.value, one.low, one.high, one.p) == pytest.approx((-other.value, -other.high, -other.low, other.p))


def test_identical_figures_do_not_differ() -> None:
    found = mean(Resampler(200, 0), np.random.default_rng(6).normal(size=(2, 30)))
    assert difference(found, found) == Difference(0.0, 0.0, 0.0, 1.0)


def test_the_p_value_is_never_zero() -> None:
    resampler = Resampler(99, 0)
    assert difference(mean(resampler, np.ones(20)), mean(resampler, np.zeros(20))).p == pytest.approx(2 / 100)


def test_the_p_value_is_uniform_when_there_is_no_difference() -> None:
    rng = np.random.default_rng(7)
    resampler = Resampler(400, 0)
    level = rng.normal(size=(500, 60))
    pairs = level + rng.normal(size=(500, 60)), level + rng.normal(size=(500, 60))
    found = [difference(mean(resampler, mine), mean(resampler, theirs)).p for mine, theirs in zip(*pairs, strict=True)]
    assert kstest(found, "uniform").pvalue > 0.01
    assert 0.03 < np.mean(np.array(found) < 0.05) < 0.08


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, -0.25])
def test_the_p_value_is_near_that_of_the_paired_t_test(shift: float) -> None:
    rng = np.random.default_rng(8)
    level = rng.normal(size=120)
    first, second = level + rng.normal(size=120) + shift, level + rng.normal(size=120)
    resampler = Resampler(5000, 0)
    found = difference(mean(resampler, first), mean(resampler, second))
    assert found.p == pytest.approx(ttest_rel(first, second).pvalue, abs=0.03)
