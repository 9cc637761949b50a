"""From a student's score back to mu: its line, its doubt, and which rows it can tell from none.

A student of an f-influence teacher ranks; what its scores say of mu is measured on rows that it was not fitted on. There mu is predicted by a
line, and deviates from it by what the student misses *and* by what the teacher's own estimate of mu may be wrong:

    mu = intercept + slope score +- 1.96 sqrt(mean (mu^ - line)^2 + mean sd(mu^)^2)

The first term holds the teacher's error once already, so the interval errs on the wide side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influcoder.errors import DataError, RunError

Array = NDArray[np.floating]
NORMAL_95 = 1.959963984540054
FIDELITY_FILE = "fidelity.json"


@dataclass(frozen=True, kw_only=True)
class MuScale:
    """What a student's scores say of mu."""

    slope: float
    """mu a unit of score"""
    intercept: float
    """mu at a score of 0"""
    deviation: float
    """of mu from the line, teacher's own doubt included, 0 or more"""

    def intervals(self, scores: Array) -> dict[str, NDArray[Any]]:
        """Return mu, mu_lower, mu_upper and distinguishable (the interval leaves out 0) of scores, each of their shape."""
        mu = self.intercept + self.slope * scores.astype(np.float64)
        half = NORMAL_95 * self.deviation
        return {"mu": mu, "mu_lower": mu - half, "mu_upper": mu + half, "distinguishable": np.abs(mu) > half}


def fit_mu_scale(scores: Array, mu: Array, doubt: Array) -> MuScale:
    """Fit the line by least squares.

    Args:
        scores: of the student, on pairs that it was not fitted on, any shape.
        mu: the teacher's, of the same pairs.
        doubt: the teacher's standard deviation of each mu.

    Raises:
        DataError: when shapes differ, or there are fewer than three pairs.
    """
    if not scores.shape == mu.shape == doubt.shape or scores.size < 3:
        raise DataError(f"mu: scores {scores.shape}, mu {mu.shape}, doubt {doubt.shape}; expected the same shape, at least three pairs")
    x, y = scores.astype(np.float64).ravel(), mu.astype(np.float64).ravel()
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred)) if (centred != 0).any() else 0.0
    intercept = float(y.mean() - slope * x.mean())
    missed = np.mean((y - intercept - slope * x) ** 2)
    return MuScale(slope=slope, intercept=intercept, deviation=float(np.sqrt(missed + np.mean(doubt.astype(np.float64) ** 2))))


def load_mu_scale(encoder: Path) -> MuScale | None:
    """Return what an encoder folder says of mu; None when its teacher was of another method, or nothing is said.

    Raises:
        RunError: when `fidelity.json` is not readable.
    """
    path = encoder / FIDELITY_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["validation"].get("mu")
        return None if found is None else MuScale(**{name: float(value) for name, value in found.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not readable ({error}); expected what a student run says of itself; distil again") from error
