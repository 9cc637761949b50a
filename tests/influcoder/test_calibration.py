"""The line against numpy's own fit, and its intervals on pairs that it was not fitted on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from influcoder.calibration import MuScale, fit_mu_scale, load_mu_scale
from influcoder.errors import DataError, RunError


def pairs(count: int, seed: int, teacher: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, the true mu, and a teacher's noisy estimate of it."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(count, 10))
    true = 0.5 + 2.0 * scores + random.normal(size=scores.shape)
    return scores, true, true + teacher * random.normal(size=scores.shape)


def test_the_line_is_that_of_least_squares() -> None:
    scores, _, mu = pairs(50, 0)
    fitted = fit_mu_scale(scores, mu, np.zeros_like(mu))
    slope, intercept = np.polyfit(scores.ravel(), mu.ravel(), 1)
    assert (fitted.slope, fitted.intercept) == pytest.approx((slope, intercept))
    assert fitted.deviation == pytest.approx(np.sqrt(np.mean((mu - intercept - slope * scores) ** 2)))


def test_intervals_hold_mu_of_other_pairs() -> None:
    scores, _, mu = pairs(200, 0)
    fitted = fit_mu_scale(scores, mu, np.full_like(mu, 0.3))
    other, true, _ = pairs(500, 1)
    found = fitted.intervals(other)
    held = ((found["mu_lower"] <= true) & (true <= found["mu_upper"])).mean()
    assert 0.95 <= held < 0.99
    signs = np.sign(found["mu"][found["distinguishable"]]) == np.sign(true[found["distinguishable"]])
    assert 0.2 < found["distinguishable"].mean() < 0.8 and signs.mean() > 0.97


def test_scores_that_say_nothing_distinguish_nothing() -> None:
    mu = np.random.default_rng(0).normal(size=100)
    found = fit_mu_scale(np.ones(100), mu, np.zeros(100)).intervals(np.ones(5))
    assert not found["distinguishable"].any() and found["mu"] == pytest.approx(mu.mean())


def test_an_encoder_says_it_or_not(tmp_path: Path) -> None:
    assert load_mu_scale(tmp_path) is None
    path = tmp_path / "fidelity.json"
    path.write_text(json.dumps({"validation": {"queries": 3}}))
    assert load_mu_scale(tmp_path) is None
    scale = MuScale(slope=2.0, intercept=0.5, deviation=0.1)
    path.write_text(json.dumps({"validation": {"mu": asdict(scale)}}))
    assert load_mu_scale(tmp_path) == scale
    path.write_text(json.dumps({"validation": {"mu": {"slope": 1}}}))
    with pytest.raises(RunError, match=r"fidelity\.json"):
        load_mu_scale(tmp_path)
    with pytest.raises(DataError, match="same shape"):
        fit_mu_scale(np.ones(3), np.ones(3), np.ones(2))
