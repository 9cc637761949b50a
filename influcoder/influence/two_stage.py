"""The second stage of f-influence: mu of a group from trainings with and without it, on models small enough to train often.

The statistic is the target's loss after training, one number a run. Under the null the group was trained on (law P), under the
alternative it was not (Q): Panda et al., arXiv 2510.10510, definitions 2.4 and 2.5. Positive mu: without the group the loss is larger.

    moments     mu = (mean without - mean with) / pooled sd
    thresholds  mu = Phi^-1(1 - alpha) - Phi^-1(beta) at a threshold, alpha and beta its error rates; the median over thresholds

The second needs no Gaussian, but saturates once the two samples part: with K runs no rate below 1 / 2K can be told. Its bounds are those
of white-box privacy audits (Nasr et al., arXiv 2302.07956): Clopper-Pearson limits of both rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri

from influcoder.errors import DataError

LEVELS = (0.1, 0.2, 0.3, 0.5)
"""type-I errors at which thresholds are set"""


@dataclass(frozen=True)
class Estimate:
    """A mu and its interval."""

    mu: float
    lower: float
    upper: float
    """infinite where the samples part"""


def moment_error(mu: float, with_count: int, without_count: int) -> float:
    """Return the standard error of the moment estimate, to first order in 1 / K: of the means, and of the pooled deviation."""
    return float(np.sqrt(1 / with_count + 1 / without_count + mu**2 / (2 * (with_count + without_count - 2))))


def moment_estimate(with_group: ArrayLike, without_group: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Return the moment estimate of mu.

    Args:
        with_group: (K,) losses of the target after trainings on all rows.
        without_group: (K',) after trainings without the group.
        confidence: of the normal interval, in (0, 1).

    Raises:
        DataError: on less than two runs of a kind, or runs that are all alike.
    """
    present, absent = _samples(with_group, without_group)
    freedom = len(present) + len(absent) - 2
    variance = ((len(present) - 1) * present.var(ddof=1) + (len(absent) - 1) * absent.var(ddof=1)) / freedom
    if not variance > 0:
        raise DataError("two-stage test: all runs ended alike; expected runs of different seeds")
    mu = float((absent.mean() - present.mean()) / np.sqrt(variance))
    reach = float(ndtri((1 + confidence) / 2)) * moment_error(mu, len(present), len(absent))
    return Estimate(mu, mu - reach, mu + reach)


def threshold_estimate(
    with_group: ArrayLike, without_group: ArrayLike, confidence: float = 0.95, levels: Sequence[float] = LEVELS
) -> Estimate:
    """Return the median over `levels` of mu at the threshold that with-runs exceed at that rate, and of its Clopper-Pearson bounds.

    Arguments and errors are `moment_estimate`'s. A rate of 0 (1) enters the estimate as 1 / 2K (1 - 1 / 2K).
    """
    present, absent = _samples(with_group, without_group)
    found = []
    for level in levels:
        threshold = np.quantile(present, 1 - level)
        rejected, missed = int((present > threshold).sum()), int((absent <= threshold).sum())
        alpha, beta = clopper_pearson(rejected, len(present), confidence), clopper_pearson(missed, len(absent), confidence)
        rates = (np.clip(count / size, 0.5 / size, 1 - 0.5 / size) for count, size in ((rejected, len(present)), (missed, len(absent))))
        found.append([_mu(*rates), _mu(alpha[1], beta[1]), _mu(alpha[0], beta[0])])
    return Estimate(*(float(value) for value in np.median(found, axis=0)))


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact binomial limits of a rate of which `count` of `total` were seen."""
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, 1 - tail))
    return low, high


def _mu(alpha: float, beta: float) -> float:
    return float(-ndtri(alpha) - ndtri(beta))  # Phi^-1(1 - a) = -Phi^-1(a), also where a is tiny


def _samples(with_group: ArrayLike, without_group: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    present, absent = np.asarray(with_group, np.float64), np.asarray(without_group, np.float64)
    if present.ndim != 1 or absent.ndim != 1 or min(len(present), len(absent)) < 2:
        raise DataError(
            f"two-stage test: runs {present.shape} with and {absent.shape} without the group; expected two at least of each, one number a run"
        )
    return present, absent
