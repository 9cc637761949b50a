"""Asks every method the same questions: the engine behind the stage, on objects already loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.fidelity import fidelity_metrics
from eval.judged import Judged
from eval.methods import Array, MethodGroup, Role
from eval.task import task_metrics
from influcoder.metrics import Interval


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table."""

    name: str
    role: Role
    metrics: dict[str, Interval | None]
    per_query: NDArray[np.float64] | None
    """(Q,) Spearman of each fidelity query; None for the teacher"""
    seconds: float
    """time to compute the scores of this method and of those that share its computation"""


def evaluate(judged: Judged, target: Array, groups: Sequence[MethodGroup], *, top: int, seed: int, draws: int) -> list[Result]:
    """Compute and measure every method.

    Args:
        judged: the questions.
        target: (Q, C) the teacher's scores of the fidelity queries.
        groups: the methods.
        top: best per-query scores that make a row's score in the task.
        seed: of the bootstrap.
        draws: resamples behind each interval.
    """
    results = []
    progress = tqdm(groups, desc="methods", unit="method")
    for group in progress:
        progress.set_description(f"methods: {group.name}")
        started = time.perf_counter()
        computed = group.compute()
        seconds = time.perf_counter() - started
        for name, scores in computed.items():
            metrics, per_query = fidelity_metrics(scores.fidelity, target, judged, seed=seed, draws=draws)
            metrics |= task_metrics(scores.task, judged, top=top, seed=seed, draws=draws)
            results.append(Result(name=name, role=group.role, metrics=metrics, per_query=per_query, seconds=seconds))
    return results
