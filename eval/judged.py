"""What is judged: test rows, in folds when the students are cross-fitted, and the questions that are asked about them.

The N judged rows stand in a seeded random order, so that "ties keep the row order" favours nobody. A fidelity query is a row;
its candidates are the other rows of its fold that are no queries. Scores of rows of two folds come from two encoders and are
never compared: every figure is taken within a fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eval.tasks import Task
from influcoder.errors import DataError
from influcoder.examples import Example

Positions = NDArray[np.int64]
MIN_QUERIES, MIN_CANDIDATES = 2, 3
"""below these there is neither an interval nor a rank correlation"""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Rows that one student a seed has not seen: positions among the judged rows."""

    queries: Positions
    """(Q,) fidelity queries"""
    candidates: Positions
    """(C,) rows that they rank"""

    @cached_property
    def rows(self) -> Positions:
        """All rows of the fold, ascending."""
        return np.sort(np.concatenate([self.queries, self.candidates]))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Test rows and the questions about them."""

    rows: Sequence[Example]
    """N"""
    folds: tuple[Fold, ...]
    """they cover the rows"""
    task_queries: Sequence[Example] = ()
    """T queries of all tasks"""
    groups: NDArray[np.str_] | None = None
    """(N,) kind of each row; None without such a label"""
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @cached_property
    def fidelity_queries(self) -> Positions:
        """(Q,) positions of all folds' fidelity queries, fold by fold: the first that ask."""
        return np.concatenate([fold.queries for fold in self.folds])

    @property
    def num_asking(self) -> int:
        """A: fidelity queries and task queries."""
        return len(self.fidelity_queries) + len(self.task_queries)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) characters of each response."""
        return np.array([len(row.response) for row in self.rows])

    def asking(self, number: int) -> slice:
        """Return which of the A askers are the fidelity queries of a fold."""
        start = sum(len(fold.queries) for fold in self.folds[:number])
        return slice(start, start + len(self.folds[number].queries))

    def block(self, scores: NDArray[np.floating], number: int) -> NDArray[np.floating]:
        """Return the scores `(Q, C)` that a fold's fidelity queries give to its candidates, out of one seed's `(A, N)`."""
        return scores[self.asking(number)][:, self.folds[number].candidates]

    def task_asking(self, task: Task) -> Positions:
        """Return which of the A askers are the queries of a task."""
        return len(self.fidelity_queries) + task.queries


def draw_folds(fold_of: NDArray[np.int64], num_queries: int, seed: int) -> tuple[Fold, ...]:
    """Choose the fidelity queries: `num_queries` shared by the folds, at most half of a fold.

    Args:
        fold_of: (N,) fold of each judged row, 0 to K - 1.
        num_queries: of all folds together.
        seed: of the choice.

    Raises:
        DataError: when a fold has too few rows.
    """
    random, folds = np.random.default_rng([seed, 0]), []
    count = int(fold_of.max(initial=0)) + 1
    for number in range(count):
        rows = np.flatnonzero(fold_of == number)
        chosen = min(-(-num_queries // count), len(rows) // 2)
        if chosen < MIN_QUERIES or len(rows) - chosen < MIN_CANDIDATES:
            raise DataError(
                f"test split: {len(rows)} rows; expected at least {MIN_QUERIES + MIN_CANDIDATES}; raise split.test of the student"
            )
        queries = np.sort(random.choice(rows, chosen, replace=False))
        folds.append(Fold(queries=queries, candidates=np.setdiff1d(rows, queries)))
    return tuple(folds)


def check_tasks(judged: Judged) -> None:
    """Refuse a task that has nothing to find, or nothing else, among the rows of some fold: there is no figure within it.

    Raises:
        DataError: naming task and fold.
    """
    for name, task in judged.tasks.items():
        for number, fold in enumerate(judged.folds):
            found, among = int(task.positive[fold.rows].sum()), int(task.candidates[fold.rows].sum())
            if task.kind != "retrieval" and not 0 < found < among:
                raise DataError(
                    f"tasks.{name}: {found} of {among} judged rows of fold {number} are positive; expected some and not all in every fold; "
                    "take fewer folds, or leave the task out"
                )
