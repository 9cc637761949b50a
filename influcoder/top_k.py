"""The exact best rows of each query, over scores that arrive chunk by chunk.

Q queries, C rows of a chunk. Larger is better; ties keep the row order, as one stable sort of all scores would.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class TopK:
    """The `k` best rows so far of each query; memory is Q x k whatever the number of rows."""

    def __init__(self, num_queries: int, k: int) -> None:
        self.k = k
        self.num_rows = 0
        """rows seen so far"""
        self.scores: NDArray[np.float32] = np.empty((num_queries, 0), np.float32)
        """(Q, at most k), best first"""
        self.rows: NDArray[np.int64] = np.empty((num_queries, 0), np.int64)
        """(Q, at most k), positions in the order in which the rows came"""

    def add(self, scores: NDArray[np.float32]) -> None:
        """Take the next rows' scores, `(Q, C)`."""
        places = self.num_rows + np.arange(scores.shape[1])
        # what was kept came earlier, so standing first makes the stable sort keep the row order under ties
        scores = np.concatenate([self.scores, scores], axis=1)
        rows = np.concatenate([self.rows, np.broadcast_to(places, (len(scores), len(places)))], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.scores = np.take_along_axis(scores, order, axis=1)
        self.rows = np.take_along_axis(rows, order, axis=1)
        self.num_rows += len(places)
