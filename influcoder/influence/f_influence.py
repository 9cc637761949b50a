"""f-influence: how well can one tell a training with a row from one without it? Signed mu of rows and groups, from one recorded run.

Panda et al., "f-INE", arXiv 2510.10510: S has f-influence T(P, Q), the trade-off function between the laws P of what is trained with S and
Q without (definition 2.4); Gaussian influence is `T(a) = Phi(Phi^-1(1 - a) - mu)`, one signed mu for every level a (definition 2.5).
Their pseudo-code was not public to us: this implements their definitions with an estimator of our own.

At a recorded step with learning rate l let `s_i = <g_i, v>` (g_i of row i's loss, v of the target's) for every row, drawn or not. A batch
of B of the n rows lowers the target's loss by `l mean_B(s)`, a statistic with noise `sigma = l sd(s) / sqrt(B)`; that row i is among
the n and not one more of the others moves its mean by `Delta_i = l (s_i - mean s) / n`. Over T recorded of T_all steps

    pooled          mu_i = sqrt(T_all / T) sum_t Delta_i / sqrt(sum_t sigma^2)       one noise for all: ranks as TracIn's `sum_t l s_i` does
    standardised    mu_i = sqrt(T_all / T) sum_t (Delta_i / sigma) / sqrt(T)         each step's own: none drowns the others
    signed_squares  the same of the statistic `mean_B(z |z|)`, z = (s - mean s) / sd(s): rows whose products are large count for more

Positive: training on the row (group) lowers the target's loss. Groups: sums over their rows. The scale is that of a tester who sees
nothing but the sum over all steps of independent batches; `calibrate` corrects it by a second stage (`two_stage.py`).

Legend: T recorded steps, N rows, Q queries, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from influcoder.errors import DataError

Array = NDArray[np.float64]
Composition = Literal["pooled", "standardised", "signed_squares"]
BLOCKS = 4
"""of neighbouring steps, resampled together: few, since what a row does drifts slowly along a run; measured in benchmarks/f_influence.py"""

ROUNDING = 1e-12
"""of the largest product of a step: differences below it are none"""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What was recorded of a training."""

    products: Array
    """(T, N) or (T, N, Q): <gradient of the row, gradient of the query> at each recorded step, of every row or a sample of them"""
    learning_rates: Array
    """(T,)"""
    batch_size: float
    """rows a step, B"""
    population: int
    """rows that batches are drawn from, n"""
    recorded_share: float = 1.0
    """T / T_all, in (0, 1]"""

    def __post_init__(self) -> None:
        shape = self.products.shape
        if self.products.ndim not in (2, 3) or shape[1] < 2 or self.learning_rates.shape != shape[:1]:
            raise DataError(
                f"f-influence: products {shape}, learning_rates {self.learning_rates.shape}; expected (steps, rows) or "
                "(steps, rows, queries) with two rows at least, and (steps,)"
            )
        if not np.isfinite(self.products).all():
            step, row = (int(place) for place in np.argwhere(~np.isfinite(self.products))[0][:2])
            raise DataError(f"f-influence: the product of row {row} at recorded step {step} is not finite; leave that step out")
        if not (self.batch_size > 0 and self.population > 0 and 0 < self.recorded_share <= 1):
            raise DataError(
                f"f-influence: batch_size {self.batch_size}, population {self.population}, recorded_share {self.recorded_share}; "
                "expected above 0, above 0, in (0, 1]"
            )


@dataclass(frozen=True)
class Influence:
    """Signed mu of rows or groups, each (N,), (G,), (N, Q) or (G, Q)."""

    mu: Array
    lower: Array
    upper: Array
    """interval of mu; infinite where one block was recorded"""
    p_value: Array
    """of mu = 0, two-sided, in [0, 1]"""

    @property
    def distinguishable(self) -> NDArray[np.bool_]:
        """Whether the interval leaves out 0: whether the sign is known."""
        return (self.lower > 0) | (self.upper < 0)

    def scaled(self, factor: float) -> Influence:
        """Return the influence on another scale, as `calibrate` finds it; factor > 0."""
        return Influence(self.mu * factor, self.lower * factor, self.upper * factor, self.p_value)


def aggregate(products: Array, weights: ArrayLike | None = None) -> Array:
    """Return the products with a query set, (T, N), of those with its queries (T, N, Q); weights (Q,), by default 1 / Q each.

    The target's gradient is the weighted sum of its queries'; +1 for wanted behaviour and -1 for contrast makes their difference the target.
    """
    count = products.shape[2]
    result: Array = products @ (np.full(count, 1 / count) if weights is None else np.asarray(weights, np.float64))
    return result


