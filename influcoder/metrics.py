"""Measures of agreement between two score matrices `(queries, rows)`. Pure numpy.

Q queries, N rows. A constant row of scores has no ranking: its correlation is defined as 0.
Ranks are average ranks under ties, as in SciPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


def average_ranks(values: Array) -> NDArray[np.float64]:
    """Return ranks 1..N of a vector; ties share their mean rank."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(values)]
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + 1 + ends) / 2, ends - starts)
    return ranks


def spearman(first: Array, second: Array) -> float:
    """Return Spearman's rho of two vectors; 0 when either is constant."""
    return _pearson(average_ranks(first), average_ranks(second))


def per_query_spearman(predicted: Array, target: Array, mask: Mask | None = None) -> NDArray[np.float64]:
    """Return Spearman's rho of each query over its rows, `(Q,)`.

    Args:
        predicted: (Q, N).
        target: (Q, N).
        mask: (Q, N), True where a row is a candidate of the query; None takes all. A query with fewer than three
            candidates has no rho: NaN.
    """
    rhos = np.full(len(target), np.nan)
    for query in range(len(target)):
        rows = slice(None) if mask is None else mask[query]
        if len(target[query][rows]) >= 3:
            rhos[query] = spearman(predicted[query][rows], target[query][rows])
    return rhos


def per_query_pearson(predicted: Array, target: Array) -> NDArray[np.float64]:
    """Return Pearson's r of each query over its rows, `(Q,)`; 0 when either is constant."""
    correlations = np.zeros(len(target))
    for query, (mine, theirs) in enumerate(zip(predicted.astype(np.float64), target.astype(np.float64), strict=True)):
        if np.ptp(mine) > 0 and np.ptp(theirs) > 0:  # what rounding leaves of two constants would agree perfectly
            correlations[query] = _pearson(mine, theirs)
    return correlations


def aggregated_spearman(predicted: Array, target: Array) -> float:
    """Return Spearman's rho of the two query-averaged vectors: how well the *document bias* alone is met."""
    return spearman(predicted.mean(axis=0), target.mean(axis=0))


def double_centred(scores: Array) -> NDArray[np.float64]:
    """Return `s_ij - row mean - column mean + mean`: what is left when neither query nor row has a level of its own."""
    scores = scores.astype(np.float64)
    centred: NDArray[np.float64] = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True) + scores.mean()
    return centred


def residual_spearman(predicted: Array, target: Array) -> NDArray[np.float64]:
    """Return per-query Spearman, `(Q,)`, of the double-centred matrices: a query-blind method scores 0."""
    centred = double_centred(predicted)
    # what rounding leaves of a query-blind matrix is not a ranking
    centred[np.abs(centred) < 1e-12 * np.abs(predicted).max()] = 0.0
    return per_query_spearman(centred, double_centred(target))


def top_overlap(predicted: Array, target: Array, k: int) -> NDArray[np.float64]:
    """Return the share of the target's top k rows among the predicted top k, `(Q,)`; ties keep the row order."""
    return top_recall(predicted, target, k, k)


def top_recall(predicted: Array, target: Array, k: int, n: int) -> NDArray[np.float64]:
    """Return the share of the target's top k rows among the predicted top n, `(Q,)`; ties keep the row order."""
    shares: NDArray[np.float64] = (top_ranks(predicted, target, k) < n).mean(axis=1)
    return shares


def top_ranks(predicted: Array, target: Array, k: int) -> NDArray[np.int64]:
    """Return the predicted rank of each of the target's top k rows, `(Q, k)`, 0 the best; ties keep the row order."""
    wanted = np.argsort(-target, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(np.argsort(np.argsort(-predicted, axis=1, kind="stable"), axis=1), wanted, axis=1)


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0
