"""From one score a query to one score a row.

Row losses leave the scale across queries free, and a behaviour is rarely shown by all queries at once, so the default is
the mean of a row's `top` best per-query scores. Queries of negative weight (contrast: the same topic without the
behaviour) are aggregated alike and subtracted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DEFAULT_TOP = 5


def standardised(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each query's scores with mean 0 and deviation 1 over its rows, so that no query outweighs the others; a constant gives 0."""
    centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64)
    spread = centred.std(axis=1, keepdims=True)
    result: NDArray[np.float64] = np.divide(
        centred, spread, out=np.zeros_like(centred), where=spread > 1e-12 * np.abs(scores).max(axis=1, keepdims=True, initial=0)
    )
    return result


def aggregate(scores: NDArray[np.floating], weights: NDArray[np.floating], top: int | None = DEFAULT_TOP) -> NDArray[np.float64]:
    """Return one score a row, `(rows,)`, from `(queries, rows)` scores and `(queries,)` non-zero weights.

    The weighted mean of the `top` best scores among queries of positive weight, less the same among negative ones;
    `top=None` takes all queries (the mean), `top=1` the best one (the maximum).

    Raises:
        ValueError: on mismatched shapes, a zero weight, or `top` below 1.
    """
    if scores.ndim != 2 or weights.shape != (scores.shape[0],) or not np.all(weights != 0) or (top is not None and top < 1):
        raise ValueError(f"scores {scores.shape}, weights {weights.shape}, top {top}: expected (Q, N), (Q,) without zeros, top >= 1")
    total = np.zeros(scores.shape[1])
    for sign in (1.0, -1.0):
        side = weights * sign > 0
        if side.any():
            total += sign * _top_mean(scores[side].astype(np.float64), np.abs(weights[side]).astype(np.float64), top)
    # what rounding leaves of query-blind scores, the same on both sides, is not a ranking
    total[np.abs(total) < 1e-12 * np.abs(scores).max()] = 0.0
    return total


def _top_mean(scores: NDArray[np.float64], weights: NDArray[np.float64], top: int | None) -> NDArray[np.float64]:
    order = np.argsort(-scores, axis=0, kind="stable")[:top]
    best, heft = np.take_along_axis(scores, order, axis=0), weights[order]
    result: NDArray[np.float64] = (best * heft).sum(axis=0) / heft.sum(axis=0)
    return result
