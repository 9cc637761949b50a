"""How well scores tell the rows that are to be found from the others: one curve, and the figures that are read off it.

The curve goes through the distinct scores from the best down; rows of equal score enter together, so that no figure depends on
the order of rows, and recall at a share that ends inside a tie is the expected recall under random order. A constant score
is worth the base rate, except by trapezoid: that draws a line from precision 1, and a constant gets (1 + base rate) / 2.
Weights are how often a bootstrap draw holds each row.

N rows, D draws, K distinct scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MOST_CELLS = 4_000_000
"""entries of a (draws, rows) matrix worked on at once"""


@dataclass(frozen=True)
class Curve:
    """Shares of positives and of negatives at or above each distinct score; column 0 is above all of them, where both are 0."""

    recall: Array
    """(D, K + 1) share of positives"""
    false_alarms: Array
    """(D, K + 1) share of negatives"""
    positives: Array
    """(D, 1) weight of the positives"""
    negatives: Array
    """(D, 1) weight of the negatives"""

    @property
    def precision(self) -> Array:
        """Share of positives among what is inspected, `(D, K + 1)`; 1 where nothing is, as scikit-learn has it."""
        hits, misses = self.recall * self.positives, self.false_alarms * self.negatives
        return np.where(hits + misses > 0, hits / np.maximum(hits + misses, 1e-300), 1.0)

    def average_precision(self) -> Array:
        """Return `sum_k (R_k - R_k-1) P_k`, `(D,)`: the area under precision-recall by steps, scikit-learn's average precision."""
        area: Array = (np.diff(self.recall) * self.precision[:, 1:]).sum(axis=1)
        return area

    def trapezoid(self) -> Array:
        """Return the area under precision-recall by trapezoids, `(D,)`: larger than average precision, what DATE-LM reports."""
        precision = self.precision
        area: Array = (np.diff(self.recall) * (precision[:, 1:] + precision[:, :-1]) / 2).sum(axis=1)
        return area

    def auroc(self) -> Array:
        """Return the chance that a positive is above a negative, ties counted half, `(D,)`."""
        area: Array = (np.diff(self.false_alarms) * (self.recall[:, 1:] + self.recall[:, :-1]) / 2).sum(axis=1)
        return area

    def recall_at(self, share: float) -> Array:
        """Return the recall when the best `share` of all rows is inspected, `(D,)`; share in 0 to 1."""
        inspected = self.recall * self.positives + self.false_alarms * self.negatives
        budget = share * (self.positives + self.negatives)[:, 0]
        return np.array([np.interp(size, line, found) for size, line, found in zip(budget, inspected, self.recall, strict=True)])


def curve(scores: NDArray[np.floating], positive: Mask, weights: NDArray[np.floating | np.integer]) -> Curve:
    """Return the curve of scores `(N,)` under each row of weights `(D, N)`.

    Raises:
        ValueError: when a score is not finite, or positives or negatives are missing.
    """
    if not np.isfinite(scores).all() or positive.all() or not positive.any():
        raise ValueError("scores must be finite, with at least one positive and one negative row")
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], positive[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # of each run of equal scores
    heft = weights[:, order].astype(np.float64)
    hits, misses = (np.cumsum(heft * side, axis=1)[:, last] for side in (found, ~found))
    positives, negatives = hits[:, -1:], misses[:, -1:]
    recall, false_alarms = (np.pad(side / whole, ((0, 0), (1, 0))) for side, whole in ((hits, positives), (misses, negatives)))
    return Curve(recall, false_alarms, positives, negatives)


def curves(scores: NDArray[np.floating], positive: Mask, weights: NDArray[np.floating | np.integer]) -> list[Curve]:
    """Return the same in blocks of draws, so that memory stays bounded however many rows there are."""
    size = max(1, MOST_CELLS // len(scores))
    return [curve(scores, positive, weights[start : start + size]) for start in range(0, len(weights), size)]
