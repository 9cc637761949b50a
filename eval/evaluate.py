"""Asks every method the same questions: the engine behind the stage, on objects already loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.bootstrap import Estimate, Resampler
from eval.fidelity import Figures, by_stratum, constant_queries, fidelity_metrics
from eval.gates import top_cardinality
from eval.judged import Judged
from eval.methods import Array, Cost, MethodGroup, MethodScores, Role
from eval.task_metrics import Found, measure
from influcoder.errors import DataError

KEPT: tuple[Role, ...] = ("teacher", "ceiling", "student")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table."""

    name: str
    role: Role
    metrics: dict[str, Estimate | None]
    """by name, those of a task begin with its name; None where a method has no such figure"""
    per_query: list[Figures] | None
    """by fold (S, Q) Spearman of each fidelity query; None for the teacher"""
    strata: dict[str, dict[str, Estimate]]
    """kind (length, group) -> label -> per-query Spearman"""
    found: dict[str, Found]
    """by task: what it ranked and found"""
    cardinality: float
    """distinct rows among the top 10 of all fidelity queries, first seed, mean over folds"""
    constant_queries: int
    """fidelity queries with one score for all candidates"""
    cost: Cost | None
    first_seed: list[Array] | None = None
    """by fold (Q, C) scores of the first seed, kept for `cases.json`; None for roles that do not stand there"""


def evaluate(judged: Judged, target: Array, groups: Sequence[MethodGroup], *, top: int, resampler: Resampler) -> list[Result]:
    """Compute and measure every method.

    Args:
        judged: the questions.
        target: (A, N) the teacher's scores.
        groups: the methods.
        top: best per-query scores that make a row's score in detection.
        resampler: of all intervals.

    Raises:
        DataError: when a score is not finite.
    """
    results = []
    progress = tqdm(groups, desc="methods", unit="method")
    for group in progress:
        progress.set_description(f"methods: {group.name}")
        for name, scores in group.compute().items():
            check_finite(name, scores, judged)
            results.append(_measure(name, group.role, scores, target, judged, top, resampler))
    return results


def check_finite(name: str, scores: MethodScores, judged: Judged) -> None:
    """Refuse a method with a score that is not a number where it is asked for one.

    Raises:
        DataError: naming method, query and row.
    """
    for number, fold, asking in _asked_blocks(scores, judged):
        bad = np.argwhere(~np.isfinite(scores.asked[:, asking][:, :, fold]))
        if len(bad):
            _, query, row = bad[0]
            raise DataError(
                f"method {name}: its score of row {judged.rows[fold[row]].id!r} for query {query + 1} of fold {number} is not finite; "
                "expected numbers; check the model's weights and dtype"
            )
    if scores.own is not None and not np.isfinite(scores.own).all():
        row = int(np.argwhere(~np.isfinite(scores.own))[0, 1])
        raise DataError(f"method {name}: its own score of row {judged.rows[row].id!r} is not finite; expected a number")


def _asked_blocks(scores: MethodScores, judged: Judged) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    tasks = np.arange(len(judged.fidelity_queries), judged.num_asking)
    every = np.arange(judged.num_asking)
    for number in scores.asked_folds(judged):
        yield number, judged.folds[number].rows, np.concatenate([every[judged.asking(number)], tasks])


def _measure(name: str, role: Role, scores: MethodScores, target: Array, judged: Judged, top: int, resampler: Resampler) -> Result:
    metrics, rhos = fidelity_metrics(scores, target, judged, resampler)
    found = {task: measure(task, question, scores, judged, top=top, resampler=resampler) for task, question in judged.tasks.items()}
    itself = role == "teacher"  # whose fidelity to itself says nothing
    return Result(
        name=name,
        role=role,
        metrics=(dict.fromkeys(metrics) if itself else metrics)
        | {f"{task}_{metric}": value for task, what in found.items() for metric, value in what.metrics.items()},
        per_query=None if itself else rhos,
        strata={} if itself else by_stratum(rhos, judged, resampler),
        found=found,
        cardinality=cardinality(scores, judged),
        constant_queries=constant_queries(scores, judged),
        cost=scores.cost,
        first_seed=[judged.block(scores.asked[0], number) for number in range(len(judged.folds))] if role in KEPT else None,
    )


def cardinality(scores: MethodScores, judged: Judged) -> float:
    """Return `gates.top_cardinality` of the first seed, mean over the folds that were asked."""
    return float(np.mean([top_cardinality(judged.block(scores.asked[0], number)) for number in scores.asked_folds(judged)]))
