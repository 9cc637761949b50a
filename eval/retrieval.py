"""How well each query finds the rows that are its own: recall at k, reciprocal rank, average precision.

Every figure is one query's. Ties keep the row order, which eval shuffles. N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hit_ranks(scores: NDArray[np.floating], linked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the ranks, from 1, of a query's linked rows in ascending order: scores `(N,)`, linked `(N,)`."""
    return np.flatnonzero(linked[np.argsort(-scores, kind="stable")]) + 1


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """Return the share of the linked rows among the k best: at most k / linked, as in DATE-LM."""
    return float((ranks <= k).mean())


def reciprocal_rank(ranks: NDArray[np.int64]) -> float:
    """Return 1 / rank of the first linked row."""
    return float(1 / ranks[0])


def average_precision(ranks: NDArray[np.int64]) -> float:
    """Return the mean, over linked rows, of the precision at their ranks; its mean over queries is MAP."""
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())
