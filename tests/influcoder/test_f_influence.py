"""The truth here: the definitions in plain loops, batches drawn by the thousand, SciPy's t-test, every resample of a block bootstrap."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from influcoder.errors import DataError
from influcoder.influence.f_influence import (
    Composition,
    Recording,
    aggregate,
    calibrate,
    compose,
    f_influence,
    group_sums,
    step_influence,
    trade_off,
)

Array = NDArray[np.float64]
COMPOSITIONS = get_args(Composition)


def make_recording(steps: int = 12, rows: int = 30, seed: int = 0, share: float = 0.25) -> Recording:
    """Return heavy-tailed products whose size falls along the run, at changing learning rates."""
    source = np.random.default_rng(seed)
    products = (source.standard_t(3, (steps, rows)) + source.normal(size=rows)) * np.geomspace(8, 0.5, steps)[:, None] + 0.3
    return Recording(
        products=products, learning_rates=np.linspace(0.3, 0.01, steps), batch_size=6, population=3 * rows, recorded_share=share
    )


def slow_mu(recording: Recording, composition: str) -> list[float]:
    """Return mu of every row as the module's docstring defines it, a number at a time."""
    batch, n, steps = recording.batch_size, recording.population, len(recording.products)
    everything = math.sqrt(1 / recording.recorded_share)
    found = []
    for row in range(recording.products.shape[1]):
        shifts, noises = [], []
        for rate, s in zip(recording.learning_rates, recording.products, strict=True):
            values = [float(value) for value in s]
            if composition == "signed_squares":
                mean, sd = sum(values) / len(values), float(np.std(s))
                z = [(value - mean) / sd for value in values]
                values = [value * abs(value) for value in z]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            shifts.append(rate * (values[row] - mean) / n)
            noises.append(rate * math.sqrt(variance / batch))
        if composition == "pooled":
            found.append(everything * sum(shifts) / math.sqrt(sum(noise**2 for noise in noises)))
        else:
            found.append(everything * sum(shift / noise for shift, noise in zip(shifts, noises, strict=True)) / math.sqrt(steps))
    return found


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_mu_is_what_is_written(composition: Composition) -> None:
    recording = make_recording()
    found = f_influence(recording, composition)
    np.testing.assert_allclose(found.mu, slow_mu(recording, composition), rtol=1e-10)
    np.testing.assert_allclose(step_influence(recording, composition).sum(0), found.mu, rtol=1e-12)


def test_with_one_noise_for_all_mu_is_an_affine_map_of_tracin() -> None:
    recording = make_recording(rows=200)
    tracin = recording.learning_rates @ recording.products
    mu = f_influence(recording, "pooled").mu
    slope, level = np.polyfit(tracin, mu, 1)
    np.testing.assert_allclose(mu, slope * tracin + level, atol=1e-12 * np.abs(mu).max())
    assert slope > 0 and np.array_equal(np.argsort(mu), np.argsort(tracin))
    for composition in ("standardised", "signed_squares"):  # these do rank otherwise
        assert stats.spearmanr(f_influence(recording, composition).mu, tracin)[0] < 0.99


def test_the_scale_is_that_of_batches_drawn_with_and_without_the_row() -> None:
    source = np.random.default_rng(3)
    steps, rows, batch, draws = 20, 100, 5, 20_000
    products = source.normal(size=(steps, rows)) + np.linspace(-4, 4, rows)
    rates = np.linspace(1.0, 0.4, steps)
    recording = Recording(products=products, learning_rates=rates, batch_size=batch, population=rows)
    groups = [[rows - 1, rows - 2, rows - 3], [0, 1]]
    predicted = f_influence(recording, "pooled", groups=groups).mu
    for group, mu in zip(groups, predicted, strict=True):
        others = np.delete(np.arange(rows), group)
        with_group, without = (
            sum(rate * s[source.choice(kept, (draws, batch))].mean(1) for rate, s in zip(rates, products, strict=True))
            for kept in (np.arange(rows), others)
        )
        simulated = (np.mean(with_group) - np.mean(without)) / np.std(with_group)
        assert mu * rows / (rows - len(group)) == pytest.approx(simulated, abs=0.03)  # to first order in the group's share
    assert predicted[0] > 0.15 and predicted[1] < -0.1


