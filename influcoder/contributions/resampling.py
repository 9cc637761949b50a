"""Scores of rows over resampled queries, bit for bit the same on every machine.

Row score = weighted mean over the row's `top` best queries, less the same over queries of negative weight: `aggregation.aggregate`, where
a query may now have been drawn several times. Draws come from SHAKE-256, not from a library's generator whose stream may change, and the
arithmetic is elementwise float64 in a fixed order, as sums by BLAS or by blocks are not.

Q queries, N rows.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from influcoder.contributions.canonical_json import BILLION


def draw_counts(weights: NDArray[np.float64], seed: int, draw: int) -> NDArray[np.int64]:
    """Return how often each query is drawn, (Q,): with replacement, as many as there are, positive and negative ones apart."""
    counts = np.zeros(len(weights), np.int64)
    for sign in (1, -1):
        places = np.flatnonzero(weights * sign > 0)
        if len(places):
            noise = hashlib.shake_256(f"{seed}:{draw}:{sign}".encode()).digest(8 * len(places))
            np.add.at(counts, places[np.frombuffer(noise, ">u8") % np.uint64(len(places))], 1)
    return counts


class RowScores:
    """Row scores for any counts of queries; the order of each row's queries is sorted once."""

    def __init__(self, scores: NDArray[np.float32], weights: NDArray[np.float64], top: int | None) -> None:
        """Take scores (Q, N), non-zero weights (Q,), and how many best queries count (None: all)."""
        self._num_queries, self._num_rows = scores.shape
        self._top, self._sides = top, []
        for sign in (1, -1):
            places = np.flatnonzero(weights * sign > 0)
            order = np.argsort(-scores[places], axis=0, kind="stable")
            self._sides.append(
                (sign, np.abs(weights[places]), places, order.astype(np.int32), np.take_along_axis(scores[places], order, 0))
            )

    def __call__(self, counts: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return one score a row in billionths, (N,), with each query counted `counts` times, (Q,); None counts each once."""
        counts = np.ones(self._num_queries, np.int64) if counts is None else counts
        total = np.zeros(self._num_rows)
        for sign, weights, places, order, ordered in self._sides:
            if len(places):
                total += sign * self._mean(weights, counts[places], order, ordered)
        billionths: NDArray[np.int64] = np.rint(total * BILLION).astype(np.int64)
        return billionths

    def _mean(
        self, weights: NDArray[np.float64], counts: NDArray[np.int64], order: NDArray[np.int32], ordered: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        left = np.full(self._num_rows, min(self._top or counts.sum(), counts.sum()), np.int64)
        sums, heft = np.zeros(self._num_rows), np.zeros(self._num_rows)
        for queries, scores in zip(order, ordered, strict=True):  # from each row's best query on
            taken = np.minimum(counts[queries], left)
            heavy = taken * weights[queries]
            sums += heavy * scores
            heft += heavy
            left -= taken
            if not left.any():
                break
        mean: NDArray[np.float64] = sums / heft
        return mean