def step_influence(recording: Recording, composition: Composition = "standardised") -> Array:
    """Return what each step adds to mu, of the products' shape: the sum over steps is mu."""
    centred = _centred(recording.products)
    scale = np.sqrt(recording.batch_size / recording.recorded_share) / recording.population
    if composition == "pooled":
        rates = recording.learning_rates.reshape(-1, *[1] * (centred.ndim - 1))
        shift, noise = rates * centred, np.sqrt(((rates * centred) ** 2).mean(axis=1).sum(axis=0))
        pooled: Array = scale * _ratio(shift, noise)
        return pooled
    if composition == "signed_squares":
        centred = _centred(centred * np.abs(centred))  # of z |z|, but for a factor that the next line takes out
    standardised = _ratio(centred, np.sqrt((centred**2).mean(axis=1, keepdims=True)))
    result: Array = scale / np.sqrt(len(centred)) * standardised
    return result


def group_sums(contributions: Array, groups: Sequence[Sequence[int] | NDArray[np.integer]]) -> Array:
    """Return the contributions (T, G[, Q]) of groups of rows, given by position, from those of rows (T, N[, Q])."""
    return np.stack([contributions[:, np.asarray(group, np.int64)].sum(axis=1) for group in groups], axis=1)


def compose(contributions: Array, *, blocks: int = BLOCKS, confidence: float = 0.95) -> Influence:
    """Return mu, the sum over steps, with its interval from a block bootstrap over steps.

    The T steps are cut into blocks of neighbours, as equal as can be; mu* adds up as many blocks drawn with replacement. The variance of
    such a sum is known without drawing; with the small-sample factor k / (k - 1) and Student's t of k - 1 degrees for k blocks,
    the interval is `mu +- t sqrt(k / (k - 1)) sd(mu*)`. The noise scale is taken as known.

    Args:
        contributions: (T, ...) of `step_influence` or `group_sums`.
        blocks: k, at most T are made; fewer blocks, wider intervals that see slower drifts.
        confidence: in (0, 1).

    Raises:
        DataError: on less than one block, or a confidence outside (0, 1).
    """
    if blocks < 1 or not 0 < confidence < 1:
        raise DataError(f"f-influence: blocks {blocks}, confidence {confidence}; expected at least 1, in (0, 1)")
    mu, count = contributions.sum(axis=0), min(blocks, len(contributions))
    if count < 2:
        endless = np.full(mu.shape, np.inf)
        return Influence(mu, -endless, endless, np.ones(mu.shape))
    edges = np.linspace(0, len(contributions), count + 1).round().astype(int)[:-1]
    error = np.sqrt(count * np.add.reduceat(contributions, edges, axis=0).var(axis=0, ddof=1))
    reach = stdtrit(count - 1, (1 + confidence) / 2) * error
    p_value: Array = 2 * stdtr(count - 1, -np.abs(_ratio(mu, error, empty=np.where(mu == 0, 0.0, np.inf))))
    return Influence(mu, mu - reach, mu + reach, p_value)


def f_influence(
    recording: Recording,
    composition: Composition = "standardised",
    *,
    groups: Sequence[Sequence[int] | NDArray[np.integer]] | None = None,
    blocks: int = BLOCKS,
    confidence: float = 0.95,
) -> Influence:
    """Return the influence of every row, or of groups of rows given by position; see `step_influence` and `compose`."""
    contributions = step_influence(recording, composition)
    return compose(contributions if groups is None else group_sums(contributions, groups), blocks=blocks, confidence=confidence)


def trade_off(mu: ArrayLike, alpha: ArrayLike) -> Array:
    """Return `T(alpha) = Phi(Phi^-1(1 - alpha) - mu)`: the least type-II error of a test "without S" at type-I error alpha, both in [0, 1].

    mu and alpha broadcast. `1 - alpha`, mu = 0, is guessing; below it the two trainings can be told apart. A negative mu lies above it:
    there the test that looks to the other side tells them apart, as one with -mu.
    """
    result: Array = ndtr(-ndtri(np.asarray(alpha, np.float64)) - np.asarray(mu, np.float64))
    return result


def calibrate(predicted: ArrayLike, measured: ArrayLike, errors: ArrayLike) -> float:
    """Return the factor that brings one-run mu (G,) to the scale of a second stage's mu (G,) with standard errors (G,).

    Least squares through the origin, weighted by 1 / error^2.

    Raises:
        DataError: when the two do not agree in sign at all, so that no positive factor fits.
    """
    weights = np.asarray(errors, np.float64) ** -2
    x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    factor = float((weights * x * y).sum() / (weights * x * x).sum())
    if not factor > 0:
        raise DataError(
            f"f-influence: the second stage gives a factor of {factor:.3g}; expected above 0; measure more groups, or stronger ones"
        )
    return factor


def _centred(values: Array) -> Array:
    """Return values (T, N[, Q]) less their mean over rows; exactly 0 where nothing but rounding is left."""
    centred = values - values.mean(axis=1, keepdims=True)
    result: Array = np.where(np.abs(centred) <= ROUNDING * np.abs(values).max(axis=1, keepdims=True), 0.0, centred)
    return result


def _ratio(numerator: Array, denominator: Array, empty: ArrayLike = 0.0) -> Array:
    """Return the quotient; `empty` where the denominator is 0: a step at which all rows are alike tells none apart."""
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, empty)