def test_steps_that_were_not_recorded_are_made_up_for() -> None:
    whole = make_recording(steps=1, share=1.0)
    many = Recording(products=np.repeat(whole.products, 8, 0), learning_rates=np.ones(8), batch_size=6, population=90)
    some = Recording(products=many.products[::2], learning_rates=np.ones(4), batch_size=6, population=90, recorded_share=0.5)
    for composition in COMPOSITIONS:
        np.testing.assert_allclose(f_influence(some, composition).mu, f_influence(many, composition).mu, rtol=1e-12)
        np.testing.assert_allclose(f_influence(many, composition).mu, math.sqrt(8) * f_influence(whole, composition).mu, rtol=1e-12)


@pytest.mark.parametrize("composition", ["standardised", "signed_squares"])
def test_a_loud_step_counts_as_a_quiet_one(composition: Composition) -> None:
    recording = make_recording()
    loud = Recording(
        products=recording.products * np.where(np.arange(12) == 4, 100, 1)[:, None], learning_rates=recording.learning_rates,
        batch_size=6, population=90, recorded_share=0.25,
    )  # fmt: skip
    np.testing.assert_allclose(f_influence(loud, composition).mu, f_influence(recording, composition).mu, rtol=1e-9)
    assert not np.allclose(f_influence(loud, "pooled").mu, f_influence(recording, "pooled").mu, rtol=0.1)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_each_query_is_a_target_of_its_own(composition: Composition) -> None:
    recordings = [make_recording(seed=seed) for seed in range(3)]
    stacked = Recording(
        products=np.stack([one.products for one in recordings], axis=2), learning_rates=recordings[0].learning_rates, batch_size=6,
        population=90, recorded_share=0.25,
    )  # fmt: skip
    found = f_influence(stacked, composition, groups=[[0, 5], [7]])
    for query, recording in enumerate(recordings):
        alone = f_influence(recording, composition, groups=[[0, 5], [7]])
        for name in ("mu", "lower", "upper", "p_value"):
            np.testing.assert_allclose(getattr(found, name)[:, query], getattr(alone, name), rtol=1e-10)


def test_a_query_set_is_the_mean_or_the_weighted_sum_of_its_queries() -> None:
    products = np.random.default_rng(0).normal(size=(4, 5, 3))
    np.testing.assert_allclose(aggregate(products), products.mean(2))
    np.testing.assert_allclose(aggregate(products, [1, -1, 0.5]), products[..., 0] - products[..., 1] + 0.5 * products[..., 2])


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_a_group_is_the_sum_of_its_rows_and_all_rows_together_are_nothing(composition: Composition) -> None:
    recording = make_recording()
    rows = f_influence(recording, composition).mu
    found = f_influence(recording, composition, groups=[[3, 8, 9], np.arange(30)])
    assert found.mu[0] == pytest.approx(rows[[3, 8, 9]].sum())
    assert found.mu[1] == pytest.approx(0, abs=1e-12)
    assert group_sums(recording.products, [[1], [2, 4]]).shape == (12, 2)


@pytest.mark.parametrize("blocks", [2, 3, 4, 6])
def test_the_interval_is_students_of_the_blocks(blocks: int) -> None:
    contributions = np.random.default_rng(1).normal(0.2, 1, (12, 40))
    found = compose(contributions, blocks=blocks, confidence=0.9)
    sums = np.stack([part.sum(0) for part in np.split(contributions, blocks)])
    test = stats.ttest_1samp(sums, 0)
    interval = test.confidence_interval(0.9)
    np.testing.assert_allclose(found.lower, blocks * interval.low, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.upper, blocks * interval.high, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.p_value, test.pvalue, rtol=1e-8)
    assert np.array_equal(found.distinguishable, found.p_value < 0.1) and 0 < found.distinguishable.mean() < 1


def test_the_variance_is_that_of_every_resample_of_blocks() -> None:
    contributions = np.random.default_rng(2).normal(size=(14, 3))  # blocks of 4, 3, 4, 3
    edges = [0, 4, 7, 10, 14]
    found = compose(contributions, blocks=4)
    sums = np.stack([contributions[start:end].sum(0) for start, end in itertools.pairwise(edges)])
    every = np.stack([sums[list(drawn)].sum(0) for drawn in itertools.product(range(4), repeat=4)])
    reach = stats.t.ppf(0.975, 3) * math.sqrt(4 / 3) * every.std(0)
    np.testing.assert_allclose(found.upper - found.mu, reach, rtol=1e-10)
    np.testing.assert_allclose(found.mu - found.lower, reach, rtol=1e-10)


