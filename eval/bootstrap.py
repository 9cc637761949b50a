"""Intervals and paired differences by bootstrap: what is resampled is the same for every method.

A figure is a mean over units (queries, or rows in detection) and over student seeds. A draw resamples both, the units within
their fold. Draw d uses the same units for every method, so that the difference of two methods' draws is the paired bootstrap
of their difference. With few seeds the share of their spread in an interval is understated by (S - 1) / S: read the seeds too.

D draws, S seeds, U units.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.uint8]


@dataclass(frozen=True)
class Estimate:
    """A figure, its bootstrap draws, and what they were taken over."""

    value: float
    draws: Array
    """(D,)"""
    n: int
    """units that were measured"""
    seeds: tuple[float, ...]
    """the figure of each student seed"""

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % percentile interval."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much larger one figure is than another, on the same resamples."""

    value: float
    low: float
    high: float
    p: float
    """two-sided bootstrap p-value of no difference, at least 2 / (D + 1)"""


def difference(first: Estimate, second: Estimate) -> Difference:
    """Return `first - second` with its paired 95 % interval; both must come from the same `Resampler` and units."""
    gap = first.draws - second.draws
    low, high = np.quantile(gap, [0.025, 0.975])
    # the share of draws on the other side of 0, the observed figure counted as one of them (Davison & Hinkley 1997, 4.2.5)
    tail = (1 + min((gap <= 0).sum(), (gap >= 0).sum())) / (len(gap) + 1)
    return Difference(first.value - second.value, float(low), float(high), float(min(1.0, 2 * tail)))


@dataclass(frozen=True)
class Resampler:
    """Seeded resamples by name: the same name and size, the same draws."""

    draws: int
    seed: int
    _known: dict[tuple[str, int], Counts] = field(default_factory=dict, repr=False, compare=False)

    def counts(self, name: str, size: int) -> Counts:
        """Return how often each of `size` units is drawn, `(D, size)`; every draw takes `size` of them with replacement."""
        if (name, size) not in self._known:
            random, shares = self._random(name), np.full(size, 1 / size)
            # one draw at a time into bytes: a unit is drawn once on average, and for many rows int64 would fill the memory
            self._known[name, size] = np.stack([random.multinomial(size, shares).astype(np.uint8) for _ in range(self.draws)])
        return self._known[name, size]

    def stratified(self, name: str, positive: NDArray[np.bool_]) -> Counts:
        """Return counts `(D, rows)` that resample positives and negatives apart, so that every draw has the same base rate."""
        counts = np.empty((self.draws, len(positive)), np.uint8)
        for side, rows in (("positive", positive), ("negative", ~positive)):
            counts[:, rows] = self.counts(f"{name}:{side}", int(rows.sum()))
        return counts

    def over_seeds(self, figures: Sequence[float], draws: Array, n: int) -> Estimate:
        """Average over seeds: figures `(S,)`, draws `(S, D)`; each draw resamples the seeds too."""
        count = len(figures)
        chosen = self._random("seeds").integers(count, size=(self.draws, count))  # (D, S)
        mixed = draws[chosen, np.arange(self.draws)[:, None]].mean(axis=1)
        return Estimate(float(np.mean(figures)), mixed, n, tuple(float(figure) for figure in figures))

    def mean(self, name: str, values: Sequence[Array]) -> Estimate | None:
        """Average values over units and seeds.

        Args:
            name: of the units.
            values: by fold `(S, U)`; NaN where a unit has no such figure.

        Returns:
            None when no unit has a figure.
        """
        total, weight = 0.0, 0.0  # broadcast to (S, D)
        for fold, found in enumerate(values):
            if not found.shape[1]:
                continue
            counts = self.counts(f"{name}:{fold}", found.shape[1]).astype(np.float64)
            total = total + np.nan_to_num(found) @ counts.T
            weight = weight + np.isfinite(found) @ counts.T
        every = np.concatenate(list(values), axis=1)
        if not np.isfinite(every).any(axis=1).all():
            return None
        # a draw may miss the only units that have a figure: it then says what the whole sample does
        figures = np.nanmean(every, axis=1)
        draws = np.where(weight > 0, total / np.maximum(weight, 1), figures[:, None])
        return self.over_seeds(list(figures), draws, int(np.isfinite(every[0]).sum()))

    def _random(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])
