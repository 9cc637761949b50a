"""Does a method find the rows that the task wants found? Test rows only; teacher, students and floors are aggregated alike.

T task queries, N test rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eval.judged import Judged
from eval.methods import Array
from influcoder.aggregation import aggregate
from influcoder.metrics import Interval, Mask, average_precision, recall_at

NAMES = ("poison_auprc", "poison_recall_at_positives", "poison_auprc_mean", "poison_auprc_max")


def task_metrics(scores: Array | None, judged: Judged, *, top: int, seed: int, draws: int) -> dict[str, Interval | None]:
    """Return the metrics by name; all None without a task.

    Args:
        scores: (T, N), or None.
        judged: gives the answers and the queries' weights.
        top: best per-query scores that make a row's score; the `_mean` and `_max` figures take all and one.
        seed: of the bootstrap.
        draws: resamples.
    """
    if scores is None or judged.positive is None:
        return dict.fromkeys(NAMES)
    positive = judged.positive
    best, mean, maximum = (aggregate(scores, judged.weights, size) for size in (top, None, 1))

    def recall_at_positives(values: NDArray[np.float64], found: Mask) -> float:
        return recall_at(values, found, int(found.sum()))

    def interval(measure: Callable[[NDArray[np.float64], Mask], float], values: NDArray[np.float64]) -> Interval:
        return stratified_interval(measure, values, positive, seed=seed, draws=draws)

    return {
        "poison_auprc": interval(average_precision, best),
        "poison_recall_at_positives": interval(recall_at_positives, best),
        "poison_auprc_mean": interval(average_precision, mean),
        "poison_auprc_max": interval(average_precision, maximum),
    }


def stratified_interval(
    measure: Callable[[NDArray[np.float64], Mask], float], values: NDArray[np.float64], positive: Mask, *, seed: int, draws: int
) -> Interval:
    """Return a detection measure of `(N,)` values; the interval resamples positives and negatives apart.

    So every resample has the same base rate, on which average precision depends.
    """
    random = np.random.default_rng(seed)
    found, others = np.flatnonzero(positive), np.flatnonzero(~positive)
    drawn = np.concatenate([random.choice(found, (draws, len(found))), random.choice(others, (draws, len(others)))], axis=1)
    drawn.sort(axis=1)  # ties keep the row order: positives first would win them all
    low, high = np.quantile([measure(values[rows], positive[rows]) for rows in drawn], [0.025, 0.975])
    return Interval(measure(values, positive), float(low), float(high), len(positive))