def test_intervals_of_nothing_hold_nothing_and_of_something_do_not() -> None:
    source = np.random.default_rng(0)
    noise = source.normal(size=(60, 4000))
    for step in range(1, 60):  # neighbours hang together
        noise[step] += 0.5 * noise[step - 1]
    assert compose(noise).distinguishable.mean() == pytest.approx(0.05, abs=0.015)
    assert compose(noise, blocks=60).distinguishable.mean() > 0.15, "blocks are needed"
    assert compose(noise + 1.5).distinguishable.mean() > 0.9
    assert (compose(noise - 1.5).upper < 0).mean() > 0.9


def test_one_recorded_step_distinguishes_nothing() -> None:
    found = f_influence(make_recording(steps=1))
    assert not found.distinguishable.any() and np.isinf(found.upper - found.lower).all() and (found.p_value == 1).all()


def test_a_step_at_which_all_rows_are_alike_adds_nothing() -> None:
    recording = make_recording()
    recording.products[5] = 0.7
    for composition in COMPOSITIONS:
        assert (step_influence(recording, composition)[5] == 0).all()
        assert np.isfinite(f_influence(recording, composition).mu).all()
    nothing = compose(np.zeros((6, 2)))
    assert (nothing.p_value == 1).all() and not nothing.distinguishable.any()


def test_the_trade_off_is_that_of_two_gaussians() -> None:
    source = np.random.default_rng(0)
    null = np.sort(source.normal(size=400_000))
    for mu in (-1.0, 0.0, 0.5, 2.0):
        other = np.sort(source.normal(mu, 1, 400_000))
        for alpha in (0.01, 0.1, 0.5, 0.9):
            threshold = np.quantile(null, 1 - alpha)
            assert trade_off(mu, alpha) == pytest.approx(np.searchsorted(other, threshold) / len(other), abs=5e-3)
    alphas = np.linspace(0, 1, 11)
    np.testing.assert_allclose(trade_off(0, alphas), 1 - alphas, atol=1e-12)
    assert trade_off([[1.0], [2.0]], alphas).shape == (2, 11)
    np.testing.assert_allclose(trade_off(1.3, 0.2), stats.norm.cdf(stats.norm.ppf(0.8) - 1.3))
    np.testing.assert_allclose(stats.norm.ppf(1 - 0.2) - stats.norm.ppf(trade_off(1.3, 0.2)), 1.3)  # definition 2.5 the other way


def test_calibration_is_weighted_least_squares() -> None:
    source = np.random.default_rng(0)
    predicted, errors = source.normal(size=8), source.uniform(0.1, 2, 8)
    measured = 0.4 * predicted + errors * source.normal(size=8) / 10
    expected = np.linalg.lstsq((predicted / errors)[:, None], measured / errors, rcond=None)[0][0]
    assert calibrate(predicted, measured, errors) == pytest.approx(expected)
    with pytest.raises(DataError, match=r"factor of -0\.4\d*; expected above 0"):
        calibrate(-predicted, measured, errors)


def test_another_scale_moves_mu_and_interval_alike() -> None:
    found = f_influence(make_recording())
    scaled = found.scaled(0.25)
    for name in ("mu", "lower", "upper"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(found, name) / 4)
    assert np.array_equal(scaled.p_value, found.p_value) and np.array_equal(scaled.distinguishable, found.distinguishable)


def test_what_is_no_recording_is_refused() -> None:
    products, rates = np.ones((3, 4)), np.ones(3)
    for wrong in (np.ones(3), np.ones((3, 1)), np.ones((2, 4)), np.ones((3, 4, 2, 1))):
        with pytest.raises(DataError, match="expected \\(steps, rows\\) or"):
            Recording(products=wrong, learning_rates=rates, batch_size=1, population=4)
    broken = products.copy()
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match="the product of row 2 at recorded step 1 is not finite"):
        Recording(products=broken, learning_rates=rates, batch_size=1, population=4)
    for batch, population, share in ((0, 4, 1.0), (1, 0, 1.0), (1, 4, 0.0), (1, 4, 1.5)):
        with pytest.raises(DataError, match="expected above 0, above 0, in"):
            Recording(products=products, learning_rates=rates, batch_size=batch, population=population, recorded_share=share)
    for blocks, confidence in ((0, 0.95), (3, 1.0), (3, 0.0)):
        with pytest.raises(DataError, match="expected at least 1, in"):
            compose(products, blocks=blocks, confidence=confidence)
