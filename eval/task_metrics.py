"""Does a method find the rows that a task wants found? Teacher, students and floors are aggregated and measured alike.

Detection and mislabel are measured within each fold and averaged over folds; retrieval by query, and a query that has linked rows
in several folds counts with the mean of its figures there.

M task queries, R rows of a fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eval.bootstrap import Estimate, Resampler
from eval.detection import Curve, curve, curves
from eval.judged import Judged
from eval.methods import MethodScores
from eval.retrieval import average_precision, hit_ranks, recall_at, reciprocal_rank
from eval.tasks import Task
from influcoder.aggregation import aggregate, standardised

Array = NDArray[np.float64]

AGGREGATIONS = ("top", "mean", "zmean", "max")
"""of the queries' scores to a row's: mean of the top m, mean, mean of scores standardised by query, maximum"""
INSPECTED = (0.01, 0.05, 0.1)
DETECTION = (
    "auprc",
    "auprc_trapezoid",
    "auroc",
    "recall_at_positives",
    *(f"recall_at_{share:.0%}".replace("%", "_percent") for share in INSPECTED),
    "auprc_mean",
    "auprc_zmean",
    "auprc_max",
    "auprc_trapezoid_mean",
)
MISLABEL = DETECTION[:7]
RETRIEVAL = ("recall_at_k", "mrr", "map")
PRIMARY = {"detection": "auprc", "mislabel": "auroc", "retrieval": "map"}
CURVE_SHARES = np.concatenate([np.linspace(0, 0.1, 101), np.linspace(0.11, 1, 90)])
"""where the recall curve is kept: finely where people inspect"""


@dataclass(frozen=True)
class Found:
    """What a method found in a task."""

    metrics: dict[str, Estimate | None]
    values: Array | None = None
    """(S, N) the row scores that were ranked; NaN outside the candidates; None for retrieval"""
    recall: Array | None = None
    """recall at each of `CURVE_SHARES`, mean over folds and seeds"""


@dataclass
class _Tally:
    """Figures of one metric by seed and fold."""

    values: list[list[float]] = field(default_factory=list)
    draws: list[list[Array]] = field(default_factory=list)


def metric_names(task: Task) -> tuple[str, ...]:
    """Return the metrics of a task's kind, without the task's name."""
    if task.kind == "retrieval":
        return (f"recall_at_{task.cutoff}", *RETRIEVAL[1:])
    return DETECTION if task.kind == "detection" else MISLABEL


def measure(name: str, task: Task, scores: MethodScores, judged: Judged, *, top: int, resampler: Resampler) -> Found:
    """Return what a method found; metrics are None where it has no such scores.

    Args:
        name: the task's, for the seeds of its resamples.
        task: the question.
        scores: of the method.
        judged: folds.
        top: best per-query scores that make a row's score in the primary figures.
        resampler: shared by all methods.
    """
    nothing: dict[str, Estimate | None] = dict.fromkeys(metric_names(task))
    if scores.folds is not None:  # a control of some folds: fidelity is all that it is for
        return Found(nothing)
    if task.kind == "retrieval":
        return Found(nothing | _retrieve(name, task, scores, judged, resampler))
    if task.kind == "mislabel":
        return _detect(name, task, {"top": scores.own}, judged, resampler) if scores.own is not None else Found(nothing)
    asked = scores.asked[:, judged.task_asking(task)]
    return _detect(name, task, {way: _aggregate(asked, task, judged, way, top) for way in AGGREGATIONS}, judged, resampler)


def _aggregate(asked: NDArray[np.floating], task: Task, judged: Judged, way: str, top: int) -> Array:
    """Return `(S, N)` row scores; each fold for itself, since a standard score depends on the rows it is taken over."""
    size = {"top": top, "mean": None, "zmean": None, "max": 1}[way]
    values = np.full((len(asked), asked.shape[2]), np.nan)
    for fold in judged.folds:
        rows = fold.rows[task.candidates[fold.rows]]
        for seed, scores in enumerate(asked[:, :, rows]):
            values[seed, rows] = aggregate(standardised(scores) if way == "zmean" else scores, task.weights, size)
    return values


def _detect(name: str, task: Task, values: Mapping[str, NDArray[np.floating]], judged: Judged, resampler: Resampler) -> Found:
    tallies = {metric: _Tally() for metric in metric_names(task)}
    recalls = []
    for number, fold in enumerate(judged.folds):
        rows = fold.rows[task.candidates[fold.rows]]
        positive = task.positive[rows]
        sample = resampler.stratified(f"{name}:{number}", positive)
        weights = np.concatenate([np.ones((1, len(rows)), np.uint8), sample])  # first the figure itself, then its draws
        for tally in tallies.values():
            tally.values.append([])
            tally.draws.append([])
        for way, by_seed in values.items():
            for ranked in by_seed[:, rows]:
                found = curves(ranked, positive, weights)
                if way == "top":
                    itself = curve(ranked, positive, weights[:1])
                    recalls.append([itself.recall_at(share)[0] for share in CURVE_SHARES])
                for metric, figures in _figures(way, found, positive).items():
                    if metric in tallies:
                        tallies[metric].values[-1].append(float(figures[0]))
                        tallies[metric].draws[-1].append(figures[1:])
    count = int((task.positive & task.candidates).sum())
    metrics: dict[str, Estimate | None] = {
        metric: resampler.over_seeds(list(np.mean(tally.values, axis=0)), np.mean(tally.draws, axis=0), count)
        for metric, tally in tallies.items()
    }
    kept = np.where(task.candidates, values["top"], np.nan)
    return Found(metrics, kept, np.mean(recalls, axis=0))


def _figures(way: str, found: list[Curve], positive: NDArray[np.bool_]) -> dict[str, Array]:
    def of(measure: str, *arguments: float) -> Array:
        return np.concatenate([getattr(block, measure)(*arguments) for block in found])

    if way == "mean":
        return {"auprc_mean": of("average_precision"), "auprc_trapezoid_mean": of("trapezoid")}
    if way != "top":
        return {f"auprc_{way}": of("average_precision")}
    return {
        "auprc": of("average_precision"),
        "auprc_trapezoid": of("trapezoid"),
        "auroc": of("auroc"),
        "recall_at_positives": of("recall_at", float(positive.mean())),
    } | {metric: of("recall_at", share) for metric, share in zip(DETECTION[4:7], INSPECTED, strict=True)}


def _retrieve(name: str, task: Task, scores: MethodScores, judged: Judged, resampler: Resampler) -> dict[str, Estimate | None]:
    figures = np.full((3, len(judged.folds), len(scores.asked), len(task.queries)), np.nan)
    for number, fold in enumerate(judged.folds):
        rows = fold.rows[task.candidates[fold.rows]]
        for seed, asked in enumerate(scores.asked[:, judged.task_asking(task)]):
            for query, ranks in _hits(asked[:, rows], task.linked[:, rows]):
                figures[:, number, seed, query] = recall_at(ranks, task.cutoff), reciprocal_rank(ranks), average_precision(ranks)
    measured = np.isfinite(figures)
    means = np.where(measured.any(axis=1), np.nansum(figures, axis=1) / np.maximum(measured.sum(axis=1), 1), np.nan)
    return {metric: resampler.mean(f"{name}:queries", [found]) for metric, found in zip(metric_names(task), means, strict=True)}


def _hits(asked: NDArray[np.floating], linked: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for query, (scores, mine) in enumerate(zip(asked, linked, strict=True)):
        if mine.any():
            yield query, hit_ranks(scores, mine)
