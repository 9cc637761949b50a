"""Sets of rows to train without: what a method of an eval run flags, at several budgets.

Scores of two folds come from two students and are never compared, so a budget is shared by the folds in proportion to their candidates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eval.data import TeacherRun
from eval.truth.config import RemovalConfig
from influcoder.errors import ConfigError, RunError
from influcoder.runs import open_run

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Flagged:
    """Which rows to leave out, and which of them were planted."""

    removed: dict[tuple[str, int], Mask]
    """(method, budget) -> (N,) rows to leave out"""
    positive: Mask
    """(N,) planted rows"""
    roles: dict[str, str]
    """of each method in the eval run's table"""

    def masks(self) -> dict[tuple[str, int], Mask]:
        """Return the rows that are trained on: all (`full`, 0), all but the planted ones (`clean`, 0), and each method's."""
        kept = {key: ~mask for key, mask in self.removed.items()}
        return {("full", 0): np.ones(len(self.positive), bool), ("clean", 0): ~self.positive} | kept


def flag_rows(name: str, config: RemovalConfig, teacher: TeacherRun) -> Flagged:
    """Read what the methods of an eval run put first, first seed of each.

    Raises:
        RunError: when the run is of other rows.
        ConfigError: when it has no such task or method, or a budget exceeds the candidates.
    """
    open_run(Path(config.run), "eval")
    path = Path(config.run) / "per_row.parquet"
    wanted = [("task", "=", config.task), ("method", "in", list(config.methods)), ("seed", "=", 0)]
    table = pq.read_table(path, filters=wanted).to_pydict()
    places = {row.id: place for place, row in enumerate(teacher.rows)}
    unknown = next((row_id for row_id in table["row_id"] if row_id not in places), None)
    if unknown is not None:
        raise RunError(f"{path}: row {unknown!r} is not of {teacher.folder}; expected an eval run of that teacher's rows; give another")
    lacking = sorted(set(config.methods) - set(table["method"]))
    if lacking:
        raise ConfigError(f"removal.{name}: {path} has no method {lacking[0]!r} of task {config.task!r}; expected a row of its table")
    roles = _read_roles(Path(config.run))
    rows = np.array([places[row_id] for row_id in table["row_id"]])
    methods, folds, scores = (np.array(table[column]) for column in ("method", "fold", "score"))
    positive = np.zeros(len(teacher.rows), bool)
    positive[rows[np.array(table["positive"])]] = True
    removed = {}
    for method in config.methods:
        mine = methods == method
        for budget in config.budgets:
            if budget > mine.sum():
                raise ConfigError(f"removal.{name}: budget {budget}, but task {config.task!r} has {mine.sum()} candidates; expected fewer")
            removed[method, budget] = _mask(rows[mine], folds[mine], scores[mine], budget, len(positive))
    return Flagged(removed, positive, {method: roles[method]["role"] for method in config.methods})


def _read_roles(run: Path) -> dict[str, dict[str, str]]:
    try:
        methods: dict[str, dict[str, str]] = json.loads((run / "summary.json").read_text(encoding="utf-8"))["methods"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{run / 'summary.json'}: not readable ({error}); expected the summary of an eval run; run eval again") from error
    return methods


def _mask(rows: NDArray[np.int64], folds: NDArray[np.int64], scores: NDArray[np.float64], budget: int, count: int) -> Mask:
    """Return the best rows of every fold, in proportion to its size; the remainder goes to the first folds."""
    mask, numbers = np.zeros(count, bool), np.unique(folds)
    sizes = np.array([(folds == number).sum() for number in numbers])
    shares = budget * sizes // sizes.sum()
    shares[: budget - shares.sum()] += 1
    for number, share in zip(numbers, shares, strict=True):
        inside = np.flatnonzero(folds == number)
        mask[rows[inside[np.argsort(-scores[inside], kind="stable")[:share]]]] = True
    return mask
