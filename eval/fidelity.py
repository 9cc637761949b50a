"""Does a method rank the candidates as the teacher does? Each figure is a mean over fidelity queries.

Q queries, C candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.judged import Judged
from eval.methods import Array
from influcoder.metrics import (
    Interval,
    aggregated_spearman,
    bootstrap_mean,
    per_query_spearman,
    residual_spearman,
    spearman,
    top_overlap,
)

NAMES = ("per_query_spearman", "within_group_spearman", "residual_spearman", "aggregated_spearman", "top10_overlap")


def fidelity_metrics(
    predicted: Array | None, target: Array, judged: Judged, *, seed: int, draws: int
) -> tuple[dict[str, Interval | None], NDArray[np.float64] | None]:
    """Return the metrics by name, and each query's Spearman `(Q,)`; all None for the teacher itself.

    Args:
        predicted: (Q, C), or None for the teacher.
        target: (Q, C).
        judged: gives the groups of queries and candidates.
        seed: of the bootstrap.
        draws: resamples.
    """
    if predicted is None:
        return dict.fromkeys(NAMES), None
    rhos = per_query_spearman(predicted, target)
    values = {
        "per_query_spearman": rhos,
        "within_group_spearman": _within_group(predicted, target, judged),
        "residual_spearman": residual_spearman(predicted, target),
        "top10_overlap": top_overlap(predicted, target, 10),
    }
    metrics: dict[str, Interval | None] = {
        name: bootstrap_mean(found, seed=seed, draws=draws) if len(found) else None for name, found in values.items()
    }
    metrics["aggregated_spearman"] = aggregated_interval(predicted, target, seed=seed, draws=draws)
    return metrics, rhos


def aggregated_interval(predicted: Array, target: Array, *, seed: int, draws: int) -> Interval:
    """Return Spearman's rho of the query-averaged scores; the interval resamples queries."""
    queries = len(target)
    chosen = np.random.default_rng(seed).integers(queries, size=(draws, queries))
    shares = np.stack([np.bincount(draw, minlength=queries) for draw in chosen]) / queries  # (draws, Q)
    pairs = zip(shares @ predicted, shares @ target, strict=True)
    low, high = np.quantile([spearman(mine, theirs) for mine, theirs in pairs], [0.025, 0.975])
    return Interval(aggregated_spearman(predicted, target), float(low), float(high), queries)


def _within_group(predicted: Array, target: Array, judged: Judged) -> NDArray[np.float64]:
    if judged.groups is None:
        return np.empty(0)
    same = judged.groups[: judged.num_queries, None] == judged.groups[None, judged.num_queries :]
    return per_query_spearman(predicted, target, same)
