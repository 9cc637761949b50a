"""Does a method rank the candidates as the teacher does? Figures of single queries, to be averaged, and the aggregate.

Q fidelity queries of a fold, C its candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score

from eval.bootstrap import Estimate, Resampler
from eval.judged import Judged
from eval.methods import MethodScores
from influcoder.metrics import Array, aggregated_spearman, per_query_spearman, residual_spearman, spearman, top_overlap, top_recall

NAMES = (
    "per_query_spearman",
    "within_group_spearman",
    "residual_spearman",
    "aggregated_spearman",
    "per_query_kendall",
    "ndcg_at_10",
    "top10_overlap",
    "bottom10_overlap",
    "top10_recall_at_100",
    "bottom10_recall_at_100",
)
LENGTHS = ("short", "medium", "long")

Figures = NDArray[np.float64]
"""(S, Q); NaN where a query has no such figure"""


def fidelity_metrics(
    scores: MethodScores, target: Array, judged: Judged, resampler: Resampler
) -> tuple[dict[str, Estimate | None], list[Figures]]:
    """Return the metrics by name, and each query's Spearman by fold.

    Args:
        scores: of the method.
        target: (A, N) the teacher's scores.
        judged: folds, groups.
        resampler: shared by all methods.
    """
    values: dict[str, list[Figures]] = {name: [] for name in NAMES if name != "aggregated_spearman"}
    for number, fold in enumerate(judged.folds):
        wanted = judged.block(target, number)
        same = None if judged.groups is None else judged.groups[fold.queries, None] == judged.groups[None, fold.candidates]
        for found in values.values():
            found.append(np.full((len(scores.asked), len(fold.queries)), np.nan))
        if number in scores.asked_folds(judged):
            for seed, asked in enumerate(scores.asked):
                for name, figures in _by_query(judged.block(asked, number), wanted, same).items():
                    values[name][-1][seed] = figures
    metrics = {name: resampler.mean("queries", found) for name, found in values.items()}
    metrics["aggregated_spearman"] = _aggregated(scores, target, judged, resampler)
    return {name: metrics[name] for name in NAMES}, values["per_query_spearman"]


def by_stratum(rhos: Sequence[Figures], judged: Judged, resampler: Resampler) -> dict[str, dict[str, Estimate]]:
    """Tell the per-query Spearman apart by what kind of row asks: by thirds of response length, and by group.

    Args:
        rhos: of each fold, as `fidelity_metrics` returns them.
        judged: gives lengths and groups.
        resampler: shared by all methods.
    """
    lengths = judged.lengths
    thirds = np.quantile(lengths[judged.fidelity_queries], [1 / 3, 2 / 3])
    kinds = {"length": np.array(LENGTHS)[np.searchsorted(thirds, lengths, side="right")]}
    if judged.groups is not None:
        kinds["group"] = judged.groups
    strata: dict[str, dict[str, Estimate]] = {}
    for kind, labels in kinds.items():
        strata[kind] = {}
        for label in np.unique(labels[judged.fidelity_queries]):
            kept = [np.where(labels[fold.queries] == label, found, np.nan) for fold, found in zip(judged.folds, rhos, strict=True)]
            estimate = resampler.mean("queries", kept)
            if estimate is not None:
                strata[kind][str(label)] = estimate
    return strata


def constant_queries(scores: MethodScores, judged: Judged) -> int:
    """Return how many queries (of the first seed) have one score for all candidates: their correlations are defined as 0."""
    blocks = (judged.block(scores.asked[0], number) for number in scores.asked_folds(judged))
    return sum(int((block == block[:, :1]).all(axis=1).sum()) for block in blocks)


def _by_query(predicted: Array, target: Array, same: NDArray[np.bool_] | None) -> dict[str, NDArray[np.float64]]:
    nothing = np.full(len(target), np.nan)
    return {
        "per_query_spearman": per_query_spearman(predicted, target),
        "within_group_spearman": nothing if same is None else per_query_spearman(predicted, target, same),
        "residual_spearman": residual_spearman(predicted, target),
        "per_query_kendall": _each(_kendall, predicted, target),
        "ndcg_at_10": _each(_ndcg, predicted, target),
        "top10_overlap": top_overlap(predicted, target, 10),
        "bottom10_overlap": top_overlap(-predicted, -target, 10),
        "top10_recall_at_100": top_recall(predicted, target, 10, 100),
        "bottom10_recall_at_100": top_recall(-predicted, -target, 10, 100),
    }


def _each(measure: Callable[[Array, Array], float], predicted: Array, target: Array) -> NDArray[np.float64]:
    return np.array([measure(mine, theirs) for mine, theirs in zip(predicted, target, strict=True)])


def _kendall(predicted: Array, target: Array) -> float:
    return float(np.nan_to_num(kendalltau(predicted, target).statistic))  # NaN for a constant, which has no ranking


def _ndcg(predicted: Array, target: Array) -> float:
    # gain: how much a row helps; rows that hurt gain nothing. A query that no row helps has no order to find
    return float(ndcg_score([np.maximum(target, 0)], [predicted], k=10)) if (target > 0).any() else np.nan


def _aggregated(scores: MethodScores, target: Array, judged: Judged, resampler: Resampler) -> Estimate | None:
    """Return Spearman's rho of the query-averaged scores: how well the *document bias* alone is met; a mean over folds."""
    folds = scores.asked_folds(judged)
    values, draws = [], []
    for number in folds:
        wanted = judged.block(target, number)
        shares = resampler.counts(f"queries:{number}", len(wanted)).astype(np.float64) / len(wanted)
        resampled = _averaged(shares, wanted)
        for asked in scores.asked:
            predicted = judged.block(asked, number)
            values.append(aggregated_spearman(predicted, wanted))
            draws.append([spearman(mine, theirs) for mine, theirs in zip(_averaged(shares, predicted), resampled, strict=True)])
    shape = (len(folds), len(scores.asked))
    by_seed = np.reshape(draws, (*shape, -1)).mean(axis=0)
    return resampler.over_seeds(
        list(np.reshape(values, shape).mean(axis=0)), by_seed, sum(len(judged.folds[number].queries) for number in folds)
    )


def _averaged(shares: NDArray[np.float64], scores: Array) -> NDArray[np.float64]:
    """Return the query-averaged scores of each resample, as shares of the largest: shares `(D, Q)`, scores `(Q, C)`."""
    # a matrix product rounds equal columns apart, and what rounding leaves is not a ranking
    scale = float(np.abs(scores).max()) or 1.0
    return np.round(shares @ (scores.astype(np.float64) / scale), 12)
