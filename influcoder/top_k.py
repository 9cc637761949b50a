"""The exact extreme rows of each query, over scores that arrive block by block.

Q queries, C rows of a block. Ties keep the row order, as one stable sort of all scores would. A block is compared with the last
score that still counts; the few that pass wait until a sort of all of them together is worth its price.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["top", "bottom"]


class TopK:
    """The `k` largest scores so far of each query, or the `k` smallest; memory is Q x (k + C) whatever the number of rows."""

    def __init__(self, num_queries: int, k: int, side: Side = "top") -> None:
        self.k = k
        self.num_rows = 0
        """rows seen so far"""
        self._side = side
        self._last = np.full((num_queries, 1), -np.inf, np.float32)  # the k-th best: of later rows, only larger ones count
        self._kept = [(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))]  # queries, signed scores, rows
        self._num_kept = 0

    @property
    def scores(self) -> NDArray[np.float32]:
        """(Q, at most k), the most extreme first."""
        return self._signed(self._sorted()[1].reshape(len(self._last), -1))

    @property
    def rows(self) -> NDArray[np.int64]:
        """(Q, at most k), positions in the order in which the rows came."""
        return self._sorted()[2].reshape(len(self._last), -1)

    def add(self, scores: NDArray[np.float32]) -> None:
        """Take the next rows' scores, `(Q, C)`, finite."""
        signed = self._signed(scores)
        places = np.flatnonzero(signed > self._last)  # in the order of queries, then of rows
        queries, columns = np.divmod(places, max(scores.shape[1], 1))
        self._keep(queries, signed.ravel()[places], columns + self.num_rows)
        self.num_rows += scores.shape[1]

    def merge(self, scores: NDArray[np.float32], rows: NDArray[np.int64], num_rows: int) -> None:
        """Take what another one kept of the next `num_rows` rows: its `scores` and `rows`, counted from the first of these."""
        signed = self._signed(scores)
        queries, columns = np.nonzero(signed > self._last)
        self._keep(queries, signed[queries, columns], rows[queries, columns] + self.num_rows)
        self.num_rows += num_rows

    def _signed(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return scores if self._side == "top" else -scores

    def _keep(self, queries: NDArray[np.int64], signed: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        self._kept.append((queries, signed, rows))
        self._num_kept += len(rows)
        if self._num_kept > 2 * len(self._last) * self.k:
            self._sorted()

    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Sort what was kept by query and score, and drop what no longer counts."""
        queries, signed, rows = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        # what was kept came earlier, so standing first makes the stable sort keep the row order under ties
        order = np.lexsort((-signed, queries))
        counts = np.bincount(queries, minlength=len(self._last))
        first = np.cumsum(counts) - counts
        order = order[np.arange(len(order)) - np.repeat(first, counts) < self.k]
        kept = queries[order], signed[order], rows[order]
        self._kept, self._num_kept = [kept], len(order)
        full = np.flatnonzero(counts >= self.k)
        counts = np.minimum(counts, self.k)
        self._last[full, 0] = kept[1][np.cumsum(counts)[full] - 1]
        return kept
